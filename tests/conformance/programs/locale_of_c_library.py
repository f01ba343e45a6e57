# state: the locale
# in ci: yes

# %%
import codecs, locale, sys

print(locale.setlocale(locale.LC_ALL), locale.getlocale(), locale.getpreferredencoding())
print(locale.localeconv()["decimal_point"], locale.localeconv()["thousands_sep"], f"{1234567.5:n}")
print(
    sys.getfilesystemencoding(),
    sys.flags.utf8_mode,
    codecs.lookup(sys.__stdout__.encoding).name,
    sys.__stdout__.errors,
)
