# state: the plots of pandas
# needs: pandas, matplotlib

# %%
import pandas
pandas.Series([1, 3, 2]).plot(figsize=(1, 1));
