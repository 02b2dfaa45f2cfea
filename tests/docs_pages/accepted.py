"""The page about models and files that are accepted or refused: one table for each table in the code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from precision_search.model.families import FAMILIES
from precision_search.model.file_layouts import FILE_LAYOUTS, REFUSED_LAYOUTS, FileLayout
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.onnx_files import NEWEST_OPSET, OLDEST_OPSET
from precision_search.model.op_kinds import REFUSED_KINDS
from precision_search.model.sample_files import COLUMNS, FORMS, NO_TEXT

HEAD = """# Models and files we accept

Made from the tables in the code that decide it. What is neither here nor refused by name has not been tried.
"""

SOURCES = (
    (
        "a checkpoint directory",
        "`config.json`, safetensors in one or more files, tokenizer files",
        "tests/model/test_bundle.py",
    ),
    (
        "a directory with ONNX graphs",
        "`config.json`, graphs in a layout below, tokenizer files",
        "tests/model/test_bundle.py",
    ),
    (
        "a directory of the Hub's cache",
        "files that are links into `../../blobs`, external data among them",
        "tests/model/test_external_data.py",
    ),
    (
        "a hub id",
        "fetched: safetensors; of a repository without them the fp32 graphs of one layout and their data",
        "tests/model/test_hub.py",
    ),
)
"""Where a model may come from: what, what it holds, what tests it."""

CHECKPOINTS = (
    ("weights in fp32, fp16, bf16 or fp64", "exported as the fp32 numbers they are", "tests/model/test_bundle.py"),
    (
        "tied embeddings that are stored once or twice",
        "as transformers ties them",
        "tests/model/test_bundle.py",
    ),
    (
        "added tokens in `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`",
        "with the ids that transformers gives them",
        "tests/model/test_added_tokens.py",
    ),
    (
        "a tokenizer in `spiece.model` alone, or none at all for ByT5",
        "read by transformers",
        "tests/model/test_tokenizer.py",
    ),
)
"""What checkpoints may be like: what, what is made of it, what tests it."""

REFUSED_CHECKPOINTS = (
    ("an adapter (LoRA or the like), beside weights or alone", "tests/model/test_stored_weights.py"),
    ("a `quantization_config`, or weights that are no floats", "tests/model/test_stored_weights.py"),
    ("weights that are missing, have no place or another shape", "tests/model/test_bundle.py"),
    ("weights that are pickled (`.bin`)", "tests/model/test_bundle.py"),
    ("token ids that are not AutoTokenizer's", "tests/model/test_id_oracle.py"),
    ("sizes in `config.json` that are not those of the graphs", "tests/model/test_agreement.py"),
)
"""What is refused of them by name, and what tests it."""

GRAPHS = (
    (
        f"ONNX opset {OLDEST_OPSET} to {NEWEST_OPSET}",
        "others are refused by number",
        "tests/model/test_file_layouts.py",
    ),
    (
        "weights inside the file or beside it",
        "external data in the folder of the ONNX file, or beside the file that it is a link to; a path that leaves "
        "it is refused",
        "tests/model/test_external_data.py",
    ),
    ("ids and masks in int64 or int32", "int32 behind a Cast", "tests/model/test_file_layouts.py"),
    ("weights listed as inputs, too", "these inputs are dropped", "tests/model/test_file_layouts.py"),
    (
        "nodes without names, or with names that mean nothing",
        "decoder nodes are paired by structure and weights",
        "tests/model/test_pairing.py",
    ),
    ("functions and Constant nodes", "inlined; at most 200,000 nodes", "tests/model/test_onnx_files.py"),
)
"""What graphs may be like: what, what is made of it, what tests it."""


def accepted_page() -> str:
    """The page as Markdown."""
    families = ((family.title, f"`{family.model_type}`", "`tests/model/families`") for family in FAMILIES.values())
    kinds = (
        (f"{kind.title}: {_operators(kind.op_types)}{_domains(kind.domains)}", kind.why, kind.fix)
        for kind in REFUSED_KINDS
    )
    layouts = ((each.title, _files(each), f"inputs and outputs told {each.tensors}") for each in FILE_LAYOUTS)
    refused = ((each.title, _listed(each.patterns), each.why, each.fix) for each in REFUSED_LAYOUTS)
    sections = (
        ("Families", ("family", "`model_type`", "tested by"), families),
        ("Where a model comes from", ("source", "what it holds", "tested by"), _tested(SOURCES)),
        ("Checkpoints", ("may have", "", "tested by"), _tested(CHECKPOINTS)),
        ("Layouts of ONNX files", ("written by", ", ".join(GRAPH_NAMES), "names"), layouts),
        ("Graphs", ("may have", "", "tested by"), _tested(GRAPHS)),
        ("Files of sentences", ("suffix", "what is read", "tested by"), _tested(_forms())),
        ("Refused checkpoints", ("what", "tested by"), ((what, f"`{test}`") for what, test in REFUSED_CHECKPOINTS)),
        ("Refused layouts", ("what", "told by", "why", "what to do"), refused),
        ("Refused graphs", ("what", "why", "what to do"), kinds),
    )
    return "\n".join([HEAD, *(f"## {title}\n\n{_table(head, rows)}" for title, head, rows in sections)])


def _tested(rows: Iterable[tuple[str, str, str]]) -> Iterable[tuple[str, str, str]]:
    return ((what, how, f"`{test}`") for what, how, test in rows)


def _forms() -> Iterable[tuple[str, str, str]]:
    test = "tests/model/test_sample_files.py"
    column = f"the column that is named, or the only one of {_listed(COLUMNS)}"
    yield _listed(FORMS), column, test
    yield "any other", "one sentence a line", "tests/model/test_samples.py"
    yield _listed(NO_TEXT), "refused: their lines are no sentences", "tests/cli/test_bounds.py"


def _files(layout: FileLayout) -> str:
    return _listed(dict.fromkeys(layout.files.values()))


def _operators(op_types: Sequence[str]) -> str:
    return "every operator" if op_types == ("*",) else _listed(op_types)


def _domains(domains: Sequence[str]) -> str:
    return f" of {_listed(domains)}" if domains else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
