"""`roost gateway`: one Jupyter Server that starts roost's kernels for many people.

settings.py         RoostGateway: the settings, the file that has them, and what `roost doctor` says about them
user_sources.py     who calls: a file of tokens, JupyterHub, a trusted proxy's header, or trust
token_file.py       the tokens of people, as hashes
"""
