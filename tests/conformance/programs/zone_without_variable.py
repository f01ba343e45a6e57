# state: the time zone of the machine
# in ci: yes

# %%
import datetime, os, time

print(os.environ.get("TZ"), time.tzname, time.localtime(0)[:6], time.daylight, time.altzone)
