"""Every error the package raises on purpose, read from its source: `python -m tests.error_catalogue` writes the page.

In: the syntax trees of the package. Out: `Site`s, which `docs/reference/errors.md` lists and which a test run compares
with what tests made happen (see `tests.every_error`). Where a helper makes the error, each call of it is a site.
"""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from precision_search import errors
from precision_search.model.layout import SEQ2SEQ

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "precision_search"
PAGE = ROOT / "docs/reference/errors.md"
KINDS: Mapping[str, type[errors.PrecisionSearchError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.PrecisionSearchError)
}
LONGEST_PLACEHOLDER = 28
ALTERNATIVES = " / "
SUGGESTION = "did_you_mean"
"""The helper of `errors` that names the nearest known word, empty where none is near."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Texts = Mapping[str, str]
"""What the parameters of a helper stand for in one call of it."""


@dataclass(frozen=True, slots=True)
class Lines:
    """A piece of a file: its path from the root of the repository, and its lines, both included."""

    file: str
    first: int
    last: int

    def hold(self, file: str, line: int) -> bool:
        return file == self.file and self.first <= line <= self.last


@dataclass(frozen=True, slots=True)
class Site:
    """A place that makes an error: its texts with `{placeholders}`; `caller` is the call of the helper it is in."""

    kind: str
    what: str
    why: str
    fix: str
    place: Lines
    caller: Lines | None

    @property
    def module(self) -> str:
        """Where a reader finds it."""
        return (
            (self.caller or self.place)
            .file.removeprefix("precision_search/")
            .removesuffix(".py")
            .removesuffix("/__init__")
            .replace("/", ".")
        )

    def __str__(self) -> str:
        where = self.caller or self.place
        return f"{where.file}:{where.first}: {self.kind}: {self.what}"


@functools.cache
def sites() -> tuple[Site, ...]:
    """All places that make one of our errors, in the order of the files."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "errors")
    modules = [_Module(path, _spelled(ast.parse(path.read_text()))) for path in paths]
    return tuple(site for module in modules for site in module.sites(modules))


def _spelled(tree: ast.Module) -> ast.Module:
    _Spelled().visit(tree)
    return tree


class _Spelled(ast.NodeTransformer):
    """Puts the names that the layout has in the places that ask it: readers know files and tensors, not attributes."""

    def visit(self, node: ast.AST) -> ast.AST:
        names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        if isinstance(node, ast.Attribute | ast.Call) and names == {"SEQ2SEQ"}:
            value = eval(compile(ast.Expression(node), "layout", "eval"), {"SEQ2SEQ": SEQ2SEQ})
            if isinstance(value, str):
                return ast.copy_location(ast.Constant(value), node)
        visited: ast.AST = super().visit(node)
        return visited


