# state: threads at the end

# %%
import os, threading, time


def work():
    time.sleep(0.3)
    os.write(1, b"the thread has ended\n")


threading.Thread(target=work).start()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

# %% client
kernel.shut_down()
print("the thread has ended" in kernel.log())
