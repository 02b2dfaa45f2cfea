"""What comes before the first plan: cheap mistakes are found before the slow export, and a bundle that does not
generate what its checkpoint does stops the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from precision_search.config import Config, DataSection, load_config
from precision_search.device import cuda
from precision_search.errors import ConfigError, InputError, UsageError, VerificationError
from precision_search.judging import sample_sets
from precision_search.judging.sample_sets import LoadedSet, NearTie, Parity, SampleRows, near_ties
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GRAPH_NAMES
from precision_search.model.hf_files import copy_hf_files
from precision_search.model.layout import graph_file
from precision_search.model.samples import Sample, SampleSet
from precision_search.precision.plan import all_compute_keys
from precision_search.reporting import NOBODY
from precision_search.run import prepare as module
from precision_search.run.prepare import Prepared, open_inputs, prepare
from precision_search.runtime import reference as reference_module
from precision_search.runtime.backends import backend_of
from precision_search.runtime.reference import NEAR_TIE, ParityDifference, Reference
from precision_search.runtime.session import NO_LIMIT
from tests.conftest import DEMO_DATA, DEMO_MODEL
from tests.told import Told

Rows = tuple[tuple[int, ...], ...]
FEW = 5
Make = Callable[..., Config]


class Talk(Told):
    """What a user would hear."""

    def prepare(self, config: Config) -> Prepared:
        return prepare(config, self)


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def make(tmp_path: Path, export_cache: Path) -> Make:
    """Writes a config for the first samples of the demo; arguments are overrides as on the command line."""

    def make_config(*overrides: str, model: Path = DEMO_MODEL) -> Config:
        lines = (DEMO_DATA / "calibration.txt").read_text().splitlines()[:FEW]
        (tmp_path / "few.txt").write_text("\n".join(lines) + "\n")
        (tmp_path / "run.toml").write_text(
            f'[model]\npath = "{model}"\ncache = "{export_cache}"\n[calibration]\npath = "few.txt"\nbatch_size = 4\n'
            '[device]\nkind = "cpu"\nthreads = 2\n'
        )
        return load_config(tmp_path / "run.toml", overrides)

    return make_config


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, demo_oracle_tokens: list[list[int]]) -> list[list[int]]:
    """What transformers says of the first samples; a test may change it."""
    told = [list(tokens) for tokens in demo_oracle_tokens[:FEW]]
    monkeypatch.setattr(sample_sets, "oracle_tokens", lambda *_, **__: told)
    return told


@pytest.fixture
def no_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes longest and plays no part."""
    monkeypatch.setattr(module, "measure_ranges", lambda *_, **__: {})


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_bundle(*_: Any, **options: Any) -> Bundle:
        raise AssertionError("the model was opened although the run cannot succeed")

    monkeypatch.setattr(module, "open_bundle", open_bundle)


# Mistakes that must not cost an export.


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("section", ["calibration", "validation", "test"])
@pytest.mark.parametrize(
    "bad",
    [(None, "does not exist"), (b"", "is empty"), (b"a\0b\n", "is binary"), (b"\xff\n", "is not UTF-8")],
    ids=["missing", "empty", "binary", "latin-1"],
)
def test_bad_samples_are_found_before_the_export(
    make: Make, talk: Talk, tmp_path: Path, section: str, bad: tuple[bytes | None, str]
) -> None:
    path, (content, complaint) = tmp_path / "bad.txt", bad
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match=complaint) as caught:
        talk.prepare(make(f"{section}.path={path}"))

    assert section in caught.value.what
    assert talk.stages == []


@pytest.mark.usefixtures("no_export")
def test_a_dtype_that_the_device_cannot_compute_in_is_found_before_the_export(make: Make, talk: Talk) -> None:
    with pytest.raises(ConfigError, match="bfloat16") as caught:
        talk.prepare(make("search.dtype=bfloat16", "latency.profile=t4"))

    assert caught.value.fix


