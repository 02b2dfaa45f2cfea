"""The fenced blocks of a Markdown page, and running those that say something: commands, Python, configs.

- `console`: lines that start with `$ ` are commands (a backslash at the end goes on), the others what they print, on
  stdout and stderr together. All that is printed stands there, so cut it in the command (`| head -5`).
- `python`: run in one namespace a page. A literal in the comment behind an expression is what its value must equal.
- `toml`: a first line such as `# my.toml: ...` is a config that must load, and a file that
  later blocks find, unless the stage has one of that name.

All run in the page's stage, in the order of the page. Other languages (`sh`, `text`, `json`) are not run.
"""

from __future__ import annotations

import ast
import io
import os
import re
import shlex
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from precision_search.config import load_config
from tests.docs_pages.alike import WIDTH, alike, parted, timeless
from tests.warm import python_command

RUN = ("console", "python", "toml")

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\S+\.toml)\b")
_MARK = "--- next command ---"
_HOME = "/home/me"
"""What pages show as the folder that they speak of."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what is in it, and where that stands in the page."""

    language: str
    text: str
    start: int
    end: int

    def commands(self) -> Iterator[tuple[str, str]]:
        """The commands of a console block, each with what it prints."""
        command, printed, goes_on = "", "", False
        for line in self.text.splitlines(keepends=True):
            if goes_on:
                command, goes_on = command + line, line.endswith("\\\n")
            elif line.startswith("$ "):
                if command:
                    yield command, printed
                command, printed, goes_on = line, "", line.endswith("\\\n")
            else:
                printed += line
        yield command, printed


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(match[1], match[2], *match.span(2)) for match in _FENCE.finditer(page)]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a page's blocks run: a folder that has what the page speaks of."""

    folder: Path
    namespace: dict[str, Any] = field(default_factory=dict)

    def run(self, commands: Sequence[str]) -> list[str]:
        """What each command of a session prints, stdout and stderr together; `$?` is that of the one before."""
        marked = [
            f"{command.removeprefix('$ ')}\n_code=$?; echo; echo {_MARK}; (exit $_code)\n" for command in commands
        ]
        done = subprocess.run(
            ["bash", "-c", "".join(marked)],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        *parts, _ = done.stdout.replace(str(self.folder), _HOME).split(f"\n{_MARK}\n")
        return ["".join(f"{line.rstrip()}\n" for line in part.splitlines()) for part in parts]

    def _environment(self) -> Mapping[str, str]:
        tools = self.folder / ".tools"
        if not tools.is_dir():
            tools.mkdir()
            script = tools / "precision-search"
            script.write_text(f'#!/bin/sh\nexec {shlex.join(python_command())} -m precision_search "$@"\n')
            script.chmod(0o755)
            (tools / "python").symlink_to(sys.executable)
        paths = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(self.folder / ".cache")}
        return os.environ | paths | {"COLUMNS": str(WIDTH), "PYTHONPATH": os.pathsep.join(sys.path)}


def check(block: Block, stage: Stage, *, may_part: bool = False) -> bool:
    """Runs a block and holds what comes out against what it says; an AssertionError where that differs.

    Args:
        block: of a language in `RUN`.
        stage: where it runs.
        may_part: whether near-ties may be decided otherwise than on the page.

    Returns:
        Whether they were decided as on the page, so that the blocks that follow can be held against it, too.
    """
    if block.language == "console":
        session = list(block.commands())
        outputs = stage.run([command for command, _ in session])
        for (command, expected), printed in zip(session, outputs, strict=True):
            if may_part and not alike(printed, expected) and parted(printed, expected):
                return False
            assert alike(printed, expected), f"{command}prints\n{printed}\nthe page says\n{expected}"
    elif block.language == "python":
        _check_python(block.text, stage.namespace)
    elif block.language == "toml" and (name := _FILE.match(block.text)):
        page = stage.folder / f"page-{name[1]}"
        page.write_text(block.text)
        load_config(page)
        if not (stage.folder / name[1]).exists():
            page.rename(stage.folder / name[1])
    return True


def filled(block: Block, stage: Stage) -> str:
    """A console block with what its commands print now, without what only a clock made them print."""
    session = list(block.commands())
    printed = stage.run([command for command, _ in session])
    return "".join(f"{command}{timeless(new)}" for (command, _), new in zip(session, printed, strict=True))


def _check_python(text: str, namespace: dict[str, Any]) -> None:
    comments = {token.start[0]: token.string.removeprefix("# ") for token in _tokens(text)}
    for statement in ast.parse(text).body:
        line = statement.end_lineno or 0
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), "<page>", "eval"), namespace)
            expected = _literal(comments.get(line, ""))
            assert expected is None or value == expected, f"{ast.unparse(statement)} is {value!r}"
        else:
            exec(compile(ast.Module([statement], []), "<page>", "exec"), namespace)


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    return (token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT)


def _literal(comment: str) -> Any:
    """The longest literal that a comment starts with; None if it starts with none."""
    for end in range(len(comment), 0, -1):
        if comment[end - 1] in ")]'\"0123456789":
            try:
                return ast.literal_eval(comment[:end])
            except (ValueError, SyntaxError):
                continue
    return None
