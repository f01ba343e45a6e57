"""Translates kernelspecs of Enterprise Gateway, Gateway Provisioners and Remote Provisioners into roost's.

`is_theirs` says which kernelspecs these are, and `translate` translates one. `read_server` reads the settings of their
server, and `translate_server` translates them. Nothing is written and nothing of theirs is executed.

    translate ──> kernel_file: kernel.json ──> classes, command: docker_run, words
        └──────> draft: the new parts, and the report's lines
                    ├── stanza_options      the stanza's options
                    ├── server_settings     the old server's settings, which server_translation gives to kernelspecs
                    ├── kernel_variables    KERNEL_*, with volumes
                    ├── variables           all others in `env`
                    ├── spark_options       the arguments of spark-submit
                    ├── launcher_options    the launcher's, and those of `docker run`: container_options
                    ├── kernel_commands     the new command, with the first lines of spark_start
                    └── refused_options     the check by roost's own code

`report` has the result. `options_table` reads the table of all options, `amounts` reads amounts and lists, and
`secrets` keeps secrets out of the report.
"""

from __future__ import annotations

from .kernel_file import is_theirs
from .report import Line, Outcome, Translation
from .server_settings import NotLiteral, read_server
from .server_translation import ServerTranslation, translate_server
from .translate import translate

__all__ = [
    "Line",
    "NotLiteral",
    "Outcome",
    "ServerTranslation",
    "Translation",
    "is_theirs",
    "read_server",
    "translate",
    "translate_server",
]
