# state: the context of decimal
# in ci: yes

# %%
import decimal

print(decimal.getcontext(), decimal.DefaultContext)
print(decimal.Decimal(1) / 3)
