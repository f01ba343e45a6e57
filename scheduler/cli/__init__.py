"""The `roost` command (also `jupyter roost`).

    main.py         runs a command and turns errors into exit codes
    commands.py     the commands and their arguments
    options.py      options that several subcommands share
    nodes.py        roost nodes, drain, up
    kernels.py      roost kernels, logs, stop
    explain.py      roost explain
    doctor.py       roost doctor
    machine.py      roost machine install; what the machine's book has, for roost nodes and doctor
    services.py     roost restart-service; what roost doctor says about two services for one cluster
    jupyter.py      roost kernelspec install, list, remove
    migrate.py      roost migrate
    migrate_report.py  the report of roost migrate
    events.py       roost events
    top.py          roost top
    gateway.py      roost gateway: the server for many people, its tokens and kernels
    bench.py        roost bench
    clean_text.py   removes control characters from texts of other programs
    tables.py       how tables, amounts and ages look

This package stands above all others, `provisioners` included: only programs and `roost.bench` import it.
"""
