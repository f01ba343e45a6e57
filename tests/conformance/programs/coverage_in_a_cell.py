# state: the tracer of coverage
# needs: coverage

# %%
import pathlib, coverage

_ = pathlib.Path("measured.py").write_text("def f(x):\n    if x:\n        return 1\n    return 2\n")
cov = coverage.Coverage(data_file=None, include=["measured.py", "*/measured.py"])
cov.start()
import sys

sys.path.insert(0, ".")
import measured

measured.f(1)
cov.stop()
_, statements, missing, _ = cov.analysis("measured.py")
print(statements, missing)
