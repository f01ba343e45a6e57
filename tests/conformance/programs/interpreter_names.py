# state: the interpreter's files
# in ci: yes

# %%
import os, site, sys, sysconfig

print(sys.executable, sys._base_executable, sys.prefix, sys.base_prefix, sys.exec_prefix)
print(
    os.readlink("/proc/self/exe"),
    site.ENABLE_USER_SITE,
    site.getsitepackages(),
    sysconfig.get_path("purelib"),
)
print(
    sys.version_info[:3], sys.implementation.name, sys.getswitchinterval(), sys.byteorder, sys.float_info.max
)
