# state: the objects of ipykernel
# in ci: yes

# %%
import re

ip = get_ipython()


def plainly(value):
    return re.sub(r" at 0x[0-9a-f]+|[0-9]{3,}", "", repr(value))


app, kernel = ip.parent.parent, ip.kernel
for owner in (ip, kernel, app, kernel.session):
    for name in sorted(owner.trait_names()):
        if name not in (
            "db",
            "ident",
            "_parent_ident",  # of ipykernel 6: the sessions of clients
            "starting_dir",
            "last_execution_result",
            "session",
            "last_activity",
            "_message_counter",  # a client asks again until it is answered
            "profile_dir",
            "config",
            "parent",
            "user_ns",
            "user_module",
            # of the app and of its session: ports, keys, ids and objects
            "_ports",
            "argv",
            "auth",
            "bsession",
            "cli_config",
            "connection_file",
            "control_port",
            "curve_publickey",
            "curve_secretkey",
            "digest_history",
            "displayhook",
            "hb_port",
            "heartbeat",
            "io_loop",
            "iopub_port",
            "kernel",
            "key",
            "parent_handle",
            "pid",
            "shell_port",
            "stdin_port",
        ):
            text = plainly(getattr(owner, name, None))
            print(type(owner).__name__, name, text if len(text) < 200 else len(text) // 100 * 0)
