# state: the score with which the system chooses a process to kill

# %%
print(open("/proc/self/oom_score_adj").read())
