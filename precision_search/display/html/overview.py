"""The words of a report: its headline, the state of the run, the table's cells and the provenance.

In: the record of a run and its table. Out: labels and texts; the template escapes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from precision_search.errors import counted
from precision_search.judging.trial import Trial, TrialLatency
from precision_search.records.pareto_table import ParetoTable, Row
from precision_search.records.run_json import Match, RunInfo, SampleFile
from precision_search.records.wording import UNKNOWN, ceiling_text, judged_text, milliseconds, number, part_of, share

LIMITS = {"max_trials": "search.max_trials", "timeout": "search.timeout"}


@dataclass(frozen=True, slots=True)
class Fact:
    """Something known: what it is, its value, and what to know about it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Headline:
    """What the run found, in a line, a sentence and a few facts."""

    title: str
    reason: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A column of the table: the plan's field that sorts it, its header, its text, and whether that is a number."""

    key: str
    header: str
    text: Callable[[Row], str]
    is_number: bool = True


def headline(info: RunInfo, table: ParetoTable) -> Headline:
    """What stands at the top of the report."""
    choice, trial = table.choice, table.choice.trial
    if trial is None:
        if table.rejected:
            return Headline("No plan is stable", "Not even fp32 gave its own tokens again.", ())
        return Headline("No plan was judged", "The run ended, or was ended, before its first plan.", ())
    latency = trial.latency
    if trial.is_fp32 and not choice.requirements_met and not choice.only_fp32:
        reason = f"{choice.reason[:1].upper()}{choice.reason[1:]}; fp32 is what gets published."
        title = "No plan meets the requirement"
    elif choice.faster and latency is not None:
        title = f"{latency.speedup:.2f} times as fast as fp32, {source_of(latency)}"
        reason = f"Plan {trial.id} is {choice.reason}."
        if not choice.requirements_met:
            title = f"The requirement is not met; {title}"
            reason = f"Plan {trial.id} is chosen: {choice.reason}."
    else:
        title = "No stable plan is faster than fp32"
        published = "" if trial.is_fp32 else f" Chosen is plan {trial.id}, but fp32 is what gets published."
        reason = f"{choice.reason[:1].upper()}{choice.reason[1:]}.{published}"
    fp32 = next((row.trial for row in table.rows if row.trial.is_fp32), None)
    return Headline(title, reason, tuple(_facts(info, trial, fp32)))


def source_of(latency: TrialLatency) -> str:
    """Where a latency is from: `measured`, `estimated for t4`."""
    return latency.source + (f" for {latency.profile}" if latency.profile else "")


def state(info: RunInfo, judged: int) -> tuple[str, ...]:
    """What a reader must know about how far the run got; empty for a run that went to its end."""
    lines = []
    if info.status == "running":
        lines.append(
            f"This run is unfinished: it still goes on, or was killed. So far it judged {counted(judged, 'plan')}."
        )
    elif info.status == "interrupted":
        lines.append(f"This run was interrupted after {counted(judged, 'plan')}; --resume goes on.")
    if limit := LIMITS.get(info.stopped or ""):
        lines.append(f"{limit} ended the search; --resume with a larger one goes on.")
    return tuple(lines)


