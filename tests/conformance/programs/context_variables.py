# state: context variables
# in ci: yes

# %%
import contextvars, decimal

print(sorted(variable.name for variable in contextvars.copy_context() if not variable.name.startswith("_")))
variable = contextvars.ContextVar("variable", default=1)
variable.set(2)

# %%
print(variable.get())
