"""Rewrites of fp32 graphs that change no value, each a module of its own."""
