"""`python -m roost` is the command `roost` of this Python's environment."""

import sys

from roost.scheduler.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
