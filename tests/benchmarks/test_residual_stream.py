"""The figure of the residual stream shows the nodes that it names, and is the same for the same numbers."""

from __future__ import annotations

from benchmarks.residual_stream import draw_plot, series_of
from precision_search.judging.inspect import NodeFacts
from precision_search.judging.ranges import NodeRange
from precision_search.model.graph import Family, role_of


def node(key: str, family: Family, output: float, inside: float = 0.0) -> NodeFacts:
    op_type = key.rpartition("/")[2]
    return NodeFacts(
        key=key,
        family=family,
        op_type=op_type,
        role=role_of(key),
        pinned=None,
        beyond_range=False,
        range=NodeRange(key, op_type, 1.0, output, inside, 0.0),
    )


def stack(family: Family, feed_forward: int) -> list[NodeFacts]:
    block = f"{family}.block.0.layer"
    return [
        node(f"{block}.0/Add", family, 10.0),
        node(f"{block}.{feed_forward}.DenseReluDense.wo/MatMul", family, 7e4),
        node(f"{block}.0.layer_norm/ReduceMean", family, 3.0, inside=1e9),
    ]


def test_nodes_belong_to_the_lines_of_their_roles() -> None:
    stream, wo, norm = stack("encoder", 1)
    assert series_of(stream) == ("residual stream", 10.0)
    assert series_of(wo) == ("wo (feed-forward out)", 7e4)
    assert series_of(norm) == ("sum of squares in the norm", 1e9)
    for key in ("encoder.block.0.layer.0.layer_norm/Add", "encoder.final_layer_norm/ReduceMean", "lm_head/MatMul"):
        assert series_of(node(key, "encoder", 1.0)) is None


def test_the_figure_names_the_limit_and_does_not_change_by_itself() -> None:
    nodes = [*stack("encoder", 1), *stack("decoder", 2)]
    assert draw_plot(nodes) == draw_plot(nodes)
    assert "fp16 ends at 65504" in draw_plot(nodes)
