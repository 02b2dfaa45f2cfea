"""Proves that sentences are read from tables by column, in whatever form, and that what is unclear is refused."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from precision_search.errors import InputError, MissingPackageError
from precision_search.model import sample_files
from precision_search.model.sample_files import COLUMNS, FORMS, Sample, read_samples
from precision_search.model.samples import load_samples

Table = list[dict[str, str]]
LETTERS = st.characters(codec="utf-8", exclude_characters="\0\ufeff\r")
CELLS = st.text(LETTERS, min_size=1, max_size=12).filter(str.strip)


def write_table(path: Path, rows: Table, delimiter: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())


def write_json_lines(path: Path, rows: Table) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


WRITERS: dict[str, Callable[[Path, Table], None]] = {
    ".jsonl": write_json_lines,
    ".csv": lambda path, rows: write_table(path, rows, ","),
    ".tsv": lambda path, rows: write_table(path, rows, "\t"),
    ".tab": lambda path, rows: write_table(path, rows, "\t"),
    ".psv": lambda path, rows: write_table(path, rows, "|"),
    ".parquet": lambda path, rows: parquet.write_table(pyarrow.Table.from_pylist(rows), path),
}


def refused(path: Path, column: str | None = None, name: str = "calibration") -> InputError:
    with pytest.raises(InputError) as caught:
        read_samples(path, name, column)
    assert caught.value.what.startswith(f"{name} file {path}")
    assert caught.value.why and caught.value.fix
    return caught.value


def written(folder: Path, suffix: str, rows: Table) -> Path:
    path = folder / f"data{suffix}"
    WRITERS[suffix](path, rows)
    return path


def test_every_form_is_tested() -> None:
    assert WRITERS.keys() == FORMS.keys()


@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize("column", [*COLUMNS, "german"])
def test_the_column_is_the_one_that_is_named_or_the_only_known_one(tmp_path: Path, suffix: str, column: str) -> None:
    path = written(tmp_path, suffix, [{"id": "1", column: "eins, zwei"}, {"id": "2", column: 'drei "vier"'}])
    expected = (Sample("eins, zwei", None), Sample('drei "vier"', None))

    assert read_samples(path, "test", column) == expected
    if column in COLUMNS:
        assert read_samples(path, "test") == expected
    else:
        assert "columns are `id`, `german`" in refused(path).why


@pytest.mark.parametrize("suffix", FORMS)
def test_several_known_columns_are_not_chosen_from(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix, [{"source": "eins", "text": "one"}])

    error = refused(path)
    assert "not exactly one of input, text, source" in error.what
    assert error.fix.endswith('calibration.column = "NAME"')
    assert refused(path, name="data").fix.endswith("--column NAME")
    assert read_samples(path, "test", "text") == (Sample("one", None),)
    assert "no column `english`" in refused(path, "english").what


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4))
def test_all_forms_hold_the_same_samples(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    """Whatever is in the cells: delimiters, quotes, line ends."""
    folder = tmp_path_factory.mktemp("forms")
    table = [{"other": target, "text": text, "target": target} for text, target in rows]
    found = [load_samples(written(folder, suffix, table), "test") for suffix in FORMS]

    assert [(each.text, each.target) for each in found[0].samples] == rows
    assert {each.content_hash for each in found} == {found[0].content_hash}


def test_lines_of_a_table_are_counted_where_cells_hold_several(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('\ufefftext,id\n"two\nlines",1\n\nthree,2\n', encoding="utf-8")

    assert [(each.text, each.line) for each in read_samples(path, "test")] == [("two\nlines", 2), ("three", 5)]


@pytest.mark.parametrize(
    ("content", "what", "why"),
    [
        ("text\n", "is empty", "no line with text"),
        ("text,id\nfine,1\n,2\n", "line 3, is no sample", "no `text` with text"),
        ("text,id\nfine\n", "has no clear columns", "line 2 has 1 cells, the header 2"),
        ("text,text\na,b\n", "has no clear columns", "names the column `text` twice"),
        ('text\n"open\n', "is no row of a table", "unexpected end of data"),
        ('text\n"a"b\n', "line 2, is no row of a table", "expected after"),
    ],
)
def test_a_broken_table_is_told_by_its_line(tmp_path: Path, content: str, what: str, why: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)

    with pytest.raises(InputError) as caught:
        load_samples(path, "calibration")
    assert what in caught.value.what
    assert why in caught.value.why


def test_long_lists_of_columns_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(",".join(f"{'c' * 500}{number}" for number in range(500)) + "\n" + ",".join("x" * 500) + "\n")

    error = refused(path)
    assert error.why.endswith("and 488 more")
    assert len(error.why) < 1000


def test_a_column_of_a_text_file_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("one\n")

    assert "it has no columns" in load_samples(tmp_path / "data.txt", "test", "text").warnings[0]


def test_parquet_takes_texts_only(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None], "source": [1, 2]}), path)

    assert "not exactly one" in refused(path).what
    assert "line 2, is no sample" in refused(path, "text").what
    assert "line 1, is no sample" in refused(path, "source").what


def test_what_is_no_parquet_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 and more")

    assert "is no Parquet file" in refused(path).what
    assert "does not exist" in refused(tmp_path / "absent.parquet").what


def test_parquet_is_bounded_as_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, ".parquet", [{"text": "a" * 1000} for _ in range(3000)])
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(sample_files, "LARGEST_TEXT", 100_000)

    assert "more than 100000 bytes of text" in refused(path).why


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, ".parquet", [{"text": "a"}])
    blocked: Any = None
    monkeypatch.setitem(sys.modules, "pyarrow", blocked)

    with pytest.raises(MissingPackageError, match="pyarrow") as caught:
        read_samples(path, "test")
    assert "pip install pyarrow" in caught.value.fix
