"""Lets Jupyter's Qt console attach to an encrypted kernel: its configuration, which the wheel installs."""

import roost.provisioners.console_keys  # noqa: F401
