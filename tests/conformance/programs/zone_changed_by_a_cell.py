# state: the time zone, if a cell changes it

# %%
import os, time

os.environ["TZ"] = "America/New_York"
time.tzset()
print(time.tzname, time.localtime(0)[:5])
import subprocess

print(subprocess.run(["date", "-d", "@0", "+%Z %H"], capture_output=True, text=True).stdout)
