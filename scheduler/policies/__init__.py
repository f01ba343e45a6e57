"""Placement policies by name: found, loaded, called, and explained."""
