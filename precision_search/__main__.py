"""`python -m precision_search` is the command."""

from precision_search.cli.commands import main

main()
