"""What `verify`, `inspect` and `doctor` found, and how a winner does on unseen text, as text and as JSON.

In: their reports. Out: lines on a console, or a JSON object whose keys are the names of the reports' fields.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from precision_search.errors import counted
from precision_search.printable import printable, printable_json
from precision_search.records.codec import to_json
from precision_search.records.wording import SHOWN_HASH, ceiling_line, nothing_faster, share
from precision_search.strategies.pareto import is_faster

if TYPE_CHECKING:
    from rich.console import Console

    from precision_search.device.driver import CudaDevice, CudaDriver
    from precision_search.device.state import DeviceState
    from precision_search.judging.differences import DifferingSample
    from precision_search.judging.inspect import GroupFacts, InspectReport
    from precision_search.machine.doctor import CudaState, DoctorReport
    from precision_search.machine.libraries import CudaLibrary
    from precision_search.published.verify import VerifyReport
    from precision_search.records.pareto_table import ParetoTable
    from precision_search.records.run_json import RunInfo

UNKNOWN = "-"
WORST_NODES = 10


def report_json(report: VerifyReport | InspectReport | DoctorReport) -> str:
    """A report as a JSON object; numbers that are not finite become null, since JSON has none."""
    return printable_json(json.dumps(_finite(to_json(report)), indent=2, ensure_ascii=False)) + "\n"


def show_verify(report: VerifyReport, console: Console) -> None:
    """Prints the share of exact samples, then every differing one."""
    for sample in report.differences:
        _print(console, _sample_lines(sample))
    interval = f"95% interval {share(report.low)} to {share(report.high)}"
    lines = [
        f"exact match  {report.exact} of {report.samples}, {share(report.exact_match)} ({interval}), {report.source}",
        f"non-finite   {report.nonfinite} of {report.samples}",
        f"sentences    SHA-256 {report.data_hash[:SHOWN_HASH]}",
    ]
    if report.differences:
        undecided = f"{report.near_ties} of the {len(report.differences)} differences: fp32 itself is undecided there"
        lines.append(f"near-ties    {undecided}")
    _print(console, lines)


def show_inspect(report: InspectReport, console: Console) -> None:
    """Prints the ceiling, graphs, op types and roles with what is searchable, and the largest values if measured."""
    config = report.config
    sizes = f"{config.num_layers}+{config.num_decoder_layers} layers, d_model {config.d_model}, d_ff {config.d_ff}"
    vocabulary = f"vocabulary {config.vocab_size}"
    _print(console, [f"{report.name}: {config.model_type}, {sizes}, {config.num_heads} heads, {vocabulary}"])
    if report.ceiling is not None and report.workload is not None:
        _print(console, [ceiling_line(report.ceiling, report.workload)])
    _table(
        console,
        "graphs",
        ("graph", "nodes", "compute", "movement", "other", "weights MB (fp32)"),
        [(g.name, *map(str, (g.nodes, g.compute, g.movement, g.other)), _mb(g.weight_bytes)) for g in report.graphs],
    )
    counts = ("decisions", "searchable", "beyond range", "largest")
    op_types = [(group.family, group.name, *_counts(group), group.why or "") for group in report.op_types]
    _table(console, f"op types, for {report.dtype}", ("family", "op type", *counts, "why not"), op_types)
    roles = [(*_counts(group), group.name) for group in report.roles]
    _table(console, "roles (a star stands for the layer)", (*counts, "role"), roles)
    if report.samples is not None:
        _show_worst(report, console)


def show_state(info: RunInfo, console: Console) -> None:
    """Prints how far the run got, if not to its end, and how well the minimum cut knew its plans."""
    if info.status != "complete":
        so_far = f"{'this is' if info.counts.judged == 1 else 'these are'} the {counted(info.counts.judged, 'plan')}"
        _print(console, [f"the run is not complete: {so_far} judged so far"])
    if limit := {"max_trials": "search.max_trials", "timeout": "search.timeout"}.get(info.stopped or ""):
        _print(console, [f"{limit} ended the search: --resume with a larger one (--set {limit}=...) goes on"])
    if info.cut is not None:
        plans = counted(info.cut.plans, "plan")
        largest = info.cut.largest_difference
        most = "less than 0.01%" if largest < 1e-4 else f"at most {largest:.2%}"
        _print(console, [f"minimum cut: its cost of {plans} and that of the converted graphs differ by {most}"])


def show_best(info: RunInfo, console: Console) -> None:
    """Prints what the chosen plan of a run keeps of sentences that the search did not see, as far as it was tried."""
    if info.best is None:
        return
    for name, match, file in (
        ("validation", info.best.validation_match, info.samples.validation),
        ("test", info.best.test_match, info.samples.test),
    ):
        if match is not None and file is not None:
            kept = f"{round(match.value * file.count)} of {file.count} {name} samples exact, {share(match.value)}"
            interval = f"95% interval {share(match.low)} to {share(match.high)}"
            _print(console, [f"plan {info.best.id}: {kept} ({interval})"])


def show_ceiling(info: RunInfo, table: ParetoTable, console: Console) -> None:
    """Prints what could have been gained at most, where nothing was."""
    if info.ceiling is not None and info.best is not None and not info.best.faster:
        # Where plans are faster and keep too little, the choice has said so.
        line = ceiling_line if any(is_faster(row.trial) for row in table.rows) else nothing_faster
        _print(console, [line(info.ceiling, info.workload)])


def show_doctor(report: DoctorReport, console: Console) -> None:
    """Prints what is there, part by part, then what to do."""
    memory = "unknown" if report.memory_bytes is None else _gib(report.memory_bytes)
    packages = [f"{package.name} {package.version or 'MISSING'}" for package in report.packages]
    build = "" if report.cuda_build is None else f" (built for CUDA {report.cuda_build})"
    lines = [
        f"python    {report.python}, {report.platform}",
        f"cores     {report.cores}, memory {memory}",
        f"packages  {', '.join(packages)}",
        f"providers {', '.join(report.providers) or 'none'}{build}",
        *(f"library   {_library(library)}" for library in report.libraries),
        f"driver    {_driver(report.driver)}",
        *_devices(report),
        *(f"set       {variable.name}={variable.value}" for variable in report.variables),
        f"cuda      {_cuda(report.cuda)}",
        f"latency   {_latency(report)}",
    ]
    lines += [f"to do     {fix}" for fix in report.fixes]
    _print(console, lines, indent=10)


def _library(library: CudaLibrary) -> str:
    if library.path is None:
        return f"{library.name} MISSING ({library.package})"
    return f"{library.name} {f'{library.package} {library.version}' if library.version else library.path}"


def _driver(driver: CudaDriver | None) -> str:
    if driver is None:
        return "none"
    problem = "" if driver.problem is None else f": {driver.problem}"
    return f"{driver.version or 'of unknown version'}, runs CUDA up to {driver.cuda or 'unknown'}{problem}"


def _devices(report: DoctorReport) -> Iterator[str]:
    devices = () if report.driver is None else report.driver.devices
    for device, state in itertools.zip_longest(devices, report.states[: len(devices)]):
        yield f"device {device.number}  {_device(device)}"
        if state is not None and (condition := _condition(state)):
            yield f"          {condition}"


def _condition(state: DeviceState) -> str:
    """What is known of a device's condition."""
    clock = "" if state.sm_clock_mhz is None else f"{state.sm_clock_mhz:.0f} MHz"
    if clock and state.max_sm_clock_mhz is not None:
        clock += f" of {state.max_sm_clock_mhz:.0f}"
    temperature = "" if state.temperature_c is None else f"{state.temperature_c:.0f} C"
    power = "" if state.power_w is None else f"{state.power_w:.0f} W"
    slowed = f"slowed by {', '.join(state.slowed_by)}" if state.slowed_by else ""
    return ", ".join(part for part in (clock, temperature, power, slowed) if part)


