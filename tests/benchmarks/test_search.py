"""The pure parts of the search benchmark: scaling, bisection, enumeration, and what the targets are held against."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from benchmarks.bisection import bisect
from benchmarks.enumeration import MOST_CHOICES, Verdict, find_optimum, latency_table
from benchmarks.rows import Point, Row, add_record, read_records, targets
from benchmarks.scaled import scale_stream, scaled_checkpoint
from benchmarks.search import Work, likeness, report, strategy_config
from precision_search.config import Config, Requirement, load_config
from precision_search.cost.estimate import Workload
from precision_search.device.profile import load_profile
from precision_search.errors import ConfigError, InputError
from precision_search.judging.latency import EstimatedLatency
from precision_search.judging.sensitivity import RoleProbe
from precision_search.judging.trial import FlipRisk
from precision_search.model.bundle import Bundle
from precision_search.model.graph import compute_keys_by_op_type
from precision_search.precision.dtypes import assign
from precision_search.precision.plan import FAMILIES, Plan, all_compute_keys, pinned_keys
from precision_search.records.trials import read_trials
from precision_search.runtime.reference import Reference
from precision_search.strategies.pareto import choose_winner
from tests.checkpoints import saved_checkpoints
from tests.conftest import DEMO_DATA, ROOT
from tests.warm import torch_command


def weights(**more: float) -> dict[str, np.ndarray]:
    names = {
        "shared.weight": 3.0,
        "encoder.block.0.layer.0.SelfAttention.o.weight": 1.5,
        "encoder.block.0.layer.0.SelfAttention.q.weight": 1.25,
        "decoder.block.0.layer.1.EncDecAttention.o.weight": -0.7,
        "decoder.block.0.layer.2.DenseReluDense.wi.weight": 0.3,
        "decoder.block.0.layer.2.DenseReluDense.wo.weight": 0.1,
        "encoder.final_layer_norm.weight": 1.1,
        "decoder.final_layer_norm.weight": 0.9,
    }
    return {name: np.full(2, value, np.float32) for name, value in (names | more).items()}


class TestScaling:
    def test_only_what_feeds_the_stream_changes_and_the_last_norm_makes_up_for_the_logits(self) -> None:
        scaled = scale_stream(weights(), -3)
        factors = {name: float(scaled[name][0] / values[0]) for name, values in weights().items()}
        assert {name: factor for name, factor in factors.items() if factor != 1.0} == {
            "shared.weight": 0.125,
            "encoder.block.0.layer.0.SelfAttention.o.weight": 0.125,
            "decoder.block.0.layer.1.EncDecAttention.o.weight": 0.125,
            "decoder.block.0.layer.2.DenseReluDense.wo.weight": 0.125,
            "decoder.final_layer_norm.weight": 8.0,
        }

    def test_an_output_projection_of_its_own_needs_no_making_up(self) -> None:
        scaled = scale_stream(weights(**{"lm_head.weight": 0.2}), 4)
        assert scaled["decoder.final_layer_norm.weight"][0] == np.float32(0.9)
        assert scaled["lm_head.weight"][0] == np.float32(0.2)

    @pytest.mark.parametrize(("value", "power"), [(1e-44, -1), (3e38, 1)])
    def test_a_product_beyond_fp32_is_refused(self, value: float, power: int) -> None:
        with pytest.raises(InputError, match="leaves the range"):
            scale_stream(weights(**{"encoder.block.0.layer.1.DenseReluDense.wo.weight": value}), power)

    def test_what_is_no_t5_is_refused(self) -> None:
        with pytest.raises(InputError, match="not a T5"):
            scale_stream({"model.embed.weight": np.ones(2, np.float32)}, 1)

    def test_a_checkpoint_is_written_once_with_its_other_files(self, tmp_path: Path) -> None:
        source = tmp_path / "model"
        source.mkdir()
        save_file(weights(), source / "model.safetensors")
        (source / "config.json").write_text("{}")
        target = scaled_checkpoint(source, 3, tmp_path / "work")
        assert (target / "config.json").read_text() == "{}"
        found = load_file(target / "model.safetensors")
        assert found.keys() == weights().keys()
        assert np.array_equal(found["shared.weight"], np.full(2, 24.0, np.float32))
        (target / "config.json").write_text("kept")
        assert scaled_checkpoint(source, 3, tmp_path / "work") == target
        assert (target / "config.json").read_text() == "kept"
        assert scaled_checkpoint(source, 0, tmp_path / "work") == source

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_only_fp32_checkpoints_are_scaled(self, dtype: str, export_cache: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="only fp32"):
            scaled_checkpoint(saved_checkpoints(export_cache) / f"t5-{dtype}", 1, tmp_path)

    @pytest.mark.slow
    def test_without_an_epsilon_the_logits_are_the_same_to_the_last_bit(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [*torch_command(), "-c", COMPARE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == ["tied-6", "True", "tied3", "True", "own-6", "True", "own3", "True"]


COMPARE = """
import sys
from pathlib import Path
import torch
from transformers import T5Config, T5ForConditionalGeneration
from benchmarks.scaled import scaled_checkpoint

