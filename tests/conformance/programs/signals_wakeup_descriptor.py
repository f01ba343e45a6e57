# state: the descriptor that signals wake

# %%
import signal

descriptor = signal.set_wakeup_fd(-1)
print(descriptor == -1)
signal.set_wakeup_fd(descriptor)