@pytest.mark.usefixtures("no_export")
def test_an_unknown_profile_is_found_before_the_export(make: Make, talk: Talk) -> None:
    with pytest.raises(ConfigError, match="t44"):
        talk.prepare(make("latency.profile=t44"))


def test_the_device_table_becomes_session_settings(make: Make) -> None:
    section = make("device.gemm_options=6", "device.memory_limit=1.5", "device.id=2", "device.use_tf32=true").device
    settings = module._session_settings(section, "cuda")
    assert (settings.device, settings.device_id, settings.use_tf32, settings.gemm_options) == ("cuda", 2, True, 6)
    assert settings.memory_limit == 3 * 2**29
    assert module._session_settings(make().device, "cuda").memory_limit == NO_LIMIT  # shared, as in every run


@pytest.mark.parametrize(("override", "warned"), [("use_tf32=true", 1), ("gemm_options=0", 1), ("gemm_options=2", 0)])
def test_what_emulation_does_not_know_is_said(make: Make, override: str, warned: int) -> None:
    told = Told()
    settings = module._session_settings(make(f"device.{override}").device, "cpu")
    backend_of(settings).check_process(settings, told.warn)
    assert len(told.warnings) == warned


@pytest.mark.usefixtures("no_export")
def test_gemm_options_of_the_process_are_checked_before_the_slow_part(
    make: Make, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "require", lambda device_id: None)
    monkeypatch.setenv("ORT_CUDA_GEMM_OPTIONS", "0")
    with pytest.raises(UsageError, match="to be 2, but ORT_CUDA_GEMM_OPTIONS is 0"):
        talk.prepare(make("device.kind=cuda"))


# Mistakes that need the graphs, and must not cost a reference.


@pytest.fixture
def no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_fp32(*_: Any) -> None:
        raise AssertionError("sessions were made although the run cannot succeed")

    monkeypatch.setattr(module, "open_fp32", open_fp32)


@pytest.mark.usefixtures("no_generator")
def test_a_pin_that_names_nothing_is_found_before_the_reference(make: Make, talk: Talk) -> None:
    with pytest.raises(ConfigError, match="Sofmax"):
        talk.prepare(make('search.keep_fp32=["Sofmax"]'))


@pytest.mark.usefixtures("no_generator")
def test_the_caller_may_look_at_the_bundle_before_the_reference(make: Make, demo_bundle: Bundle) -> None:
    assert open_inputs(make(), NOBODY).bundle.content_hash == demo_bundle.content_hash


# What a search starts from.


def test_everything_a_search_needs_is_there(
    make: Make, talk: Talk, oracle: list[list[int]], demo_bundle: Bundle, demo_ids: Rows
) -> None:
    short = make().path.with_name("short.txt")
    short.write_text("test\nA much longer line of many words.\n")

    found = talk.prepare(make(f"validation.path={short}", "validation.max_length=7"))

    calibration, validation = found.sets["calibration"], found.sets["validation"]
    assert set(found.sets) == {"calibration", "validation"}
    assert found.bundle.content_hash == demo_bundle.content_hash
    assert calibration.data.rows == demo_ids[:FEW]
    assert [list(tokens) for tokens in calibration.data.reference.tokens] == oracle
    assert (calibration.truncated, validation.truncated) == (0, 1)
    assert len(validation.data.rows[0]) < len(validation.data.rows[1]) == 7
    assert found.parity == Parity("equal", FEW, ())
    assert found.ranges.keys() == all_compute_keys(demo_bundle.graphs)
    assert found.space.space.hard_choices
    assert (found.settings.device, found.settings.threads, found.settings.use_tf32) == ("cpu", 2, False)
    assert found.profile.name == "t4"
    assert len(talk.warnings) == 1
    assert "line 2 is cut to 7 tokens" in talk.warnings[0]
    assert len(talk.stages) == 4


