"""`roost gateway`: one Jupyter Server that starts roost's kernels for many people.

settings.py         RoostGateway: the settings, the file that has them, and what `roost doctor` says about them
gateway.py          Gateway: what all parts share
user_sources.py     who calls: a file of tokens, JupyterHub, a trusted proxy's header, or trust
token_file.py       the tokens of people, as hashes
own_kernels.py      whose kernel it is: the records of all kernels, and the authorizer
start_variables.py  what a start may say
kernels.py          the kernel manager: starts for a person, caps, the environment of an adopted kernel
audit.py            the audit file
"""
