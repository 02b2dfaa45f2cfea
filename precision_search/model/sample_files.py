"""Files of sentences, in whatever form people have them: text, JSON Lines, tables.

In: a path and, for a file with columns, which of them holds the sentences. Out: samples, each with its line. A form is
one function and one line in `FORMS`. A column is never guessed: of `COLUMNS` exactly one must be there, or it is named.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from precision_search.errors import InputError, MissingPackageError, first_line
from precision_search.files import LARGEST_TEXT, check_size, parse_json
from precision_search.model.text_files import NamedFile, lines_of, opening, read_text

COLUMNS = ("input", "text", "source")
"""Columns that hold the sentences where none is named."""

TARGET = "target"
"""The column of reference translations, which is optional."""

_SHOWN_COLUMNS = 12
_LONGEST_NAME = 60
NO_TEXT = (
    *(".arrow", ".feather", ".avro", ".orc", ".xlsx", ".xls", ".ods", ".docx", ".doc", ".odt", ".pdf"),
    *(".sqlite", ".db", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".html", ".xml", ".tmx", ".xliff", ".yaml", ".yml"),
    *(".json", ".toml", ".zip", ".gz", ".bz2", ".xz", ".zst", ".tar"),
)
"""Suffixes of files whose lines are no sentences, even where they are text."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A source sentence, its reference translation if the file has one, and the line it stands on (from 1)."""

    text: str
    target: str | None
    line: int = field(default=0, compare=False)


Row = Mapping[str, object]
"""A row of a file with columns; cells may hold anything."""

Lines = Iterable[tuple[int, Row]]


def read_samples(path: Path, name: str, column: str | None = None) -> tuple[Sample, ...]:
    """The samples of a file; its suffix says what form it has, and one of none in `FORMS` is text, one a line.

    Blank lines are skipped, other columns ignored, a byte order mark and any line ends are tolerated.

    Args:
        path: the file.
        name: the role of the set ("calibration", "validation", "test"), or "data" for a file from the command line.
        column: what holds the sentences in a file with columns; None for the one of `COLUMNS` that is there.

    Raises:
        InputError: the file is missing, no regular file, of a form that holds no sentences, binary, not UTF-8, or
            broken; or it has no such column, or a row without text in it.
        MissingPackageError: nothing is installed that reads its form.
    """
    file = NamedFile(path, name)
    _refuse_other_forms(file)
    read = FORMS.get(path.suffix.lower())
    if read is None:
        return tuple(Sample(text, None, line) for line, text in lines_of(read_text(file)))
    rows = list(read(file))
    if not rows:
        return ()
    chosen = _column(rows, column, file)
    return tuple(_sample(row, line, chosen, file) for line, row in rows)


def has_columns(path: Path) -> bool:
    """Whether files of that suffix have columns."""
    return path.suffix.lower() in FORMS


def _column(rows: Sequence[tuple[int, Row]], wanted: str | None, file: NamedFile) -> str:
    """The column of the sentences: the one that is wanted, or the only one of `COLUMNS` that some row has."""
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    found = [name for name in ((wanted,) if wanted is not None else COLUMNS) if name in names]
    if len(found) == 1:
        return found[0]
    quoted = ", ".join(f"`{name[:_LONGEST_NAME]}`" for name in names[:_SHOWN_COLUMNS]) or "none"
    more = f" and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    one_cell = len(names) == 1 and any(mark in names[0] for mark in ",;\t|")
    expected = f"no column `{wanted}`" if wanted is not None else f"not exactly one of {', '.join(COLUMNS)}"
    raise InputError(
        f"{file.label} has {expected}",
        why=f"its columns are {quoted}{more}",
        fix="separate the cells as the name says: .csv by commas, .tsv by tabs"
        if one_cell
        else f"say which column holds the sentences: {_how_to_name(file)}",
    )


def _how_to_name(file: NamedFile) -> str:
    return f'{file.name}.column = "NAME"' if file.is_configured else "--column NAME"


