# state: a thread that sitecustomize starts
# env: PYTHONPATH={folder}/site
# may be executed: code that runs when the interpreter starts

# %% setup
(folder / "site").mkdir()
(folder / "site" / "sitecustomize.py").write_text("""
import threading, time
beats = []
def beat():
    while True:
        beats.append(time.time()); time.sleep(0.01)
threading.Thread(target=beat, daemon=True, name="beat").start()
""")

# %%
import sitecustomize, threading, time

before = len(sitecustomize.beats)
time.sleep(0.2)
print(len(sitecustomize.beats) > before, sorted(t.name for t in threading.enumerate() if t.name == "beat"))
