# state: pandas
# needs: pandas

# %%
import pandas

frame = pandas.DataFrame({"a": [1, 2, 3], "b": list("xyx")})
frame

# %%
print(frame.groupby("b").sum(), frame.describe(), pandas.get_option("display.max_rows"))
print(pandas.to_datetime(["2024-01-01"]).tz_localize("UTC"), pandas.date_range("2024", periods=2, freq="D"))
