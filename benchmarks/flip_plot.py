"""Predicted flip risk over counted, as a small SVG: text as text, and the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks.flip_coverage import Outcome

COLOURS = ("#1f5fa8", "#c2571a", "#3b7d3b")
GREY = "#777777"


def draw_plot(series: Sequence[tuple[str, Sequence[Outcome]]], floor: float) -> str:
    """Intervals over counts on logarithmic axes, with the diagonal; hollow where the interval misses the count.

    Args:
        series: names with their outcomes, at most as many as there are colours.
        floor: what stands for zero, in flips per 1,000 tokens.
    """
    every = [outcome for _, outcomes in series for outcome in outcomes]
    top = 1.5 * max(max(each.predicted.high, each.counted) for each in every)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "precision-search", "font.size": 10}):
        figure = Figure(figsize=(5.6, 5.4), facecolor="white", layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.plot([floor, top], [floor, top], color=GREY, linewidth=1, linestyle="--", label="predicted = counted")
        for (name, outcomes), colour in zip(series, COLOURS, strict=False):
            for inside in (True, False):
                found = [each for each in outcomes if each.inside is inside]
                if not found:
                    continue
                x = [max(each.counted, floor) for each in found]
                y = [max(each.predicted.value, floor) for each in found]
                lows = [value - max(each.predicted.low, floor) for value, each in zip(y, found, strict=True)]
                highs = [max(each.predicted.high, floor) - value for value, each in zip(y, found, strict=True)]
                axes.errorbar(
                    x,
                    y,
                    yerr=[lows, highs],
                    fmt="o",
                    markersize=4.5,
                    color=colour,
                    elinewidth=1,
                    markerfacecolor=colour if inside else "white",
                    label=name if inside else f"{name}, interval misses",
                )
        axes.set(xscale="log", yscale="log", xlim=(floor, top), ylim=(floor, top), aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.set_xlabel("flips counted in 1,000 unseen tokens")
        axes.set_ylabel("predicted, with 90% interval")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="upper left", frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