class _Module:
    """One file: which functions it has, and the constants that messages use."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self._file = path.relative_to(ROOT).as_posix()
        self._tree = tree
        self._constants = _assigned(tree.body)
        functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
        self._owners = {id(inner): function for function in functions for inner in ast.walk(function)}

    def sites(self, others: Sequence[_Module]) -> Iterator[Site]:
        for call in self._calls(KINDS):
            owner = self._owners.get(id(call))
            if owner is None or not _is_helper(owner, call):
                yield self._site(call, owner, {}, None)
                continue
            for user in [self] if owner.name.startswith("_") else others:
                for use in user._calls({owner.name}):
                    yield self._site(call, owner, user._arguments(owner, use), user._lines(use))

    def _calls(self, names: Mapping[str, object] | set[str]) -> list[ast.Call]:
        calls = [node for node in ast.walk(self._tree) if isinstance(node, ast.Call) and _name(node) in names]
        return sorted(calls, key=lambda call: (call.lineno, call.col_offset))

    def _lines(self, node: ast.Call) -> Lines:
        return Lines(self._file, node.lineno, node.end_lineno or node.lineno)

    def _site(self, call: ast.Call, owner: Function | None, texts: Texts, caller: Lines | None) -> Site:
        render = _Renderer(self._constants | _assigned_before(owner, call), texts)
        named = {keyword.arg: render.text(keyword.value) for keyword in call.keywords}
        return Site(
            kind=_name(call),
            what=render.text(call.args[0]),
            why=named.get("why", ""),
            fix=named.get("fix", ""),
            place=self._lines(call),
            caller=caller,
        )

    def _arguments(self, helper: Function, use: ast.Call) -> Texts:
        render = _Renderer(self._constants | _assigned_before(self._owners.get(id(use)), use), {})
        names = [argument.arg for argument in (*helper.args.posonlyargs, *helper.args.args) if argument.arg != "self"]
        given = dict(zip(names, use.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in use.keywords if keyword.arg}
        return {name: render.text(value) for name, value in given.items()}


class _Renderer:
    """Texts of a message, as far as the source tells them."""

    def __init__(self, known: Mapping[str, list[ast.expr]], texts: Texts) -> None:
        self._known = known
        self._texts = texts

    def text(self, node: ast.expr) -> str:
        return " ".join(ALTERNATIVES.join(dict.fromkeys(self._texts_of(node, ()))).split())

    def _texts_of(self, node: ast.expr, seen: tuple[str, ...]) -> list[str]:
        match node:
            case ast.Constant(value=str(text)):
                found = [text]
            case ast.JoinedStr(values=parts):
                found = ["".join(self._part(part, seen) for part in parts)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                found = [self._joined(left, seen) + self._joined(right, seen)]
            case ast.IfExp(body=one, orelse=other):
                found = [text for each in (one, other) for text in self._texts_of(each, seen) if text]
            case ast.BoolOp(op=ast.Or(), values=values) if _name(values[0]) == SUGGESTION:
                found = [text for each in values for text in self._texts_of(each, seen)]
            case ast.Call(keywords=keywords) if _name(node) == SUGGESTION:
                also = [text for each in keywords if each.arg == "also" for text in self._texts_of(each.value, seen)]
                found = [f"did you mean `{{nearest}}`? {text}" for text in also or [""]]
            case ast.Name(id=name) if name in self._texts:
                found = [self._texts[name]]
            case ast.Name(id=name) if name in self._known and name not in seen:
                found = [text for each in self._known[name] for text in self._texts_of(each, (*seen, name))]
            case _:
                found = [f"{{{placeholder(node)}}}"]
        return found

    def _joined(self, node: ast.expr, seen: tuple[str, ...]) -> str:
        found = self._texts_of(node, seen)
        return found[0] if len(found) == 1 else f"({ALTERNATIVES.join(found)})"

    def _part(self, part: ast.expr, seen: tuple[str, ...]) -> str:
        if not isinstance(part, ast.FormattedValue):
            return self._joined(part, seen)
        is_text = isinstance(part.value, ast.IfExp | ast.Constant)
        name = part.value.id if isinstance(part.value, ast.Name) else ""
        substituted = name in self._texts or (name.isupper() and name in self._known)
        return self._joined(part.value, seen) if is_text or substituted else f"{{{placeholder(part.value)}}}"


def placeholder(node: ast.expr) -> str:
    """A short name for a value: what a reader needs to see that something stands here."""
    match node:
        case ast.Call(func=ast.Name(id="str" | "repr" | "sorted" | "first_line" | "reason"), args=[value]):
            return placeholder(value)
        case ast.Call(func=ast.Attribute(attr="join"), args=[value]):
            return placeholder(value)
        case ast.BoolOp(values=[first, *_]):
            return placeholder(first)
        case ast.Attribute(value=value, attr="strerror"):
            return placeholder(value)
    text = ast.unparse(node)
    if len(text) <= LONGEST_PLACEHOLDER and '"' not in text and "'" not in text:
        return text
    names = [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and inner.id not in ("str", "len")]
    # A space, because `{word}` with a backtick behind it is a role in MyST.
    return names[0].removeprefix("_").replace("_", " ") if names else "..."


def _name(node: ast.expr) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _is_helper(function: Function, call: ast.Call) -> bool:
    """Whether others decide what the error says: they are given it to raise, or they give it its words.

    What a public function returns is one place: other modules raise it as it is.
    """
    returned = (node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value)
    gives = any(call is inner for value in returned for inner in ast.walk(value))
    takes_words = any(isinstance(node, ast.Name) and node.id == "what" for node in ast.walk(call.args[0]))
    parameters = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    return (gives and function.name.startswith("_")) or (takes_words and "what" in parameters)


def _assigned_before(function: Function | None, call: ast.Call) -> dict[str, list[ast.expr]]:
    """What names hold when the call is reached: what the same block gave them last, else all that came before."""
    if function is None:
        return {}
    before = [node for node in ast.walk(function) if isinstance(node, ast.stmt) and node.lineno < call.lineno]
    known = _assigned(before)
    for block in _blocks(function):
        if any(inner is call for statement in block for inner in ast.walk(statement)):
            own = _assigned([statement for statement in block if statement.lineno < call.lineno])
            known |= {name: values[-1:] for name, values in own.items()}
    return known


def _blocks(function: Function) -> Iterator[list[ast.stmt]]:
    """All lists of statements, outer ones first."""
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                yield block


def _assigned(statements: Sequence[ast.stmt]) -> dict[str, list[ast.expr]]:
    """The texts that names are given; a name that is ever given anything else is left out."""
    found: dict[str, list[ast.expr]] = {}
    for node in statements:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, []).append(ast.Constant(None))
    return {name: values for name, values in found.items() if all(map(_is_text, values))}


def _is_text(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.IfExp(body=one, orelse=other):
            return _is_text(one) and _is_text(other)
        case ast.BinOp(left=left, op=ast.Add()):
            return _is_text(left)
        case ast.Call(func=ast.Name(id="str")):
            return True
    return False


HEAD = """# Errors

