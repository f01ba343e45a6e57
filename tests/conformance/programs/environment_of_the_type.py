# state: the class of os.environ
# in ci: yes

# %%
import os

print(type(os.environ), type(os.environ).__mro__, os.environ.encodekey.__name__)
try:
    os.environ["PROGRAM_MISSING"]
except KeyError as error:
    print(error)
