# state: the mask of blocked signals
# in ci: yes

# %%
import signal

print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.sigpending())
status = dict(line.split(":\t") for line in open("/proc/self/status") if line.startswith("Sig"))
print(status["SigBlk"].strip())
import subprocess

print(subprocess.run(["grep", "SigBlk", "/proc/self/status"], capture_output=True, text=True).stdout)