Whatever goes wrong ends in one message on stderr and an exit code. A message has up to three parts:

```text
error: calibration file german.txt is not UTF-8
  why: byte 0xfc at offset 61 (line 3) is not valid there
  fix: convert it, if it is Latin-1: iconv -f ISO-8859-1 -t UTF-8 german.txt > converted.txt
```

The first line says **what** happened, `why` the cause, with the names and numbers found, and `fix` what to do. In
Python they are the attributes `what`, `why` and `fix` of the exception. All classes are in `precision_search.errors`
and derive from `PrecisionSearchError`; `exit_code` is what the command ends with.

| exit code | meaning |
| --- | --- |
| 1 | the work is complete and its result is "no": nothing faster than fp32, or a verification failed |
| 2 | what was given cannot be used: usage, config or input |
| 3 | this machine cannot do it: no device, no package, no memory, no space |
| 4 | a bug in precision-search |
| 130 | interrupted, by Ctrl-C, SIGTERM or SIGHUP; the message says how to go on |

Wrong usage of the command line itself (an unknown option, a missing argument) is told by
[click](https://click.palletsprojects.com) in its own form, `Error: No such option: --resum`, with exit code 2.

An **unexpected error** is one line with exit code 4:

```text
error: internal error: ZeroDivisionError: division by zero; please report it with /tmp/precision-search-x1y2.txt
```

The file it names holds the command with its arguments, versions, and the traceback, and nothing of the environment.
What looks like a password or a token is struck out. Look at it before you send it: file names and texts of messages are
in it. With `--verbose` the traceback is printed too.

Below are all messages. `{name}` stands for what is filled in, and ` / ` separates alternatives.
This page is made from the source: `python -m tests.error_catalogue` writes it.
"""


def page() -> str:
    """The page as Markdown."""
    found: dict[str, list[Site]] = {name: [] for name in KINDS}
    for site in sites():
        if not re.fullmatch(r"\{[^}]*\}", site.what):  # handed on from elsewhere: its texts have a row of their own
            found[site.kind].append(site)
    return "\n".join([HEAD, *(_section(name, listed) for name, listed in found.items() if listed)])


def _section(name: str, listed: list[Site]) -> str:
    kind = KINDS[name]
    rows = {(site.what, site.why, site.fix, f"`{site.module}`") for site in listed}
    lines = [f"| {' | '.join(map(_cell, row))} |" for row in sorted(rows, key=lambda row: (_sort_key(row[0]), row))]
    about = " ".join(textwrap.dedent(kind.__doc__ or "").split("\n\n")[0].split())
    head = "| what | why | fix | module |\n| --- | --- | --- | --- |\n"
    return f"## {name}: exit code {kind.exit_code}\n\n{about}\n\n{head}" + "\n".join(lines) + "\n"


def _sort_key(text: str) -> str:
    return re.sub(r"\{[^}]*\}|\W", " ", text).strip().lower()


def _cell(text: str) -> str:
    """The text in a table; what is in backticks is code and stands as it is."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        pieces = [text.replace("`", "'")]
    shown = [
        re.sub(r"([\\*<|\[])", r"\\\1", piece) if number % 2 == 0 else piece for number, piece in enumerate(pieces)
    ]
    return "`".join(shown).replace("|", "\\|").replace("\\\\|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
