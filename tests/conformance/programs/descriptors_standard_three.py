# state: descriptors 0, 1 and 2
# in ci: yes

# %%
import os, stat, sys

print(os.readlink("/proc/self/fd/0"), stat.S_ISREG(os.fstat(1).st_mode), stat.S_ISREG(os.fstat(2).st_mode))
print(
    os.isatty(0),
    os.isatty(1),
    os.isatty(2),
    os.get_inheritable(0),
    os.get_inheritable(1),
    os.get_inheritable(2),
)
print(os.read(0, 1), sys.__stdin__.fileno(), sys.__stdout__.fileno(), sys.__stderr__.fileno())
print(os.lseek(1, 0, os.SEEK_CUR) >= 0, os.get_blocking(0), os.get_blocking(1))
import fcntl

flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (1, 2)]
print([(flag & os.O_ACCMODE, bool(flag & os.O_APPEND)) for flag in flags])
