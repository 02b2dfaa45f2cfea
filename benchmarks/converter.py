"""Our converter beside the two that people use: time, casts added, and whether ONNX Runtime loads the result.

    python -m benchmarks.converter [--config configs/demo.toml] [--rounds 5]

All are told the same nodes by name. Theirs get protobuf graphs, copied for them outside the time, with their default op
block list and fp32 inputs and outputs; ours starts without rounded weights each time and ends with its postconditions
checked.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import onnx
import onnx_ir as ir

from benchmarks.plans import FP32, named_plans
from benchmarks.printing import Telling, add_common_arguments, give, machine, markdown_table, run_main, say
from precision_search.config import load_config
from precision_search.model.bundle import Bundle, open_bundle
from precision_search.model.graph import GraphName
from precision_search.precision.convert import convert
from precision_search.precision.plan import Plan
from precision_search.strategies.space import make_space

NAME = "converter"
OURS = "precision-search"

Protos = Mapping[GraphName, onnx.ModelProto]
Convert = Callable[[Protos, Mapping[GraphName, Sequence[str]]], Protos]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one plan with one converter.

    Attributes:
        plan: its name.
        converter: its name.
        times_ms: for the three graphs together; empty where the converter failed.
        casts: Cast nodes added over the three graphs.
        loaded: how many of the three graphs ONNX Runtime loads.
        problem: what the converter says, or ONNX Runtime of the first graph that it does not load; None if nothing.
    """

    plan: str
    converter: str
    times_ms: tuple[float, ...]
    casts: int
    loaded: int
    problem: str | None


def by_onnxconverter_common(graphs: Protos, kept: Mapping[GraphName, Sequence[str]]) -> Protos:
    """onnxconverter-common, as its documentation says to use it."""
    from onnxconverter_common import float16

    return {
        name: float16.convert_float_to_float16(graph, keep_io_types=True, node_block_list=kept[name])
        for name, graph in graphs.items()
    }


def by_onnxruntime_transformers(graphs: Protos, kept: Mapping[GraphName, Sequence[str]]) -> Protos:
    """The converter that comes with ONNX Runtime."""
    from onnxruntime.transformers import float16

    return {
        name: float16.convert_float_to_float16(graph, keep_io_types=True, node_block_list=kept[name])
        for name, graph in graphs.items()
    }


THEIRS: tuple[tuple[str, Convert], ...] = (
    ("onnxconverter-common", by_onnxconverter_common),
    ("onnxruntime.transformers", by_onnxruntime_transformers),
)


def run_ours(bundle: Bundle, plan_name: str, plan: Plan, rounds: int) -> Outcome:
    """Times our converter on one plan and loads its last result."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        converted = convert(bundle.graphs, plan)
        times.append((time.perf_counter() - start) * 1e3)
    loaded, problem = _load({name: ir.to_proto(model) for name, model in converted.models.items()})
    return Outcome(plan_name, OURS, tuple(times), converted.casts, loaded, problem)


def run_theirs(bundle: Bundle, plan_name: str, plan: Plan, rounds: int, converter: tuple[str, Convert]) -> Outcome:
    """Times one of the other converters on one plan and loads its last result."""
    name, run = converter
    originals = {graph: ir.to_proto(model) for graph, model in bundle.models.items()}
    kept = {
        graph: [node.key for node in bundle.graphs[graph].compute if node.key in plan.fp32] for graph in bundle.graphs
    }
    times: list[float] = []
    found: Protos = {}
    for _ in range(rounds):
        copies = {graph: _copy(proto) for graph, proto in originals.items()}
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = run(copies, kept)
        except Exception as error:  # whatever they raise is the result
            return Outcome(plan_name, name, (), 0, 0, f"the conversion fails: {_first_line(error)}")
        times.append((time.perf_counter() - start) * 1e3)
    return Outcome(plan_name, name, tuple(times), _casts(found) - _casts(originals), *_load(found))


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied


def _casts(graphs: Protos) -> int:
    return sum(node.op_type == "Cast" for graph in graphs.values() for node in graph.graph.node)


def _load(graphs: Protos) -> tuple[int, str | None]:
    """How many of the graphs ONNX Runtime loads, and what it says of the first that it does not."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    problems = []
    for name, graph in graphs.items():
        try:
            onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # one class for each status code
            problems.append(f"{name}: {_first_line(error)}")
    return len(graphs) - len(problems), next(iter(problems), None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].replace("|", "\\|")


def report(where: str, outcomes: Sequence[Outcome]) -> str:
    """The result as Markdown: a table, and what was said of the graphs that do not load."""
    numbers: dict[str, int] = {}
    for problem, _ in Counter(each.problem for each in outcomes if each.problem).most_common():
        numbers[problem] = len(numbers) + 1
    rows = []
    for each in outcomes:
        milliseconds = f"{median(each.times_ms):.0f}" if each.times_ms else "-"
        loads = f"{each.loaded} of 3" + ("" if each.problem is None else f" ({numbers[each.problem]})")
        rows.append((each.plan, each.converter, milliseconds, str(each.casts) if each.times_ms else "-", loads))
    header = ("plan", "converter", "three graphs, ms", "casts added", "ONNX Runtime loads")
    lines = [where, "", markdown_table(header, rows)]
    lines += ["", *(f"{number}. `{problem}`" for problem, number in numbers.items())] if numbers else []
    return "\n".join(lines)


def main() -> None:
    """Entry of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5, help="conversions a plan; default: %(default)s")
    arguments = parser.parse_args()
    where, config = machine(), load_config(arguments.config, arguments.overrides)
    bundle = open_bundle(config.model.path, Path(config.model.cache), reporter=Telling())
    space = make_space(bundle.graphs, "float16", {}, range_safety=config.search.range_safety).space
    outcomes = []
    for name, plan in named_plans(space).items():
        if name == FP32:
            continue
        say(f"converting {name}")
        outcomes.append(run_ours(bundle, name, plan, arguments.rounds))
        outcomes.extend(run_theirs(bundle, name, plan, arguments.rounds, converter) for converter in THEIRS)
    give(NAME, report(where, outcomes), arguments.into)


if __name__ == "__main__":
    run_main(main)
