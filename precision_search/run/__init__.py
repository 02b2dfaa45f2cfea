"""The whole job: prepare, search, record."""