def logits(path):
    ids = torch.arange(2, 42).reshape(4, 10)
    with torch.no_grad():
        return T5ForConditionalGeneration.from_pretrained(path)(input_ids=ids, decoder_input_ids=ids[:, :6]).logits

work = Path(sys.argv[1])
sizes = dict(vocab_size=61, d_model=16, d_kv=4, d_ff=24, num_heads=2, num_layers=2, layer_norm_epsilon=0.0)
for name, options in (("tied", {}), ("own", dict(tie_word_embeddings=False, feed_forward_proj="gated-gelu"))):
    torch.manual_seed(5)
    T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **sizes, **options)).save_pretrained(work / name)
    for power in (-6, 3):
        scaled = scaled_checkpoint(work / name, power, work / f"{name}-scaled")
        assert logits(work / name).std() > 0
        print(f"{name}{power}", torch.equal(logits(work / name), logits(scaled)))
"""
"""Compares tiny models with their scaled versions; torch stays in child processes."""


KEYS = tuple(f"n{number:02}" for number in range(24))


class TestBisection:
    @given(st.frozensets(st.sampled_from(KEYS)))
    def test_finds_all_that_may_be_low_where_nodes_fail_by_themselves(self, bad: frozenset[str]) -> None:
        tried = []

        def passes(low: frozenset[str]) -> bool:
            tried.append(low)
            return not low & bad

        found = bisect(KEYS, passes)
        assert found.low == frozenset(KEYS) - bad
        assert found.evaluations == len(tried)

    @given(st.lists(st.frozensets(st.sampled_from(KEYS), min_size=1, max_size=4), max_size=6))
    def test_finds_a_set_that_passes_and_cannot_be_added_to(self, forbidden: list[frozenset[str]]) -> None:
        def passes(low: frozenset[str]) -> bool:
            return not any(together <= low for together in forbidden)

        low = bisect(KEYS, passes).low
        assert passes(low)
        assert not any(passes(low | {key}) for key in KEYS if key not in low)

    def test_the_longest_run_comes_first_and_the_first_of_equally_long_ones(self) -> None:
        tried: list[str] = []

        def passes(low: frozenset[str]) -> bool:
            tried.append("".join(sorted(low)))
            return not low & {"b", "f"}

        assert bisect("abcdefg", passes).low == frozenset("acdeg")
        halves, pairs, singles = "abcdefg defg abc", "bc de defg", "ade abde acde acdef acdeg"
        assert tried == f"{halves} {pairs} {singles}".split()

    def test_costs_one_evaluation_where_all_may_be_low_and_none_without_nodes(self) -> None:
        assert bisect(KEYS, lambda low: True).evaluations == 1
        assert bisect((), lambda low: True).evaluations == 0


def brute_force(table: np.ndarray, acceptable: set[int]) -> int | None:
    return min(acceptable, key=lambda plan: (table[plan], plan), default=None)


class TestEnumeration:
    @given(st.data())
    def test_finds_what_brute_force_finds(self, data: st.DataObject) -> None:
        """Truth: damage where a forbidden set is low as a whole; of the others some are unlucky, without any order."""
        bits = data.draw(st.integers(1, 6))
        table = np.array(data.draw(st.lists(st.integers(1, 20), min_size=2**bits, max_size=2**bits)), np.float64)
        forbidden = data.draw(st.lists(st.integers(1, 2**bits - 1), max_size=3))
        unlucky = data.draw(st.frozensets(st.integers(0, 2**bits - 1)))
        asked: list[int] = []

        def truth(plan: int) -> Verdict:
            if any(plan & low == 0 for low in forbidden):
                return "damaged"
            return "rejected" if plan in unlucky else "acceptable"

        def judge(plan: int) -> Verdict:
            asked.append(plan)
            return truth(plan)

        found = find_optimum(table, judge, 10**6)
        good = {plan for plan in range(2**bits) if truth(plan) == "acceptable"}
        assert found.plan == brute_force(table, good)
        assert found.evaluations == len(asked) == len(set(asked))
        if found.plan is not None:
            faster = {plan for plan in range(2**bits) if table[plan] < table[found.plan]}
            assert (found.faster, found.skipped) == (len(faster), len(faster - set(asked)))

    def test_gives_up_after_so_many_evaluations(self) -> None:
        found = find_optimum(np.arange(16.0), lambda plan: "rejected", 6)
        assert (found.plan, found.evaluations) == (None, 6)

    def test_damage_spares_evaluations(self) -> None:
        """With bit 0 needed, the 8 plans without it cost one evaluation, after the 4 plans with one choice low."""
        table = np.array([plan.bit_count() for plan in range(16)], np.float64)
        found = find_optimum(table, lambda plan: "acceptable" if plan & 1 else "damaged", 100)
        assert (found.plan, found.evaluations) == (1, 5)
        assert (found.faster, found.skipped) == (1, 1)

    @given(st.data())
    def test_the_table_adds_up_what_either_family_takes(self, data: st.DataObject) -> None:
        encoder, decoder = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
        made, read = data.draw(st.integers(0, 2**encoder)), data.draw(st.integers(0, 2**decoder))
        costs = data.draw(st.lists(st.integers(0, 100), min_size=4, max_size=4))

        def crosses_low(first: int, second: int) -> bool:
            # Low where the encoder keeps nothing of `made`, or the decoder nothing of `read`.
            return (made < 2**encoder and first & made == 0) or (read < 2**decoder and second & read == 0)

        def ms(first: int, second: int) -> float:
            low = crosses_low(first, second)
            ours = costs[0] * first.bit_count() + costs[1] * (first % 3) * low
            return float(ours + costs[2] * second.bit_count() ** 2 + costs[3] * (second % 2) * (not low))

        table = latency_table(encoder, decoder, ms, crosses_low)
        wanted = [ms(first, second) for second in range(2**decoder) for first in range(2**encoder)]
        assert table.tolist() == wanted

    def test_the_table_is_the_estimate_of_every_plan_of_the_demo(self, demo_bundle: Bundle) -> None:
        """MatMul and Mul decide whether the encoder's output crosses low; its final norm ends in a Mul."""
        graphs = demo_bundle.graphs
        op_types = ("Add", "MatMul", "Mul")
        keys = [compute_keys_by_op_type(graphs, family)[op_type] for family in FAMILIES for op_type in op_types]
        estimate = EstimatedLatency(demo_bundle, Workload(64, 16, 16), load_profile("t4"))
        pinned = pinned_keys(graphs)

        def plan(first: int, second: int = 0) -> Plan:
            low = [keys[bit] for bit in range(6) if not (first | second << 3) >> bit & 1]
            return Plan("float16", "base", all_compute_keys(graphs) - frozenset().union(*low) | pinned)

        def crosses_low(first: int, second: int) -> bool:
            return "last_hidden_state" in assign(graphs, plan(first, second))["encoder"].low_outputs

        table = latency_table(3, 3, lambda first, second: estimate.plan_ms(plan(first, second)), crosses_low)
        crossing = {crosses_low(number & 7, number >> 3) for number in range(64)}
        assert crossing == {True, False}
        assert table == pytest.approx([estimate.plan_ms(plan(number)) for number in range(64)], rel=1e-9)

    def test_too_many_choices_are_refused(self) -> None:
        with pytest.raises(ValueError, match="too many"):
            latency_table(MOST_CHOICES, 1, lambda first, second: 0.0, lambda first, second: False)


