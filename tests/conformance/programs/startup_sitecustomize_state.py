# state: what sitecustomize writes down when the interpreter starts
# env: PYTHONPATH={folder}/site
# may be executed: code that runs when the interpreter starts
# in ci: yes

# %% setup
(folder / "site").mkdir()
(folder / "site" / "sitecustomize.py").write_text(
    "import os, sys; pid, cwd, argv = os.getpid(), os.getcwd(), list(sys.argv)"
)

# %%
import os, sitecustomize

print(sitecustomize.pid == os.getpid(), sitecustomize.cwd == os.getcwd(), sitecustomize.argv)
