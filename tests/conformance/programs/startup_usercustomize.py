# state: the user's folder of packages, and usercustomize
# env: PYTHONUSERBASE={folder}/base PROGRAM_VARIABLE=value
# may be executed: code that runs when the interpreter starts

# %% setup
import sys

site = folder / "base" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
site.mkdir(parents=True)
(site / "usercustomize.py").write_text("import os; seen = os.environ.get('PROGRAM_VARIABLE')")

# %%
import site, sys

print(site.ENABLE_USER_SITE, site.getuserbase())
print(getattr(sys.modules.get("usercustomize"), "seen", "no usercustomize"))