def columns(title: str, *, mixed: bool) -> tuple[Cell, ...]:
    """The columns of the table.

    Args:
        title: of the latency column, with its source.
        mixed: whether the plans' latencies are of different sources, so that each must say its own.
    """

    def latency(row: Row) -> str:
        found = row.trial.latency
        if found is None:
            return UNKNOWN
        own = f" {source_of(found)}" if mixed else ""
        return f"{milliseconds(found.p50_ms)} [{milliseconds(found.low_ms)}, {milliseconds(found.high_ms)}]{own}"

    return (
        Cell("id", "plan", lambda row: str(row.trial.id)),
        Cell("verdict", "verdict", lambda row: row.trial.verdict, is_number=False),
        Cell("stage", "stage", lambda row: row.trial.stage, is_number=False),
        Cell("kept", "stays in fp32", lambda row: row.kept, is_number=False),
        Cell("latency_ms", title, latency),
        Cell("speedup", "speedup", lambda row: _speedup(row.trial.latency)),
        Cell("flip_risk", "flip risk", lambda row: _flip_risk(row.trial)),
        Cell("exact_match", "exact match", lambda row: _exact(row.trial)),
        Cell("validation_match", "validation", lambda row: share(row.trial.validation_match)),
        Cell("min_margin", "smallest margin", lambda row: number(row.trial.min_margin)),
        Cell("size_bytes", "size, MB", lambda row: _megabytes(row.trial.size_bytes)),
        Cell("casts", "casts", lambda row: number(row.trial.casts)),
        Cell("seconds", "judged in, s", lambda row: f"{row.trial.seconds:.2f}"),
        Cell("reason", "why rejected", lambda row: row.reason or row.trial.message or "", is_number=False),
    )


def _facts(info: RunInfo, trial: Trial, fp32: Trial | None) -> Iterator[Fact]:
    samples, best = info.samples, info.best
    latency, risk = trial.latency, trial.flip_risk
    if latency is not None:
        note = source_of(latency)
        if latency.speedup_low is not None and latency.speedup_high is not None:
            note += f", 95% interval {latency.speedup_low:.2f} to {latency.speedup_high:.2f}"
        yield Fact("Speedup", f"{latency.speedup:.2f}×", note)
        base = None if fp32 is None or fp32.latency is None else fp32.latency.p50_ms
        against = "" if base is None else f"fp32 {milliseconds(base)} ms, "
        yield Fact("Latency", f"{milliseconds(latency.p50_ms)} ms", f"{against}{latency.source}")
    looked = trial.screened or samples.calibration.count
    yield Fact("Calibration", share(trial.exact_match), f"{round(trial.exact_match * looked)} of {looked} exact")
    validated = None
    if samples.validation is not None and trial.validation_match is not None:
        count = samples.validation.count
        validated = Match.of(round(trial.validation_match * count), count)
    yield _kept("Validation", validated, samples.validation)
    yield _kept("Test, unseen", best.test_match if best and best.id == trial.id else None, samples.test)
    if risk is not None:
        interval = f"90% interval {number(risk.low)} to {number(risk.high)}"
        yield Fact("Flip risk", number(risk.value), f"in 1,000 tokens, {interval}")
    else:
        yield Fact("Flip risk", "unknown", "no validation set" if samples.validation is None else "not estimated")
    if trial.size_bytes is not None:
        base_size = "" if fp32 is None or fp32.size_bytes is None else f"fp32 {_megabytes(fp32.size_bytes)} MB"
        yield Fact("Size", f"{_megabytes(trial.size_bytes)} MB", base_size)
    kept = part_of(trial.fp32_decisions, trial.decisions)
    yield Fact("In fp32", kept, "nodes; the decoder graphs share theirs")


def _kept(label: str, match: Match | None, file: SampleFile | None) -> Fact:
    if match is None or file is None:
        return Fact(label, "not run", "")
    kept = f"{round(match.value * file.count)} of {file.count} exact"
    return Fact(label, share(match.value), f"{kept}, 95% interval {share(match.low)} to {share(match.high)}")


def _speedup(latency: TrialLatency | None) -> str:
    return UNKNOWN if latency is None else f"{latency.speedup:.2f}×"


def _flip_risk(trial: Trial) -> str:
    risk = trial.flip_risk
    return UNKNOWN if risk is None else f"{number(risk.value)} [{number(risk.low)}, {number(risk.high)}]"


def _exact(trial: Trial) -> str:
    looked = "" if trial.screened is None else f" of {trial.screened}"
    return f"{share(trial.exact_match)}{looked}"


def _megabytes(size: int | None) -> str:
    return UNKNOWN if size is None else f"{size / 1e6:.1f}"


