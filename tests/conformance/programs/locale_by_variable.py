# state: the locale that variables ask for
# env: LC_ALL=C

# %%
import locale, sys, time

print(
    locale.setlocale(locale.LC_ALL),
    sys.flags.utf8_mode,
    sys.getfilesystemencoding(),
    sys.__stdout__.encoding,
    sys.__stderr__.errors,
)
print(time.strftime("%A %B", time.gmtime(0)), locale.getpreferredencoding(False))
