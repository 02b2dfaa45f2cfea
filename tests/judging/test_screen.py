"""The screen says what generation would say, in one pass, and stops as soon as it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_search.errors import InputError
from precision_search.judging.batches import FIRST_BATCH
from precision_search.judging.ranges import measure_ranges
from precision_search.judging.sample_sets import SampleRows
from precision_search.judging.screen import FP32_ENCODER, Parting, SampleScreen, Screener, ScreenResult
from precision_search.model.bundle import Bundle
from precision_search.model.generation_config import GenerationSettings
from precision_search.model.graph import compute_keys_by_op_type
from precision_search.model.samples import encode, load_samples
from precision_search.model.tokenizer import load_tokenizer
from precision_search.precision.convert import convert
from precision_search.precision.kernels import why_fp32
from precision_search.precision.low import LOW_DTYPES
from precision_search.precision.plan import FAMILIES, Plan, all_compute_keys, pinned_keys
from precision_search.precision.weights import WeightCache
from precision_search.runtime.reference import Reference
from precision_search.strategies.space import make_space
from tests.confirming import confirm
from tests.conftest import DEMO_DATA, DEMO_MODEL
from tests.plans import CLASSIC, NORMS, SETTINGS, WO, keeping, lowering, sample_rows
from tests.screen_models import SOURCE, FakeEncoder, plan_with, samples_with

Rows = tuple[tuple[int, ...], ...]
NAN = float("nan")
BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Demo:
    """The demo with its calibration set, and what all tests on it share."""

    bundle: Bundle
    weights: WeightCache
    screener: Screener
    calibration: SampleScreen

    def screen(self, plan: Plan, samples: SampleScreen) -> ScreenResult:
        shared = plan.dtype == "float16"
        screener = self.screener if shared else Screener(self.bundle.graphs, plan.dtype, self.weights, SETTINGS)
        return screener.prepare(plan).screen(samples, to_the_end=True)

    def part(self, numbers: Sequence[int]) -> SampleScreen:
        rows, known = self.calibration.samples.rows, self.calibration.samples.reference
        tokens, margins = zip(*((known.tokens[n], known.margins[n]) for n in numbers), strict=True)
        some = SampleRows(tuple(rows[n] for n in numbers), Reference(tokens, margins))
        return SampleScreen(some, self.bundle.generation, 8)


@pytest.fixture(scope="module")
def demo(demo_bundle: Bundle, demo_ids: Rows) -> Demo:
    weights = WeightCache()
    calibration = SampleScreen(sample_rows(demo_bundle, demo_ids), demo_bundle.generation, BATCH_SIZE)
    return Demo(demo_bundle, weights, Screener(demo_bundle.graphs, "float16", weights, SETTINGS), calibration)


@pytest.fixture(scope="module")
def few(demo: Demo) -> SampleScreen:
    """The most fragile samples and some others."""
    order = demo.calibration.samples.reference.fragile_first
    return demo.part((*order[:8], *order[-8:]))


@pytest.fixture(scope="module")
def validation(demo: Demo) -> SampleScreen:
    samples = load_samples(DEMO_DATA / "validation.txt", "validation")
    ids = encode(samples, load_tokenizer(DEMO_MODEL), "", None).ids
    return SampleScreen(sample_rows(demo.bundle, ids), demo.bundle.generation, BATCH_SIZE)


# What is known of the demo.


@dataclass(frozen=True, slots=True)
class Known:
    """A plan of the demo and how it ended when FINDINGS.md was written, with other code."""

    op_types: tuple[str, ...]
    nodes: tuple[str, ...]
    verdict: str
    calibration_match: float
    validation_match: float | None

    def plan(self, demo: Demo) -> Plan:
        return keeping(demo.bundle, self.op_types, self.nodes)


ALL_LOW = Known((), (), "mismatch", 0.0, 0.0)
KNOWN_CLASSIC = Known(CLASSIC, (), "mismatch", 0.0, 0.0)
KNOWN_NORMS = Known(NORMS, (), "nonfinite", 0.26, 0.29)
NORMS_AND_WO = Known(NORMS, WO, "exact", 1.0, None)
KNOWN = (ALL_LOW, KNOWN_CLASSIC, KNOWN_NORMS, NORMS_AND_WO)
NAMES = ("all-low", "classic", "norms", "norms and wo")
STEP = {"float16": 2.0**-6, "bfloat16": 2.0**-3}
"""From a logit of the demo, which is below 32, to the next number of the dtype."""


def test_fp32_is_exact_with_the_margins_of_the_reference(demo: Demo) -> None:
    result = demo.screener.prepare(lowering(demo.bundle)).screen(demo.calibration)

    reference = demo.calibration.samples.reference
    assert (result.verdict, result.exact_match, result.screened, result.divergence) == ("exact", 1.0, 100, None)
    assert result.min_margin == pytest.approx(float(reference.smallest.min()), abs=1e-4)
    assert sorted(result.margins) == list(range(100))
    for sample, margins in result.margins.items():
        np.testing.assert_allclose(margins, reference.margins[sample], rtol=0, atol=1e-4)


@pytest.mark.parametrize("known", KNOWN, ids=NAMES)
def test_known_plans_end_as_published(demo: Demo, known: Known) -> None:
    plan = demo.screener.prepare(known.plan(demo))

    full, early = plan.screen(demo.calibration, to_the_end=True), plan.screen(demo.calibration)

    assert (full.verdict, full.screened) == (known.verdict, 100)
    assert full.exact_match == pytest.approx(known.calibration_match)
    assert (early.verdict, early.divergence) == (full.verdict, full.divergence)
    assert early.screened == (100 if known.verdict == "exact" else FIRST_BATCH)
    assert (full.divergence is None) == (known.verdict == "exact")
    assert (full.min_margin is None) == (known.verdict == "nonfinite")


@pytest.mark.slow
@pytest.mark.parametrize("known", KNOWN[:3], ids=NAMES[:3])
def test_known_plans_end_as_published_on_unseen_samples(demo: Demo, validation: SampleScreen, known: Known) -> None:
    result = demo.screen(known.plan(demo), validation)

    assert (result.verdict, result.screened) == (known.verdict, 100)
    assert result.exact_match == pytest.approx(known.validation_match)


# Screen and generation agree.


def check_agreement(demo: Demo, plan: Plan, samples: SampleScreen) -> ScreenResult:
    result = demo.screen(plan, samples)
    found = confirm(
        convert(demo.bundle.graphs, plan, demo.weights).models,
        samples.samples,
        demo.bundle.generation,
        SETTINGS,
        batch_size=BATCH_SIZE,
        weights=demo.weights,
    )
    # Generation adds the products up step by step, the screen all tokens at once. Where a sum ends in other bits, which
    # depends on the processor, a logit rounds to the next number of its dtype: a sample this near to a tie may flip.
    near = sum(abs(float(np.min(margins))) <= STEP[plan.dtype] for margins in result.margins.values()) / result.screened
    assert abs(found.exact_match - result.exact_match) <= near + 1e-9
    assert (result.verdict == "nonfinite") == found.nonfinite
    if not near:
        assert (result.verdict == "exact") == (found.divergence is None)
    return result


@pytest.mark.parametrize("known", [ALL_LOW, KNOWN_NORMS, NORMS_AND_WO], ids=["all-low", "norms", "norms and wo"])
def test_the_screen_says_what_generation_says(demo: Demo, few: SampleScreen, known: Known) -> None:
    assert check_agreement(demo, known.plan(demo), few).verdict == known.verdict


def test_what_the_ranges_suggest_is_exact_in_the_screen_and_generating(demo: Demo, few: SampleScreen) -> None:
    graphs = demo.bundle.graphs
    ranges = measure_ranges(graphs["encoder"], graphs["decoder"], few.batches[:1], "float16", SETTINGS)
    space = make_space(graphs, "float16", ranges, range_safety=2.0).space
    plan = space.plan_of(space.hard_choices)

    assert 0 < len(plan.fp32) < len(all_compute_keys(graphs))
    assert check_agreement(demo, plan, few).verdict == "exact"


def test_bfloat16_plans_are_screened_and_generated_alike(demo: Demo, few: SampleScreen) -> None:
    """All of it in bfloat16 overflows nowhere and still loses tokens: 8 bits of mantissa."""
    nodes = [node for graph in demo.bundle.graphs.values() for node in graph.compute]
    unfit = {node.key for node in nodes if node.pinned or why_fp32(node.op_type, "bfloat16")}

    result = check_agreement(demo, Plan("bfloat16", "base", frozenset(unfit)), few)

    assert result.verdict == "mismatch"
    assert 0 < result.exact_match < 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_plans_are_screened_and_generated_alike(demo: Demo, validation: SampleScreen, seed: int) -> None:
    """Half of the nodes low, beside the norms and `wo`: a few tokens flip, and both see the same."""
    generator = np.random.default_rng(seed)
    careful = NORMS_AND_WO.plan(demo).fp32
    rest = sorted(all_compute_keys(demo.bundle.graphs) - careful)
    kept = frozenset(key for key in rest if generator.random() < 0.5)

    result = check_agreement(demo, Plan("float16", "base", careful | kept), validation)

    assert result.verdict in ("exact", "mismatch")
    assert result.exact_match > 0.9


# Sessions.


def test_one_session_a_graph_serves_all_plans(demo: Demo) -> None:
    by_family = {f: compute_keys_by_op_type(demo.bundle.graphs, f)["Relu"] for f in FAMILIES}
    low_encoder, low_decoder = (lowering(demo.bundle, by_family[family]) for family in FAMILIES)

    fp32, encoder, decoder, again = (
        demo.screener.prepare(plan) for plan in (lowering(demo.bundle), low_encoder, low_decoder, low_encoder)
    )

    assert len({id(plan.encoder) for plan in (fp32, encoder, decoder, again)}) == 1
    assert len({id(plan.decoder) for plan in (fp32, encoder, decoder, again)}) == 1
    assert fp32.encoder_id == decoder.encoder_id == FP32_ENCODER
    assert encoder.encoder_id == again.encoder_id != FP32_ENCODER
    assert sum(map(bool, encoder.encoder_flags.values())) == len(by_family["encoder"])
    assert not any(encoder.decoder_flags.values())
    assert sum(map(bool, decoder.decoder_flags.values())) == len(by_family["decoder"])


def test_another_dtype_is_another_encoder(demo: Demo) -> None:
    relu = compute_keys_by_op_type(demo.bundle.graphs, "encoder")["Relu"]
    screeners = {dtype: Screener(demo.bundle.graphs, dtype, demo.weights, SETTINGS) for dtype in LOW_DTYPES}

    half, brain = (screeners[dtype].prepare(lowering(demo.bundle, relu, dtype)) for dtype in LOW_DTYPES)

    assert half.encoder is not brain.encoder
    assert half.encoder_id != brain.encoder_id
    with pytest.raises(ValueError, match="for float16 was given a plan in bfloat16"):
        screeners["float16"].prepare(lowering(demo.bundle, relu, "bfloat16"))


def test_a_plan_that_no_kernel_can_run_is_refused(demo: Demo) -> None:
    pinned = sorted(pinned_keys(demo.bundle.graphs))

    with pytest.raises(InputError, match="which cannot be"):
        demo.screener.prepare(lowering(demo.bundle, pinned[:1]))


# The order, and when to stop: encoder and decoder made up.


def test_the_most_fragile_sample_is_looked_at_first_on_the_demo(demo: Demo) -> None:
    smallest = demo.calibration.samples.reference.smallest

    first = demo.calibration.batches[0].source.indices

    assert first[0] == int(smallest.argmin())
    assert sorted(smallest[list(first)]) == sorted(smallest)[:FIRST_BATCH]


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(0, 5, width=32), min_size=n, max_size=n),
            st.lists(st.integers(1, 9), min_size=n, max_size=n),
        )
    ),
    st.integers(1, 12),
)
def test_a_small_fragile_batch_then_all_others_by_target_length(data: tuple[list[float], list[int]], size: int) -> None:
    smallest, lengths = data

    batches = [batch.source.indices for batch in samples_with(smallest, lengths, size=size).batches]

    assert sorted(index for batch in batches for index in batch) == list(range(len(smallest)))
    assert len(batches[0]) == min(FIRST_BATCH, size, len(smallest))
    assert all(len(batch) <= size for batch in batches)
    order = [index for batch in batches for index in batch]
    first, later = order[:FIRST_BATCH], order[FIRST_BATCH:]
    assert [smallest[index] for index in first] == sorted(smallest)[:FIRST_BATCH]
    assert [lengths[index] for index in later] == sorted(lengths[index] for index in later)


TWENTY = [0.1 * (n + 1) for n in range(20)]
"""Margins of samples that are numbered by fragility; the batches are 0 to 7, 8 to 15, 16 to 19."""


@pytest.mark.parametrize(("wrong", "looked_at"), [(0, 8), (7, 8), (8, 16), (13, 16), (19, 20)])
def test_it_stops_after_the_batch_that_decides(wrong: int, looked_at: int) -> None:
    plan = plan_with({wrong: [1.0, -0.5]})

    early, full = plan.screen(samples_with(TWENTY)), plan.screen(samples_with(TWENTY), to_the_end=True)

    assert (early.verdict, early.screened) == ("mismatch", looked_at)
    assert early.exact_match == pytest.approx((looked_at - 1) / looked_at)
    assert sorted(early.margins) == list(range(looked_at))
    assert (full.verdict, full.screened) == ("mismatch", 20)
    assert full.exact_match == pytest.approx(0.95)
    assert early.divergence == full.divergence == Parting(wrong, 1)
    assert early.min_margin == full.min_margin == -0.5
    assert early.build_seconds == 0.5


def test_a_tie_is_a_mismatch() -> None:
    """Providers break ties differently, so nobody knows which token wins."""
    result = plan_with({3: [0.25, 0.0]}).screen(samples_with(TWENTY), to_the_end=True)

    assert (result.verdict, result.divergence, result.min_margin) == ("mismatch", Parting(3, 1), 0.0)
    assert result.exact_match == pytest.approx(0.95)


def test_a_small_positive_margin_is_exact() -> None:
    result = plan_with({3: [0.25, 1e-30]}).screen(samples_with(TWENTY))

    assert (result.verdict, result.exact_match, result.divergence) == ("exact", 1.0, None)
    assert result.min_margin == pytest.approx(1e-30)


@pytest.mark.parametrize("where", [0, 1])
def test_non_finite_beats_mismatch(where: int) -> None:
    margins: list[float] = [1.0, 1.0]
    margins[where] = NAN

    result = plan_with({1: [-3.0, 1.0], 2: margins}).screen(samples_with(TWENTY))

    assert (result.verdict, result.min_margin) == ("nonfinite", None)
    assert result.divergence == Parting(1, 0)
    assert result.exact_match == pytest.approx(6 / 8)


def test_a_logit_that_is_not_finite_decides_where_it_stands() -> None:
    result = plan_with({2: [1.0, NAN]}).screen(samples_with(TWENTY))

    assert (result.verdict, result.screened, result.divergence) == ("nonfinite", FIRST_BATCH, Parting(2, 1))


@pytest.mark.parametrize("bad", [NAN, np.inf, -np.inf])
def test_an_encoder_output_that_is_not_finite_counts_even_if_the_tokens_survive(bad: float) -> None:
    result = plan_with(hidden={4: bad}).screen(samples_with(TWENTY))

    assert (result.verdict, result.min_margin, result.divergence) == ("nonfinite", None, Parting(4, 0))
    assert result.exact_match == pytest.approx(7 / 8)


def test_what_the_encoder_says_at_padding_does_not_count() -> None:
    samples = samples_with([0.5] * 20, sources=[SOURCE] * 19 + [SOURCE + 1], size=20)
    padded = next(i for i in samples.batches[-1].source.indices if i != 19)

    assert plan_with(hidden={padded: NAN}).screen(samples).verdict == "exact"


def test_forced_tokens_do_not_count() -> None:
    forced = GenerationSettings(0, (1,), 0, 8, 5, None)
    reference = Reference(((5, 1), (5,)), (np.array([NAN, 2.0], np.float32), np.array([NAN], np.float32)))
    samples = SampleScreen(SampleRows(((2,), (2,)), reference), forced, 4)

    result = plan_with({0: [-7.0, 0.5], 1: [-7.0]}).screen(samples)

    assert (result.verdict, result.exact_match, result.min_margin) == ("exact", 1.0, 0.5)
    assert np.isnan(result.margins[0][0])
    assert np.isnan(result.margins[1]).all()


def test_the_fp32_encoder_runs_once_a_batch_for_all_plans() -> None:
    samples = samples_with(TWENTY)
    plan = plan_with()
    fake = cast(FakeEncoder, plan.encoder)

    results = [plan.screen(samples) for _ in range(3)]

    assert [(result.verdict, result.encoded) for result in results] == [("exact", 20), ("exact", 0), ("exact", 0)]
    assert fake.seen == [batch.source.indices for batch in samples.batches]

    plan.screen(samples_with(TWENTY))  # another sample set has outputs of its own
    assert len(fake.seen) == 2 * len(samples.batches)


def test_memory_is_given_back_when_a_plan_has_passed() -> None:
    passing, failing = plan_with(), plan_with({0: [-1.0]})

    passing.screen(samples_with(TWENTY))
    failing.screen(samples_with(TWENTY))

    assert cast(FakeEncoder, passing.encoder).released == [False, False, True]
    assert cast(FakeEncoder, failing.encoder).released == [False]


def test_after_memory_ran_out_no_batch_is_larger_and_nothing_is_remembered() -> None:
    samples = samples_with(TWENTY)
    assert plan_with().screen(samples).encoded == 20
    samples.shrink(3)
    assert max(len(batch.source.indices) for batch in samples.batches) == 3
    assert samples.batches[0].source.indices == (0, 1, 2)
    result = plan_with().screen(samples)
    assert (result.verdict, result.encoded, result.screened) == ("exact", 20, 20)
    known = samples.batches
    samples.shrink(3)
    assert samples.batches is known


@pytest.mark.parametrize("size", [1, 3, 8, 32])
def test_a_batch_that_shrank_is_cut_as_one_asked_for(size: int) -> None:
    shrunk, asked = samples_with(TWENTY, size=64), samples_with(TWENTY, size=size)
    shrunk.shrink(size)

    cuts = [[batch.source.indices for batch in samples.batches] for samples in (shrunk, asked)]

    assert cuts[0] == cuts[1]
    assert cuts[0][0] == tuple(range(min(size, FIRST_BATCH)))


def test_the_last_low_encoder_is_remembered_too() -> None:
    samples = samples_with(TWENTY)
    first = plan_with(encoder_id=b"first")
    rejected = plan_with({0: [-1.0]}, encoder_id=b"first")

    assert rejected.screen(samples).encoded == 8
    assert first.screen(samples).encoded == 12  # the first batch is known, from a plan that looked no further
    assert first.screen(samples).encoded == 0
    assert plan_with().screen(samples).encoded == 20
    assert first.screen(samples).encoded == 0  # fp32 is kept beside it
    assert plan_with(encoder_id=b"second").screen(samples).encoded == 20
    assert first.screen(samples).encoded == 20


def test_a_low_encoder_is_never_answered_by_another() -> None:
    samples = samples_with(TWENTY)
    assert plan_with().screen(samples).verdict == "exact"

    assert plan_with(hidden={0: NAN}, encoder_id=b"bad").screen(samples).verdict == "nonfinite"
    assert plan_with(encoder_id=b"good").screen(samples).verdict == "exact"
    assert plan_with().screen(samples).verdict == "exact"
