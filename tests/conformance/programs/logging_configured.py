# state: logging that a cell configures

# %%
import logging, sys

logging.basicConfig(
    level="INFO",
    stream=sys.stdout,
    format="%(levelname)s %(name)s %(threadName)s %(processName)s %(process)d %(message)s",
)
logging.getLogger("mine").info("shown")
print(
    logging.getLevelName(logging.root.getEffectiveLevel()),
    logging.getLogRecordFactory().__name__,
    logging.getLoggerClass().__name__,
)
