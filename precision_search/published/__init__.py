"""A published model: written, checked, described, loaded, verified and run."""
