"""A YARN cluster that tests share, its faults, and an application master on it."""
