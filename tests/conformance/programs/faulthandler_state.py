# state: faulthandler
# in ci: yes

# %%
import faulthandler, io, tempfile

print(faulthandler.is_enabled())
with tempfile.TemporaryFile("w+") as file:
    faulthandler.dump_traceback(file, all_threads=False)
    file.seek(0)
    print(file.read().count("File") > 3)
    import os, time

    size = os.fstat(file.fileno()).st_size
    faulthandler.dump_traceback_later(0.1, file=file)
    for _ in range(3000):
        if os.fstat(file.fileno()).st_size > size:
            break
        time.sleep(0.01)
    faulthandler.cancel_dump_traceback_later()
    file.seek(0)
    print("Timeout" in file.read())
