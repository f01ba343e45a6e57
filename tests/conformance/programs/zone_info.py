# state: the folders and the cache of zoneinfo
# env: PYTHONTZPATH=/usr/share/zoneinfo

# %%
import datetime, zoneinfo

print(zoneinfo.TZPATH)
try:
    print(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Vienna")).utcoffset())
except zoneinfo.ZoneInfoNotFoundError as error:
    print(error)
