"""One file per cluster manager, all behind the interface in `base`."""
