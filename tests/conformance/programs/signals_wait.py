# state: signals that a cell waits for

# %%
import os, signal, threading

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2)).start()
info = signal.sigtimedwait([signal.SIGUSR2], 0)
print(info)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2]) if False else None