@pytest.mark.usefixtures("oracle", "no_ranges")
def test_the_test_set_is_read_early_and_judged_late(make: Make, talk: Talk) -> None:
    found = talk.prepare(make(f"test.path={DEMO_DATA / 'test.txt'}"))

    assert set(found.sets) == {"calibration"}
    assert not any("test" in line for line in talk.stages)


@pytest.mark.usefixtures("oracle", "no_ranges")
def test_op_types_without_a_kernel_are_named(make: Make, talk: Talk) -> None:
    found = talk.prepare(make("search.dtype=bfloat16", "latency.profile=a100"))

    warned = [line for line in talk.warnings if "Reciprocal" in line]
    assert warned == ["Reciprocal stays in fp32: CUDA has no bfloat16 kernel for Reciprocal"]
    assert found.space.space.dtype == "bfloat16"


@pytest.mark.usefixtures("no_ranges")
def test_limits_and_pins_of_the_config_are_followed(make: Make, talk: Talk, oracle: list[list[int]]) -> None:
    oracle[:] = [tokens[:3] for tokens in oracle]

    found = talk.prepare(
        make("generation.max_new_tokens=3", 'search.keep_fp32=["Softmax"]', 'search.force_low=["Relu"]')
    )

    assert found.bundle.generation.max_new_tokens == 3
    assert max(len(tokens) for tokens in found.sets["calibration"].data.reference.tokens) == 3
    assert found.space.fixed["encoder.block.0.layer.0.SelfAttention/Softmax"] == "search.keep_fp32"
    assert "encoder.block.0.layer.1.DenseReluDense.act/Relu" in found.space.space.forced_low


@pytest.mark.slow
def test_the_demo_equals_its_checkpoint_on_all_samples(make: Make, talk: Talk, demo_ids: Rows) -> None:
    found = talk.prepare(make(f"calibration.path={DEMO_DATA / 'calibration.txt'}", "calibration.batch_size=32"))

    assert found.parity == Parity("equal", len(demo_ids), ())
    assert found.near_ties == ()
    assert talk.warnings == []


# Parity.


def test_a_bundle_that_differs_from_its_checkpoint_stops_the_run(
    make: Make, talk: Talk, oracle: list[list[int]]
) -> None:
    bundle_token = oracle[1][2]
    oracle[1][2] += 1
    oracle[3] = oracle[3][:-1]

    with pytest.raises(VerificationError, match=f"on 2 of {FEW} calibration samples") as caught:
        talk.prepare(make())

    assert caught.value.exit_code == 1
    first, second = caught.value.why.split("; ")
    assert first.startswith(f"sample 2, token 3: bundle {bundle_token}, checkpoint {bundle_token + 1}, margin ")
    assert second.startswith(f"sample 4, token {len(oracle[3]) + 1}: bundle 1, checkpoint None, margin ")


def test_a_bundle_that_ends_early_is_told_without_a_margin(make: Make, talk: Talk, oracle: list[list[int]]) -> None:
    oracle[0] = [*oracle[0], 5]

    with pytest.raises(VerificationError) as caught:
        talk.prepare(make())

    assert caught.value.why == f"sample 1, token {len(oracle[0])}: bundle None, checkpoint 5"


