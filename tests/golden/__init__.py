"""Golden files: everything that people see of two whole runs, stored before a refactoring and compared after it.

    python -m tests.golden write tests/golden/files      # before: makes everything anew and stores it
    python -m tests.golden compare tests/golden/files    # after: makes everything anew and prints each difference
    python -m tests.golden wheel                         # from an installed wheel, outside the checkout

It goes through the public door only (the command as a child process, the files it leaves, `precision_search.api`), so
that the same tool works on both sides of a move. The files hold exact floats of the processor and the packages that
made them: this is a tool for a refactoring on one machine, not a test for continuous integration. On another machine
write them from the old commit first. `--part tiny` (or `demo`, `door`) does one part of it.
"""
