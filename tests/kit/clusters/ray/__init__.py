"""A Ray cluster that tests share."""
