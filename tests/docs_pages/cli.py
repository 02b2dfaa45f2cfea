"""The reference of the command line, made from its own help."""

from __future__ import annotations

import click

from precision_search.cli.commands import cli
from precision_search.cli.support import PROGRAM

WIDTH = 100
HEAD = f"""# The command line

Data goes to stdout, progress and messages to stderr. `NO_COLOR` is honoured; progress moves only on a terminal.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | done, but no stable plan is faster than fp32, or a verification failed |
| 2 | wrong usage, config or input |
| 3 | this machine cannot do it: no CUDA, a missing package, no memory or space |
| 4 | internal error; the message names a file to report |
| 130 | interrupted, by Ctrl-C, SIGTERM or SIGHUP; the message says how to go on |

This page is what `{PROGRAM} --help` and `{PROGRAM} COMMAND --help` say.
"""


def cli_page() -> str:
    """The page as Markdown."""
    root = click.Context(cli, info_name=PROGRAM, terminal_width=WIDTH, **cli.context_settings)
    commands = [click.Context(command, info_name=name, parent=root) for name, command in cli.commands.items()]
    return "\n".join([HEAD, *map(_section, (root, *commands))])


def _section(context: click.Context) -> str:
    return f"## {context.command_path}\n\n```text\n{context.command.get_help(context)}\n```\n"
