# state: the standard streams of a cell
# in ci: yes

# %%
import io, sys

for stream in (sys.stdout, sys.stderr):
    print(
        type(stream).__module__,
        stream.encoding,
        stream.isatty(),
        stream.writable(),
        stream.name if hasattr(stream, "name") else "",
    )
print("to stderr", file=sys.stderr)
sys.stdout.write("no newline")
sys.stdout.flush()

# %%
from contextlib import redirect_stdout

with redirect_stdout(io.StringIO()) as text:
    print("captured")
text.getvalue()

# %%
for n in range(2000):
    print(n, end=" ")

# %%
print("\u20ac \U0001f600", "\x1b[31mred\x1b[0m")
