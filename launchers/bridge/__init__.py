"""The bridge: a command that starts a launcher of Enterprise Gateway or Gateway Provisioners as an ordinary kernel.

    python -m roost.launchers.bridge {connection_file} LAUNCHER ARGUMENT...

    roost's agent ──exec──> bridge ──exec──> launcher, which is the kernel too
                              │ <──answer──────┘  its ports and keys, encrypted, once
    clients <══roost's ports══╪══launcher's ports══> kernel
                              └──comm_port──> launcher: interrupts, and its end

A kernelspec's `argv` is this command before the launcher's own. The bridge replaces `{kernel_id}`,
`{response_address}`, `{public_key}`, `{port_range}` and `{transport_encryption}` in the launcher's arguments and
environment. Everything else, such as `--RemoteProcessProxy.spark-context-initialization-mode lazy`, stays as it is.

`__main__` is the program and the course of a kernel. `launcher` runs the launcher's processes and sends requests to it,
`answer` accepts and checks its answer, and `relay` passes the five channels on.

The kernelspec also declares `"supported_encryption": ["curve"]` in its `metadata`, because the bridge encrypts roost's
side. The bridge needs the packages that ipykernel brings, and pycryptodome: the extra `roost[bridge]`.
"""