@pytest.mark.usefixtures("no_ranges")
def test_a_difference_at_a_near_tie_is_only_told(
    make: Make, talk: Talk, oracle: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No demo token is that close, so what counts as close is widened here."""
    bundle_token = oracle[2][1]
    oracle[2][1:] = [bundle_token + 1, 1]
    monkeypatch.setattr(reference_module, "NEAR_TIE", 100.0)

    found = talk.prepare(make())

    margin = float(found.sets["calibration"].data.reference.margins[2][1])
    difference = ParityDifference(2, 1, bundle_token, bundle_token + 1, margin)
    assert found.parity == Parity("near-ties", FEW, (difference,))
    (warning,) = talk.warnings
    assert "calibration sample 3" in warning
    assert "near-tie" in warning


@pytest.mark.usefixtures("no_ranges")
def test_without_a_checkpoint_parity_is_skipped_and_said(
    make: Make, talk: Talk, demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_sets, "oracle_tokens", lambda *_, **__: pytest.fail("there is nothing to ask"))

    found = talk.prepare(make(model=demo_bundle.path))

    assert found.bundle.checkpoint is None
    assert found.parity == Parity("skipped", 0, ())
    assert any("parity" in line and "skipped" in line for line in talk.warnings)


# Tokenizer and model.


@pytest.fixture
def copied(demo_bundle: Bundle, tmp_path: Path) -> Path:
    """The demo's ONNX files as links, its small files as copies to break."""
    target = tmp_path / "model"
    target.mkdir()
    copy_hf_files(demo_bundle.path, target)
    for name in GRAPH_NAMES:
        (target / graph_file(name)).symlink_to(demo_bundle.path / graph_file(name))
    return target


def test_a_tokenizer_of_another_vocabulary_is_refused(make: Make, talk: Talk, copied: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(copied / "tokenizer.json"))
    tokenizer.add_tokens(["zyx"])
    tokenizer.save(str(copied / "tokenizer.json"))
    (tmp_path / "strange.txt").write_text("a zyx b\n")
    size = json.loads((copied / "config.json").read_text())["vocab_size"]

    with pytest.raises(InputError, match=f"gives the id {size}, the model knows {size} tokens") as caught:
        talk.prepare(make(f"calibration.path={tmp_path / 'strange.txt'}", model=copied))

    assert "do not belong together" in caught.value.why


def test_a_model_without_tokenizer_is_refused(make: Make, talk: Talk, copied: Path) -> None:
    (copied / "tokenizer.json").unlink()

    with pytest.raises(InputError, match="has no tokenizer"):
        talk.prepare(make(model=copied))


# Near-ties of the reference itself.


def reference(*margins: Sequence[float]) -> Reference:
    return Reference(tuple((5,) * len(m) for m in margins), tuple(np.array(m, np.float32) for m in margins))


def test_near_ties_are_listed_with_their_place() -> None:
    found = near_ties("validation", reference([1.0, NEAR_TIE / 2], [float("nan"), NEAR_TIE], [0.0, -1e-6]))

    assert [(tie.set, tie.sample, tie.position) for tie in found] == [
        ("validation", 0, 1),
        ("validation", 2, 0),
        ("validation", 2, 1),
    ]
    assert found[1] == NearTie("validation", 2, 0, 0.0)


def test_a_sample_that_fp32_itself_decides_either_way_is_refused_by_its_line() -> None:
    samples = SampleSet("calibration", Path("data.txt"), (Sample("a", None, 3), Sample("b", None, 9)), "", ())
    told = Told()

    def loaded(*margins: Sequence[float]) -> LoadedSet:
        return LoadedSet(samples, SampleRows(((4,), (4,)), reference(*margins)), 0, DataSection(samples.path))

    sample_sets.check_ties(loaded([1.0], [1.0, NEAR_TIE / 2]), told)
    assert told.warnings == [
        "line 9 of data.txt, token 2: a near-tie of fp32 (margin 0.0005), which any rounding may flip"
    ]
    told.warnings.clear()
    sample_sets.check_ties(loaded([NEAR_TIE / 2] * 4, [NEAR_TIE / 4] * 4), told)
    assert len(told.warnings) == sample_sets.MOST_TIES + 1
    assert told.warnings[-1] == "3 more near-ties of fp32 in data.txt; run.json lists them all"
    with pytest.raises(InputError) as caught:
        sample_sets.check_ties(loaded([NEAR_TIE / 2] * 7, [1.0, -1e-6]), told)
    assert caught.value.what.startswith("line 9 of data.txt, token 2: fp32 generates one token and prefers another")
    assert "its own rounding decides (margin -1e-06)" in caught.value.why
    assert "remove that line" in caught.value.fix
    assert caught.value.exit_code == 2
