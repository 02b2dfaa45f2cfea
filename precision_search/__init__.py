"""Finds the fastest mixed-precision version of an encoder-decoder transformer that gives exactly the tokens of fp32.

The functions are in `precision_search.api`: `search`, `pareto`, `report`, `publish`, `verify`, `export_bundle` ...
What they leave is run with `Seq2SeqGenerator`. What is named here is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precision_search import api
    from precision_search.config import Config, load_config
    from precision_search.errors import PrecisionSearchError
    from precision_search.published.seq2seq import Generated, Seq2SeqGenerator, Step

    __version__: str

__all__ = [
    "Config",
    "Generated",
    "PrecisionSearchError",
    "Seq2SeqGenerator",
    "Step",
    "__version__",
    "api",
    "load_config",
]

_HOMES = {
    "Config": "precision_search.config",
    "Generated": "precision_search.published.seq2seq",
    "PrecisionSearchError": "precision_search.errors",
    "Seq2SeqGenerator": "precision_search.published.seq2seq",
    "Step": "precision_search.published.seq2seq",
    "load_config": "precision_search.config",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("precision-search")
    if name == "api":
        return importlib.import_module("precision_search.api")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
