"""Settings: read from `jupyter_roost_config`, checked, and frozen."""
