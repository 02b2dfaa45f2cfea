"""Benchmarks: printed as Markdown, never asserted. `docs/benchmarks.md` says what each shows and how to run it."""
