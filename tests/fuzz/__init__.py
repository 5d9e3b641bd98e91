"""Hostile bytes, by the million: `python -m tests.fuzz` (`scripts/fuzz`)."""