def _sample(row: Row, line: int, column: str, file: NamedFile) -> Sample:
    source, target = row.get(column), row.get(TARGET) if column != TARGET else None
    if not isinstance(source, str) or not source.strip():
        raise InputError(
            f"{file.label}, line {line}, is no sample",
            why=f"it has no `{column}` with text",
            fix="fill it in, or remove the line",
        )
    if target is not None and not isinstance(target, str):
        raise InputError(
            f"{file.label}, line {line}, is no sample",
            why=f"its `{TARGET}` is {target!r:.60}, no text",
            fix="make it text, or leave it out",
        )
    try:
        (source + (target or "")).encode()
    except UnicodeEncodeError as error:
        why = f"it escapes half a surrogate pair ({error.object[error.start]!r})"
        raise InputError(f"{file.label}, line {line}, is no text", why=why, fix="escape both halves") from error
    return Sample(source, target, line)


def _json_lines(file: NamedFile) -> Lines:
    fix = 'write one object a line: {"input": "...", "target": "..."}; target is optional'
    for line, text in lines_of(read_text(file)):
        try:
            content = parse_json(text)
        except ValueError as error:
            raise InputError(f"{file.label}, line {line}, is not JSON", why=str(error), fix=fix) from error
        if not isinstance(content, dict):
            raise InputError(f"{file.label}, line {line}, is no sample", why="it is not an object", fix=fix)
        yield line, content


def _table(delimiter: str) -> Callable[[NamedFile], Lines]:
    """Reads a table whose first row names its columns, as RFC 4180 has it but for the delimiter."""

    def read(file: NamedFile) -> Lines:
        reader = csv.reader(io.StringIO(read_text(file), newline=""), delimiter=delimiter, strict=True)
        header: list[str] = []
        before = 0
        try:
            for cells in reader:
                line, before = before + 1, reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if not header:
                    header = [cell.strip() for cell in cells]
                    continue
                _check_width(cells, header, line, file)
                yield line, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise InputError(
                f"{file.label}, line {reader.line_num}, is no row of a table",
                why=first_line(error),
                fix="put a cell with a quote, a line end or the delimiter in it between quotes, and double its quotes",
            ) from error

    return read


def _check_width(cells: Sequence[str], header: Sequence[str], line: int, file: NamedFile) -> None:
    if len(cells) != len(header) or len(set(header)) != len(header):
        repeated = next((name for name in header if header.count(name) > 1), None)
        raise InputError(
            f"{file.label} has no clear columns",
            why=f"line {line} has {len(cells)} cells, the header {len(header)}"
            if repeated is None
            else f"its header names the column `{repeated[:_LONGEST_NAME]}` twice",
            fix="give each row a cell for each column, and each column a name of its own",
        )


def _parquet(file: NamedFile) -> Lines:
    """Reads a Parquet file row by row; `line` is the number of the row."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError(
            f"{file.label} cannot be read",
            why="pyarrow, which reads Parquet, is not installed",
            fix="pip install pyarrow; or save the file as .csv or .jsonl",
        ) from error
    opening(file, lambda: check_size(file.path, LARGEST_TEXT))
    try:
        with parquet.ParquetFile(file.path) as table:
            names = [field.name for field in table.schema_arrow]
            wanted = [name for name in names if _is_text(table.schema_arrow.field(name).type)]
            yield from _rows(table.iter_batches(batch_size=1024, columns=wanted), names)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{file.label} is no Parquet file", why=first_line(error), fix="write it again, or save it as .csv"
        ) from error


def _rows(batches: Iterable[Any], names: Sequence[str]) -> Lines:
    """Rows as dictionaries; columns that hold no text are there without values, so that messages can name them."""
    line, read = 0, 0
    empty = dict.fromkeys(names)
    for batch in batches:
        read += batch.nbytes
        if read > LARGEST_TEXT:
            raise OSError(f"it has more than {LARGEST_TEXT} bytes of text")
        for row in batch.to_pylist():
            line += 1
            yield line, {**empty, **row}


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


FORMS: Mapping[str, Callable[[NamedFile], Lines]] = {
    ".jsonl": _json_lines,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".tab": _table("\t"),
    ".psv": _table("|"),
    ".parquet": _parquet,
}
"""What reads files that have columns, by suffix."""


def _refuse_other_forms(file: NamedFile) -> None:
    suffix = file.path.suffix.lower()
    if suffix in NO_TEXT and file.path.is_file():
        raise InputError(
            f"{file.label} is no list of sentences",
            why=f"by its name it is a {suffix} file",
            fix=f"write the sentences into a .txt file, one a line, or into a {', '.join(FORMS)} file with columns",
        )