def sections(info: RunInfo, trials: Sequence[Trial]) -> tuple[tuple[str, tuple[Fact, ...]], ...]:
    """The provenance, in groups with a title each."""
    return (
        ("Run", tuple(_run(info, trials))),
        ("Model", tuple(_model(info))),
        ("Samples", tuple(_samples(info))),
        ("Device", tuple(_device(info))),
        ("Versions", tuple(_versions(info))),
    )


def _run(info: RunInfo, trials: Sequence[Trial]) -> Iterator[Fact]:
    verdicts = [trial.verdict for trial in trials]
    found = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    yield Fact("status", info.status + (f", stopped: {info.stopped}" if info.stopped else ""))
    yield Fact("judged plans", str(len(trials)), found)
    yield Fact("strategy and seed", f"{info.strategy}, {info.seed}")
    yield Fact("started", info.started)
    yield Fact("finished", info.finished or UNKNOWN)
    yield Fact("time", f"{info.seconds:.1f} s")
    if info.screen is not None and info.screen.screens_per_second is not None:
        yield Fact("screens a second", f"{info.screen.screens_per_second:.1f}")
    if info.peak_rss_bytes is not None:
        yield Fact("peak memory", f"{info.peak_rss_bytes / 2**20:.0f} MiB")
    if info.cut is not None:
        off = info.cut.largest_difference
        most = "less than 0.01%" if off < 1e-4 else f"at most {off:.2%}"
        yield Fact(
            "minimum cut", f"off by {most}", f"against the converted graphs of {counted(info.cut.plans, 'plan')}"
        )
    yield Fact("config, SHA-256", info.config_hash)


def _model(info: RunInfo) -> Iterator[Fact]:
    yield Fact("name", info.model.name)
    yield Fact("fp32 graphs, SHA-256", info.model.content_hash)
    if info.parity is None or info.parity.status == "skipped":
        yield Fact("parity with the checkpoint", "not checked", "there is no checkpoint beside the ONNX files")
    else:
        text = {"equal": "the same tokens", "near-ties": "the same tokens but for near-ties"}[info.parity.status]
        yield Fact("parity with the checkpoint", text, f"{counted(info.parity.samples, 'sample')}")
    if info.generation.text is not None:
        yield Fact("generation", info.generation.text)
    yield Fact("index arithmetic", f"{counted(len(info.model.pinned), 'node')}", "never low")


def _samples(info: RunInfo) -> Iterator[Fact]:
    sets = (
        ("calibration", info.samples.calibration),
        ("validation", info.samples.validation),
        ("test", info.samples.test),
    )
    for name, file in sets:
        if file is None:
            yield Fact(name, "none")
            continue
        cut = f", {file.truncated} cut to fit" if file.truncated else ""
        yield Fact(name, f"{file.name}: {counted(file.count, 'sample')}{cut}", file.hash)
    yield Fact("judged at once", str(info.batch_size))
    if info.best is not None:
        yield Fact("best plan judged in", judged_text(info.best.judged))


def _device(info: RunInfo) -> Iterator[Fact]:
    device, workload = info.device, info.workload
    yield Fact("ran on", device.kind + (f", {device.name}" if device.name else ""))
    yield Fact("estimates for", device.profile or "none, latency is measured")
    yield Fact("optimization level", device.optimization_level)
    yield Fact("TF32", "on" if device.use_tf32 else "off")
    yield Fact("GEMM options", device.gemm_options or UNKNOWN)
    lengths = f"{counted(workload.source_length, 'token')} in, {workload.target_length} out"
    yield Fact("workload", f"batch {workload.batch}, {lengths}")
    if info.ceiling is not None:
        yield Fact("ceiling", ceiling_text(info.ceiling, workload))


def _versions(info: RunInfo) -> Iterator[Fact]:
    versions = info.versions
    yield Fact("precision-search", info.tool_version)
    for name in ("python", "onnx", "onnxruntime", "onnx_ir", "torch", "transformers", "numpy"):
        yield Fact(name.replace("_", "-"), getattr(versions, name) or "not used")
