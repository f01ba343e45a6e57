"""Real clusters on this machine, their faults, and users who compete for them."""
