"""The pages of the reference that are made from the code, and the blocks of the docs that are run.

`python -m tests.docs_pages` writes the pages, with `--console PAGE ...` what commands print into their blocks; tests
hold what is committed against both.
"""
