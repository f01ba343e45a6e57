"""The Docker engine that tests share."""
