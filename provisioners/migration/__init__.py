"""Translates kernelspecs of Enterprise Gateway, Gateway Provisioners and Remote Provisioners into roost's.

`is_theirs` says which kernelspecs these are, and `translate` translates one. `read_server` reads the settings of their
server, and `translate_server` translates them. None of these writes anything, or executes anything of theirs.

    translate ──> old_kernelspec: kernel.json, its stanza and its command
        └──────> draft, a sheet: the new values by their targets, and the report's lines
                    ├── tables       each option of theirs, and its equivalent
                    ├── server       the settings of their server
                    ├── spark        the arguments of spark-submit
                    ├── command      the new command
                    └── site_files   the files in which a site has lines of its own

`folders` finds old kernelspecs, writes new ones and puts the old ones back. `values` reads amounts, lists and secrets.
"""

from __future__ import annotations

from .old_kernelspec import is_theirs
from .server import NotLiteral, read_server, translate_server
from .sheet import Line, Translation
from .translate import translate

__all__ = ["Line", "NotLiteral", "Translation", "is_theirs", "read_server", "translate", "translate_server"]
