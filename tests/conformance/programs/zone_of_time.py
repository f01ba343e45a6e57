# state: the time zone
# env: TZ=Asia/Tokyo
# in ci: yes

# %%
import datetime, time

print(time.tzname, time.timezone, time.strftime("%Z %z", time.localtime(0)))
print(
    datetime.datetime.fromtimestamp(0).isoformat(), datetime.datetime.fromtimestamp(0).astimezone().tzname()
)