def row(method: str, **changes: object) -> Row:
    made = Row(
        settings="s",
        scale="1",
        method=method,
        evaluations=10,
        seconds=1.0,
        all_evaluations=10,
        all_seconds=1.0,
        verdict="stable",
        acceptable=True,
        fp32_nodes=3,
        casts=2,
        ms=10.0,
        speedup=2.0,
        flip_risk=FlipRisk(1.0, 0.5, 2.0),
        calibration=1.0,
        validation=1.0,
        test=0.99,
        points=(),
        note="",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


class TestTargets:
    def results(self, *rows: Row) -> list[str]:
        return [target.result for target in targets("1", {each.method: each for each in rows})]

    def test_are_met_at_their_bounds(self) -> None:
        nodes = row("nodes", ms=10.2)
        others = row("exhaustive", ms=10.2), row("random", points=(Point(10.0, 1.0), Point(5.0, 1.1)))
        assert self.results(nodes, *others, row("bisection", all_evaluations=30)) == ["met", "met", "met"]

    def test_are_missed_beyond_them(self) -> None:
        nodes = row("nodes", ms=10.3)
        others = row("exhaustive", ms=10.2), row("random", points=(Point(10.0, 1.0),))
        assert self.results(nodes, *others, row("bisection", all_evaluations=29)) == ["missed", "missed", "missed"]

    def test_a_plan_that_is_not_acceptable_misses_all(self) -> None:
        nodes = row("nodes", ms=1.0, acceptable=False)
        others = row("exhaustive", points=(Point(10.0, 1.0),)), row("bisection", all_evaluations=300)
        assert self.results(nodes, *others) == ["missed", "missed", "missed"]

    def test_are_not_known_without_rows_or_without_an_optimum(self) -> None:
        assert self.results() == ["not known"] * 3
        assert self.results(row("nodes"), row("exhaustive", acceptable=False)) == ["not known", "met", "not known"]


class TestBudget:
    def test_random_search_may_judge_as_many_plans_as_the_node_search_evaluated(self) -> None:
        rows = {"nodes": row("nodes", all_evaluations=75), "op-types": row("op-types", all_evaluations=15)}
        config = load_config(ROOT / "configs/demo.toml")
        assert strategy_config(config, "random", rows).search.max_trials == 76
        assert strategy_config(config, "nodes", rows).search.max_trials == config.search.max_trials
        assert strategy_config(config, "nodes", rows).search.strategy == "nodes"

    def test_without_one_it_does_not_run(self) -> None:
        with pytest.raises(ConfigError, match="budget"):
            strategy_config(load_config(ROOT / "configs/demo.toml"), "random", {})


class TestReport:
    def test_rows_come_by_scale_and_method_and_a_plan_that_is_no_good_says_so(self) -> None:
        bad = row("threshold", scale="2^-6", verdict="mismatch", acceptable=False, flip_risk=None, validation=None)
        unsure = row("bisection", scale="2^-6", acceptable=False, evaluations=9, note="so it is")
        text = report("here", {"1": {"nodes": row("nodes")}, "2^-6": {"threshold": bad, "bisection": unsure}}, {})
        places = [text.index(part) for part in ("2^-6**", "| bisection |", "| threshold |", "as it is**", "| nodes |")]
        assert places == sorted(places)
        assert "| mismatch |" in text
        assert "| stable, but not on validation |" in text
        assert "| 9 of 10 |" in text
        assert "- bisection: so it is." in text

    def test_likeness_counts_bits(self) -> None:
        one = Reference(((1, 2), (3,)), (np.array([1, 2], np.float32), np.array([5], np.float32)))
        two = Reference(((1, 2), (4,)), (np.array([1, 2.5], np.float32), np.array([5], np.float32)))
        found = likeness("s", "2^3", [one], [two])
        assert (found.samples, found.equal, found.tokens, found.equal_margins, found.largest) == (2, 1, 2, 1, 0.5)
        assert "tokens of 1 of 2 samples" in report("here", {"2^3": {}}, {"2^3": found})
        assert "the others within 0.5" in found.text
        assert "others" not in likeness("s", "2^3", [one], [one]).text

    def test_records_survive_a_line_that_was_cut(self, tmp_path: Path) -> None:
        path = tmp_path / "work" / "rows.jsonl"
        first, second = row("nodes", points=(Point(1.0, 2.0),)), row("random")
        add_record(path, first)
        with path.open("a") as file:
            file.write('{"settings": "s", "sca')
        assert read_records(path, Row) == [first]
        add_record(path, second)
        assert read_records(path, Row) == [first, second]
        assert read_records(tmp_path / "none.jsonl", Row) == []


@pytest.fixture(scope="module")
def small(export_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The demo with few sentences and few plans."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("calibration", 16), ("validation", 16), ("test", 8)):
        lines = (DEMO_DATA / f"{name}.txt").read_text().splitlines()[:count]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    sets = [f"{name}.path={folder / name}.txt" for name in ("calibration", "validation", "test")]
    more = [f"model.cache={export_cache}", "search.max_trials=12", "device.threads=1"]
    return load_config(ROOT / "configs/demo.toml", [*sets, *more])


@pytest.mark.slow
class TestWork:
    def test_rows_are_made_once_and_count_probes_and_plans(
        self, small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probed: list[frozenset[str]] = []
        measure = RoleProbe.noise

        def counting(probe: RoleProbe, keys: frozenset[str]) -> float:
            probed.append(keys)
            return measure(probe, keys)

        monkeypatch.setattr(RoleProbe, "noise", counting)
        work = Work(small, tmp_path)
        work.measure(0, ["nodes", "threshold"])
        rows = work.rows()["1"]
        judged = read_trials(tmp_path / "runs/1-nodes/trials.jsonl")
        plans = sum(not trial.is_fp32 for trial in judged)
        assert len(probed) > 10
        assert rows["nodes"].all_evaluations == plans + len(probed)
        assert f"{len(probed)} of all" in rows["nodes"].note
        final = choose_winner(judged, Requirement(0.98)).trial
        assert final is not None
        assert (rows["nodes"].verdict, rows["nodes"].fp32_nodes) == (final.verdict, final.fp32_nodes)
        assert final.id <= rows["nodes"].evaluations <= len(probed) + final.id
        assert rows["threshold"].evaluations == 1
        assert 0 < rows["threshold"].fp32_nodes < final.fp32_nodes + final.low_nodes
        before = (tmp_path / "rows.jsonl").read_bytes()
        Work(small, tmp_path).measure(0, ["nodes", "threshold"])
        assert (tmp_path / "rows.jsonl").read_bytes() == before
        other = dataclasses.replace(small, search=dataclasses.replace(small.search, seed=1))
        assert Work(other, tmp_path).rows() == {}
