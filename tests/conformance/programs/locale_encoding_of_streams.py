# state: the encoding of the standard streams
# env: PYTHONIOENCODING=latin-1:replace

# %%
import sys

for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
    print(stream.encoding, stream.errors, stream.line_buffering)
print("ä", sys.stdout.encoding)
