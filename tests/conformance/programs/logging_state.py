# state: levels and handlers of logging
# in ci: yes

# %%
import logging

print(
    logging.root,
    logging.root.handlers,
    logging.root.manager.disable,
    logging.raiseExceptions,
    logging.lastResort,
)
print(
    sorted(
        name
        for name, each in logging.root.manager.loggerDict.items()
        if isinstance(each, logging.Logger)
        and (each.level or each.handlers or each.disabled)
        and name not in ("numpy", "matplotlib")
    )
)
logging.warning("a warning")
logging.info("hidden")
