# state: timers that send signals
# in ci: yes

# %%
import signal, time

print(
    signal.getitimer(signal.ITIMER_REAL),
    signal.getitimer(signal.ITIMER_VIRTUAL),
    signal.getitimer(signal.ITIMER_PROF),
    signal.alarm(0),
)


class Late(Exception):
    pass


def late(number, frame):
    raise Late


signal.signal(signal.SIGALRM, late)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    time.sleep(20)
except Late:
    print("late")
