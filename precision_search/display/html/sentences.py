"""The differing sentences of rejected landmarks, to be shown side by side. In: their record. Out: texts in parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from precision_search.errors import counted
from precision_search.judging.landmarks import SHOWN, Landmark, LandmarkSample, Span
from precision_search.judging.trial import Trial
from precision_search.records.landmarks_json import RunLandmarks
from precision_search.records.pareto_table import Row
from precision_search.records.wording import share


@dataclass(frozen=True, slots=True)
class Text:
    """A text around the first token that differs; `note` says what the text itself cannot."""

    before: str
    token: str
    after: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence with what fp32 and what the landmark makes of it; `note` on where they part."""

    line: int
    source: str
    reference: Text
    model: Text
    note: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A rejected landmark: its plan, what was found, and some of the sentences."""

    id: int
    stage: str
    kept: str
    summary: str
    pairs: tuple[Pair, ...]


def shown_landmarks(record: RunLandmarks | None, rows: Mapping[int, Row]) -> tuple[Shown, ...]:
    """The landmarks of a record that are among the judged plans `rows`, by id."""
    if record is None:
        return ()
    return tuple(_shown(landmark, rows[landmark.id]) for landmark in record.landmarks if landmark.id in rows)


def _shown(landmark: Landmark, row: Row) -> Shown:
    return Shown(
        id=landmark.id,
        stage=row.trial.stage,
        kept=row.kept,
        summary=f"{_summary(landmark, row.trial)}. By the screen: {row.reason}.",
        pairs=tuple(_pair(sample) for sample in landmark.samples),
    )


def _summary(landmark: Landmark, trial: Trial) -> str:
    """How many samples differ, by the verdict, and which of them these are."""
    looked = trial.screened or landmark.generated
    differing = looked - round(trial.exact_match * looked)
    verdict = f"{differing} of {looked} calibration samples differ ({share(trial.exact_match)} exact)"
    shown = len(landmark.samples)
    if shown == SHOWN:
        return f"{verdict}; shown are the first {shown} in the order of the file"
    return f"{verdict}; generated freely, {shown or 'none'} of {landmark.generated} do"


def _pair(shown: LandmarkSample) -> Pair:
    sample = shown.sample
    notes = [] if shown.model is None else [f"they part at token {sample.position + 1}"]
    if sample.margin is not None and shown.model is not None:
        notes.append(f"which fp32 chose by a margin of {sample.margin:.2g}")
    if sample.near_tie:
        notes.append("a near-tie of fp32 itself")
    if sample.nonfinite:
        notes.append("non-finite values")
    model = _text(sample.model, shown.model)
    if not sample.model.strip():
        model = Text("", "", "", f"{counted(shown.tokens, 'token')} without text")
    return Pair(sample.line, sample.source, _text(sample.reference, shown.reference), model, ", ".join(notes))


def _text(text: str, span: Span | None) -> Text:
    if span is None:
        return Text(text, "", "")
    start, end = sorted((min(span.start, len(text)), min(span.end, len(text))))
    before, token, after = text[:start], text[start:end], text[end:]
    return Text(before, token, after, "" if token or after else "ends here")
