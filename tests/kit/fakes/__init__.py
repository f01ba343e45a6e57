"""Stand-ins for parts of roost, in the test's own process."""
