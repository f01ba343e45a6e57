# state: SIGPIPE

# %%
import os, signal, subprocess

print(signal.getsignal(signal.SIGPIPE))
reader, writer = os.pipe()
os.close(reader)
try:
    os.write(writer, b"x")
except BrokenPipeError as error:
    print(error.strerror)
print(
    subprocess.run(
        ["sh", "-c", "yes | head -1; echo ${PIPESTATUS:-none}"], capture_output=True, text=True
    ).stdout
)
