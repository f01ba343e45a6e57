"""What tests on SSH hosts share."""
