"""This machine: what it can run, and how fast its device is."""
