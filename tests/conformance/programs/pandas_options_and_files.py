# state: options of pandas, and its late imports
# needs: pandas

# %%
import pandas

pandas.set_option("display.precision", 2)
frame = pandas.DataFrame({"a": [1.23456, 2]})
frame.to_csv("a.csv", index=False)
print(pandas.read_csv("a.csv"))
frame.eval("b = a * 2")

# %%
frame.style.to_html()[:6]
