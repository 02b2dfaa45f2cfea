"""The page as HTML: the template filled, scripts and styles inlined, and the browser told to refuse everything else.

In: the records of a run. Out: one HTML text. All that comes from models and data is escaped: in the markup by the
template engine, in the scripts' data by `json_for_script`; and the scripts put it on the page as text only. What
turns the order of writing, or what a terminal would obey, is spelled out in both.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING

from precision_search.display.html import overview as facts
from precision_search.display.html.content import make_page
from precision_search.display.html.sentences import shown_landmarks
from precision_search.errors import MissingPackageError
from precision_search.judging.trial import Verdict
from precision_search.printable import printable
from precision_search.records.codec import to_json
from precision_search.records.landmarks_json import RunLandmarks
from precision_search.records.nodes_json import RunNodes
from precision_search.records.pareto_table import ParetoTable
from precision_search.records.run_json import RunInfo

if TYPE_CHECKING:
    from jinja2 import Template

SCRIPTS = ("common.js", "table.js", "details.js", "blocks.js", "pareto.js", "ranges.js", "progress.js", "main.js")
"""In the order they run; each uses those before it."""
STYLES = ("report.css", "parts.css")

VERDICTS: tuple[Verdict, ...] = ("stable", "mismatch", "nonfinite", "error")
"""In the order of the buttons that filter them."""


def render(info: RunInfo, table: ParetoTable, nodes: RunNodes | None, landmarks: RunLandmarks | None) -> str:
    """The report as HTML.

    Args:
        info: the record of the run.
        table: every judged plan.
        nodes: what is known of the nodes.
        landmarks: what rejected landmarks make of sentences.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    rows = (*table.rows, *table.rejected)
    judged = sorted(rows, key=lambda row: row.trial.id)
    trials = [row.trial for row in judged]
    page = make_page(info, judged, nodes)
    mixed = len({trial.latency.source for trial in trials if trial.latency is not None}) > 1
    verdicts = [trial.verdict for trial in trials]
    scripts = (plotly_js(), "\n".join(asset(name) for name in SCRIPTS))
    return _template().render(
        policy=policy(scripts),
        style="\n".join(asset(name) for name in STYLES),
        scripts=scripts,
        data=json_for_script(_printable(to_json(page))),
        info=info,
        page=page,
        headline=facts.headline(info, table),
        state=facts.state(info, len(trials)),
        columns=facts.columns(page.latency_title, mixed=mixed),
        rows=rows,
        verdicts={verdict: verdicts.count(verdict) for verdict in VERDICTS if verdict in verdicts},
        landmarks=shown_landmarks(landmarks, {row.trial.id: row for row in rows}),
        tried=landmarks is not None,
        sections=facts.sections(info, trials),
    )


def json_for_script(value: object) -> str:
    """JSON that can stand in a `<script>`: all ASCII, and no character in it that HTML knows."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _printable(value: object) -> object:
    """The value with every text in it `printable`; keys of objects are names of ours."""
    match value:
        case str():
            return _text(value)
        case dict():
            return {name: _printable(each) for name, each in value.items()}
        case list() | tuple():
            return [_printable(each) for each in value]
        case _:
            return value


def _shown(value: object) -> object:
    """What the template puts in: texts from anywhere `printable`, ours (styles, scripts) as they are."""
    return _text(value) if type(value) is str else value


def _text(text: str) -> str:
    """The text `printable`; half a surrogate pair, which no encoding can write, becomes a question mark."""
    return printable(text.encode("utf-8", "replace").decode("utf-8"))


def policy(scripts: tuple[str, ...]) -> str:
    """The content security policy: these scripts and no other, no network. Plotly styles its elements one by one."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def asset(name: str) -> str:
    """A file of the page, with the line ends that a browser hashes."""
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def plotly_js() -> str:
    """Plotly's script, as its Python package ships it."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingPackageError(
            "the report needs plotly", why=str(error), fix="pip install plotly, then: precision-search report RUN"
        ) from error
    return str(get_plotlyjs())


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(asset("report.html"))
