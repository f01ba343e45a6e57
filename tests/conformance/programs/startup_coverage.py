# state: coverage of a kernel, which a variable switches on
# needs: coverage
# env: COVERAGE_PROCESS_START={folder}/rc
# may be executed: code that runs when the interpreter starts

# %% setup
(folder / "rc").write_text(f"[run]\nparallel=True\ndata_file={folder}/data\n")

# %%
import coverage, sys

print(coverage.Coverage.current() is not None)
