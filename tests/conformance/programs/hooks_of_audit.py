# state: audit hooks

# %%
import sys

events = []
sys.addaudithook(lambda event, arguments: events.append(event) if event.startswith("program.") else None)
sys.audit("program.test")
print(events)