def _device(device: CudaDevice) -> str:
    free = "" if device.free_bytes is None else f"{_gib(device.free_bytes)} free of "
    units = "float16 and bfloat16" if device.bfloat16 else "no bfloat16"
    return f"{device.name}, compute capability {device.compute_capability} ({units}), {free}{_gib(device.memory_bytes)}"


def _cuda(cuda: CudaState) -> str:
    device = f"{cuda.device}: " if cuda.device else ""
    return device + ("works" if cuda.works else f"does not start: {cuda.why or cuda.problem}")


def _latency(report: DoctorReport) -> str:
    if report.latency == "measured":
        fitting = f" (the estimates that order proposals fit with latency.profile {report.profile})"
        return "measured" + (fitting if report.profile else "")
    here = f"; {report.profile} is this device's" if report.profile else ""
    return f"estimated (profiles: {', '.join(report.profiles)}{here})"


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"


def _sample_lines(sample: DifferingSample) -> list[str]:
    margin = "unknown" if sample.margin is None else f"{sample.margin:.2g}"
    notes = [f"reference margin {margin}"]
    notes += ["a near-tie of fp32"] if sample.near_tie else []
    notes += ["non-finite values"] if sample.nonfinite else []
    return [
        f"line {sample.line} differs from token {sample.position + 1} on ({', '.join(notes)})",
        f"  source     {sample.source}",
        f"  reference  {sample.reference}",
        f"  model      {sample.model}",
        "",
    ]


