"""Find the fastest fp16/fp32 version of your T5 that generates the same tokens as fp32 on every calibration sentence,
and see how often it differs on new text.

Every command is a function here: `search`, `pareto`, `report`, `publish`, `verify`, `inspect`, `calibrate`, `doctor`,
`dry_run`, `optimize`, and `export_bundle` for the fp32 graphs alone. `Seq2SeqGenerator` runs what they write. Importing
the package loads none of it: a name is loaded when it is first used. `precision_search.api` is the module of the
functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precision_search import api
    from precision_search.api import (
        DeviceProfile,
        DoctorReport,
        InspectReport,
        ParetoTable,
        Reporter,
        RunResult,
        SearchReporter,
        VerifyReport,
        calibrate,
        doctor,
        dry_run,
        export_bundle,
        inspect,
        make_reporter,
        optimize,
        pareto,
        publish,
        report,
        search,
        verify,
    )
    from precision_search.config import Config, load_config
    from precision_search.errors import PrecisionSearchError
    from precision_search.published.seq2seq import Generated, Seq2SeqGenerator, Step

    __version__: str

__all__ = [
    "Config",
    "DeviceProfile",
    "DoctorReport",
    "Generated",
    "InspectReport",
    "ParetoTable",
    "PrecisionSearchError",
    "Reporter",
    "RunResult",
    "SearchReporter",
    "Seq2SeqGenerator",
    "Step",
    "VerifyReport",
    "__version__",
    "api",
    "calibrate",
    "doctor",
    "dry_run",
    "export_bundle",
    "inspect",
    "load_config",
    "make_reporter",
    "optimize",
    "pareto",
    "publish",
    "report",
    "search",
    "verify",
]

_LIGHT_HOMES = {
    "Config": "precision_search.config",
    "Generated": "precision_search.published.seq2seq",
    "PrecisionSearchError": "precision_search.errors",
    "Seq2SeqGenerator": "precision_search.published.seq2seq",
    "Step": "precision_search.published.seq2seq",
    "load_config": "precision_search.config",
}
"""Where names are that need less than `precision_search.api`, the home of all others, imports."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("precision-search")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_LIGHT_HOMES.get(name, "precision_search.api"))
    return home if name == "api" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
