"""The bridge: a command that starts a launcher of Enterprise Gateway or Gateway Provisioners as an ordinary kernel.

    python -m roost.launchers.bridge {connection_file} [--launch-timeout SECONDS] LAUNCHER ARGUMENT...

    roost's agent ──exec──> bridge ──exec──> launcher, which is the kernel too
                              │ <──answer──────┘  its ports and keys, encrypted, once
    clients <══roost's ports══╪══launcher's ports══> kernel
                              └──comm_port──> launcher: interrupts, and its end

A kernelspec's `argv` is this command before the launcher's own. The bridge replaces `{kernel_id}`,
`{response_address}`, `{public_key}`, `{port_range}` and `{transport_encryption}` in the launcher's arguments and
environment. Everything else, such as `--RemoteProcessProxy.spark-context-initialization-mode lazy`, stays as it is.

`__main__` is the program, `bridge` the course of a kernel, and `placeholders` fills the launcher's command. `launcher`
runs the launcher's processes, and `comm_port` sends requests to it. `listener` accepts the answer, `answer` decrypts
and checks it, and `session_ports` finds out whether a port belongs to the launch. `relay` passes the five channels on.

The kernelspec also declares `"supported_encryption": ["curve"]` in its `metadata`, because the bridge encrypts roost's
side. The bridge needs the packages that ipykernel brings, and pycryptodome.
"""
