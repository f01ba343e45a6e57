# state: the configuration of ipykernel
# in ci: yes

# %%
ip = get_ipython()
app = ip.parent.parent
print(
    {name: dict(ip.config[name]) for name in sorted(ip.config) if name != "IPKernelApp"},
    type(app).__name__,
    app.name,
    app.initialized(),
)
print(
    app.transport,
    app.ip,
    app.quiet,
    app.no_stdout,
    app.no_stderr,
    app.trio_loop,
    app.displayhook_class,
    app.outstream_class,
    app.subcommand,
)
print(
    len(app.config_file_paths),
    [path for path in app.config_file_paths if "ipython" in str(path)][:1] != [],
    app.profile_dir.location != "",
)