def _show_worst(report: InspectReport, console: Console) -> None:
    limit = report.largest_number / report.range_safety
    worst = [
        (
            _number(node.range.largest_input),
            _number(node.range.largest_output),
            _number(node.range.largest_inside) if node.range.largest_inside else UNKNOWN,
            f"{node.range.underflow:.1%}",
            "yes" if node.beyond_range else "no",
            node.key,
        )
        for node in report.worst(WORST_NODES)
        if node.range is not None
    ]
    title = f"largest values on {counted(report.samples or 0, 'sample')}; "
    title += f"{report.dtype} holds {_number(report.largest_number)}, "
    title += f"beyond range means above {_number(limit)}"
    _table(console, title, ("input", "output", "inside", "underflow", "beyond range", "node"), worst)


def _counts(group: GroupFacts) -> tuple[str, ...]:
    return (
        str(group.nodes),
        str(group.searchable),
        UNKNOWN if group.beyond_range is None else str(group.beyond_range),
        UNKNOWN if group.largest is None else _number(group.largest),
    )


def _table(console: Console, title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints aligned columns, numbers to the right, columns that hold nothing left out.

    No cell is cut or broken, so that node keys can be copied. Where a terminal is too narrow, headers take a line a
    word, and if that is not enough, the longest column, which is the last, goes below the others.
    """
    lines = [list(map(printable, row)) for row in rows]
    used = [index for index in range(len(header)) if any(line[index] not in ("", UNKNOWN) for line in lines)]
    cells = [[line[index] for line in lines] for index in used]
    headers = [[header[index]] for index in used]
    if _table_width(headers, cells) > console.width:
        headers = [header[index].split(" ") for index in used]
    below = _table_width(headers, cells) > console.width and not _is_number(cells[-1])
    height = max(map(len, headers))
    columns = [
        _aligned([*[""] * (height - len(words)), *words], column) for words, column in zip(headers, cells, strict=True)
    ]
    console.print()
    _print(console, [title], style="bold")
    for number, line in enumerate(zip(*columns, strict=True)):
        *others, last = line
        texts = ["  ".join(others), f"    {last.strip()}"] if below else ["  ".join(line)]
        for text in texts:
            if text.strip():
                style = "bold" if number < height else None
                console.print(text.rstrip(), style=style, markup=False, highlight=False, soft_wrap=True)


def _table_width(headers: Sequence[Sequence[str]], cells: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, (*words, *column))) + 2 for words, column in zip(headers, cells, strict=True)) - 2


def _is_number(cells: Sequence[str]) -> bool:
    return all(cell[:1].isdigit() or cell in (UNKNOWN, "inf") for cell in cells)


def _aligned(header: Sequence[str], cells: Sequence[str]) -> list[str]:
    width = max(map(len, (*header, *cells)))
    return [text.rjust(width) if _is_number(cells) else text.ljust(width) for text in (*header, *cells)]


def _print(console: Console, lines: Iterable[str], style: str = "", indent: int | None = None) -> None:
    """Prints lines, which a terminal that is too narrow breaks between words.

    What is broken goes on below what follows the label: so many characters on, or up to a gap near the line's start.
    """
    from rich.text import Text

    for line in map(printable, lines):
        found = re.match(r"\s*(\S+( \S+)? {2,})?", line)
        label = line[: indent if indent is not None else found.end() if found else 0]
        rest = Text(line[len(label) :], style=style)
        wrapped = rest.wrap(console, max(1, console.width - len(label))) if console.is_terminal else [rest]
        for number, text in enumerate(wrapped):
            text.rstrip()
            start = label if number == 0 else " " * len(label)
            console.print(Text(start, style=style) + text, soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 or value >= 1e6 else f"{value:.0f}"


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f}"


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
