# state: ignored signals
# in ci: yes

# %%
import signal, subprocess

print([number for number in range(1, 65) if signal.getsignal(number) == signal.SIG_IGN])
print(subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True).stdout)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("SigIgn")])
