# state: handlers of signals
# in ci: yes

# %%
import signal

for number in sorted(signal.valid_signals()):
    handler = signal.getsignal(number)
    if handler not in (signal.SIG_DFL, signal.SIG_IGN):
        print(number, getattr(handler, "__qualname__", handler))
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("SigCgt")])
