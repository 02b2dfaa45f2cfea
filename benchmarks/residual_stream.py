"""How large values get in the demo's layers, as the SVG of the docs.

python -m benchmarks.residual_stream [--model DIRECTORY] [--data FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from precision_search import inspect
from precision_search.judging.inspect import NodeFacts
from precision_search.precision.low import low_max

COLOURS = {
    "residual stream": "#1f5fa8",
    "wo (feed-forward out)": "#c2571a",
    "sum of squares in the norm": "#3b7d3b",
}
MARKERS = {"residual stream": "o", "wo (feed-forward out)": "s", "sum of squares in the norm": "^"}
LIMIT = low_max("float16")


def series_of(node: NodeFacts) -> tuple[str, float] | None:
    """Which line of the figure a node is a point of, and its largest value there; None if of none."""
    if node.range is None:
        return None
    if re.fullmatch(r"\w+\.block\.\*\.layer\.\d/Add", node.role):
        return "residual stream", node.range.largest_output
    if node.role.endswith(".wo/MatMul"):
        return "wo (feed-forward out)", node.range.largest_output
    if node.role.endswith(".layer_norm/ReduceMean"):
        return "sum of squares in the norm", node.range.largest_inside
    return None


def draw_plot(nodes: Sequence[NodeFacts]) -> str:
    """The figure: a panel a stack, sublayers from left to right, values on a logarithmic axis."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "precision-search", "font.size": 10}):
        figure = Figure(figsize=(8.0, 3.8), facecolor="white", layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, family in zip(panels, ("encoder", "decoder"), strict=True):
            _draw_stack(axes, family, [node for node in nodes if node.family == family])
        panels[0].set_ylabel("largest magnitude on 100 sentences")
        panels[0].legend(loc="center right", frameon=False, fontsize=9)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _draw_stack(axes: Axes, family: str, nodes: Sequence[NodeFacts]) -> None:
    for name, colour in COLOURS.items():
        points = [(_place(node.key), found[1]) for node in nodes if (found := series_of(node)) and found[0] == name]
        line = "none" if name.startswith("wo") else "-"
        axes.plot(*zip(*sorted(points), strict=True), MARKERS[name], linestyle=line, color=colour, label=name)
    axes.axhline(LIMIT, color="#aa2222", linestyle="--", linewidth=1.2)
    if family == "decoder":
        place = ("axes fraction", "data")
        axes.annotate(f"fp16 ends at {LIMIT:.0f}", (0.02, LIMIT * 1.25), xycoords=place, color="#aa2222")
    axes.set(yscale="log", title=family, xlabel="layer")
    last = max(int(number) for node in nodes for number in re.findall(r"block\.(\d+)", node.key))
    axes.set_xticks(range(last + 1), [str(number) for number in range(last + 1)])
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _place(key: str) -> float:
    """Where a node stands: its layer, and its sublayer as a part of that."""
    layer, sublayer = re.findall(r"\.(?:block|layer)\.(\d+)", key)
    return int(layer) + int(sublayer) / 3


def main() -> None:
    """Draws what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.residual_stream", description=__doc__)
    parser.add_argument("--model", default="artifacts/models/t5-debian-en-de")
    parser.add_argument("--data", default="configs/demo/calibration.txt")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/residual-stream.svg"))
    arguments = parser.parse_args()
    report = inspect(arguments.model, data=arguments.data)
    arguments.plot.write_text(draw_plot(report.nodes))


if __name__ == "__main__":
    main()
