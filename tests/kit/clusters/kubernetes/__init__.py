"""A Kubernetes cluster that tests share, its faults, and a firewall between its pods."""
