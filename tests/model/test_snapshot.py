"""A model directory that changes while it is read ends in an error that says so, never in a mixture of two models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from precision_search import Seq2SeqGenerator, api
from precision_search.errors import EnvironmentProblemError, InputError
from precision_search.model import bundle as bundle_module
from precision_search.model.bundle import open_bundle, oracle_tokens
from precision_search.model.export_worker import ExportJob
from precision_search.model.layout import graph_file
from precision_search.model.snapshot import Snapshot, unchanged
from precision_search.published import load as candidate
from precision_search.published import publish as publish_module
from precision_search.published import seq2seq as generate
from precision_search.run import search as run
from tests.checkpoints import word_tokenizer
from tests.cli_models import fails, invoke
from tests.tiny_model import WORDS, write_sentences, write_tiny_config, write_tiny_model
from tests.told import Told

Change = Callable[[Path], None]


def touched(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replaced(path: Path) -> None:
    other = path.with_name("other")
    shutil.copyfile(path, other)
    other.replace(path)


def deleted(path: Path) -> None:
    path.unlink()


CHANGES = pytest.mark.parametrize("change", [touched, truncated, replaced, deleted])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny model with the weights of its encoder in a file beside it."""
    directory = write_tiny_model(tmp_path / "model")
    path = directory / graph_file("encoder")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="encoder.data", size_threshold=100)
    return directory


FILES = ("config.json", "tokenizer.json", "encoder_model.onnx", "encoder.data", "decoder_with_past_model.onnx")


def after(monkeypatch: pytest.MonkeyPatch, module: object, name: str, change: Callable[[], object]) -> None:
    """Changes something once, when a function that the module uses has returned."""
    function, left = getattr(module, name), [1]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        found = function(*arguments, **options)
        if left:
            left.pop()
            change()
        return found

    monkeypatch.setattr(module, name, wrapped)


def refusal(read: Callable[[], object]) -> InputError:
    with pytest.raises(InputError, match="changed while it was read") as caught:
        read()
    assert "copy" in caught.value.fix
    return caught.value


@CHANGES
@pytest.mark.parametrize("name", FILES)
def test_a_bundle_is_not_opened_from_what_changed_meanwhile(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Change
) -> None:
    after(monkeypatch, bundle_module, "read_model_config", lambda: change(model / name))
    assert name in refusal(lambda: open_bundle(str(model), tmp_path / "cache")).why


def test_nor_where_it_changed_after_hashing_or_appeared(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        after(patch, bundle_module, "_hash_files", lambda: touched(model / "encoder.data"))
        assert refusal(lambda: open_bundle(str(model), tmp_path / "cache")).why == "encoder.data changed"
    after(monkeypatch, bundle_module, "read_model_config", lambda: (model / "tokenizer_config.json").write_text("{}"))
    assert refusal(lambda: open_bundle(str(model), tmp_path / "cache")).why == "tokenizer_config.json changed"


def test_files_that_are_no_part_of_the_model_may_change(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "broken.onnx").write_bytes(b"no graph")
    after(monkeypatch, bundle_module, "read_model_config", lambda: (model / "training.log").write_text("step 7"))
    open_bundle(str(model), tmp_path / "cache").files.check()


@CHANGES
@pytest.mark.parametrize("name", FILES)
def test_a_generator_is_not_made_of_a_mixture(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Change
) -> None:
    after(monkeypatch, generate, "read_model_config", lambda: change(model / name))
    assert name in refusal(lambda: Seq2SeqGenerator.from_pretrained(model, device="cpu")).why


def test_weights_that_change_before_they_are_mapped_are_noticed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after(monkeypatch, generate, "load_published", lambda: replaced(model / "encoder.data"))
    assert refusal(lambda: Seq2SeqGenerator.from_pretrained(model, device="cpu")).why == "encoder.data changed"


def test_verification_of_a_model_that_changes_is_2(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_sentences(tmp_path / "data.txt", 4, 0)
    reference = shutil.copytree(model, tmp_path / "reference")
    after(monkeypatch, candidate, "load_tokenizer", lambda: replaced(model / "encoder.data"))
    message = fails(invoke("verify", model, "--reference", reference, "--data", data, "--device", "cpu", "-q"), 2)
    assert f"the model in {model} changed while it was read" in message
    assert "encoder.data changed" in message


def test_nor_is_a_reference_trusted_that_changes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_sentences(tmp_path / "data.txt", 4, 0)
    reference = shutil.copytree(model, tmp_path / "reference")
    after(monkeypatch, api, "compare", lambda: replaced(reference / "encoder.data"))
    message = fails(invoke("verify", model, "--reference", reference, "--data", data, "--device", "cpu", "-q"), 2)
    assert f"the model in {reference} changed while it was read" in message


@pytest.mark.slow
def test_no_plan_is_judged_and_nothing_published_once_the_model_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_tiny_config(tmp_path, max_trials=4)
    weights = tmp_path / "model" / graph_file("encoder")

    with monkeypatch.context() as patch:
        after(patch, run, "make_strategy", lambda: touched(weights))
        message = fails(invoke("run", config, "--out", tmp_path / "search", "-q"), 2)
    assert "encoder_model.onnx changed" in message
    assert (tmp_path / "search/trials.jsonl").read_bytes() == b""

    after(monkeypatch, publish_module, "check_published", lambda: touched(weights))
    message = fails(invoke("run", config, "--out", tmp_path / "publish", "-q"), 2)
    assert "encoder_model.onnx changed" in message
    names = {path.name for path in (tmp_path / "publish").iterdir()}
    assert not [name for name in names if "model" in name]

    # The same bytes are the same model: the run goes on, and ends as one that nothing disturbed.
    result = invoke("run", config, "--out", tmp_path / "publish", "--resume", "-q")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "publish/model" / graph_file("encoder")).is_file()


@pytest.fixture
def checkpoint(model: Path) -> Path:
    """Looks like a checkpoint until its weights are read."""
    for path in model.glob("*.onnx"):
        path.unlink()
    (model / "model.safetensors").write_bytes(b"weights")
    return model


@CHANGES
def test_an_export_of_a_checkpoint_that_changes_is_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    donor = write_tiny_model(tmp_path / "donor")

    def export(jobs: list[ExportJob]) -> None:
        for job in jobs:
            shutil.copyfile(donor / graph_file(job.graph), job.target)
        change(checkpoint / "model.safetensors")

    monkeypatch.setattr(bundle_module, "run_jobs", export)
    cache = tmp_path / "cache"
    assert "model.safetensors changed" in refusal(lambda: open_bundle(str(checkpoint), cache)).why
    assert list((cache / "bundles").iterdir()) == []


def test_a_child_that_fails_because_the_checkpoint_changed_is_told_by_the_cause(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(jobs: list[ExportJob]) -> None:
        truncated(checkpoint / "model.safetensors")
        raise InputError("cannot load the checkpoint")

    monkeypatch.setattr(bundle_module, "run_jobs", export)
    refusal(lambda: open_bundle(str(checkpoint), tmp_path / "cache"))


def test_the_oracle_is_the_checkpoint_that_was_exported(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor = write_tiny_model(tmp_path / "donor")

    def work(jobs: list[Any]) -> list[Any]:
        if isinstance(jobs[0], ExportJob):
            for job in jobs:
                shutil.copyfile(donor / graph_file(job.graph), job.target)
            return []
        touched(checkpoint / "model.safetensors")
        return [{"tokens": [[1]]}]

    monkeypatch.setattr(bundle_module, "run_jobs", work)
    found = open_bundle(str(checkpoint), tmp_path / "cache")
    refusal(lambda: oracle_tokens(found, ((1,),), tmp_path / "cache"))  # changed while transformers read it
    refusal(lambda: oracle_tokens(found, ((1,),), tmp_path / "cache"))  # and before
    assert not (tmp_path / "cache/oracle").exists()


@pytest.mark.parametrize("broken", ["", "[[1", "7", '[["x"]]', "\0", "[[1]]", "[" * 100_000])
def test_a_broken_answer_in_the_cache_is_asked_for_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    donor = write_tiny_model(tmp_path / "donor")

    def work(jobs: list[Any]) -> list[Any]:
        for job in (job for job in jobs if isinstance(job, ExportJob)):
            shutil.copyfile(donor / graph_file(job.graph), job.target)
        return [{"tokens": [[1]]}]

    monkeypatch.setattr(bundle_module, "run_jobs", work)
    found = open_bundle(str(checkpoint), tmp_path / "cache")
    assert oracle_tokens(found, ((1,),), tmp_path / "cache") == [[1]]
    (stored,) = (tmp_path / "cache/oracle").iterdir()
    written = stored.read_bytes()
    stored.write_text(broken)
    told = Told()
    assert oracle_tokens(found, ((1,),), tmp_path / "cache", reporter=told) == [[1]]
    assert stored.read_bytes() == written
    (warning,) = told.warnings
    assert str(stored) in warning
    assert "again" in warning
    assert oracle_tokens(found, ((1,),), tmp_path / "cache", reporter=told) == [[1]]
    assert len(told.warnings) == 1


def test_an_export_that_finds_no_space_names_the_cache(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(jobs: list[ExportJob]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "run_jobs", export)
    with pytest.raises(EnvironmentProblemError) as caught:
        open_bundle(str(checkpoint), tmp_path / "cache")
    assert str(tmp_path / "cache/bundles") in caught.value.what
    assert "free some space" in caught.value.fix
    assert "`model.cache`" in caught.value.fix
    assert "XDG_CACHE_HOME" in caught.value.fix
    assert list((tmp_path / "cache/bundles").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/secret.safetensors", "sub/a.safetensors", "weights.bin"]
)
def test_an_index_that_names_weights_elsewhere_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {{"shared.weight": "model.safetensors", "lm_head.weight": "{name}"}}}}')
    with pytest.raises(InputError, match="names weights outside its folder") as caught:
        open_bundle(str(checkpoint), tmp_path / "cache")
    assert repr(name) in caught.value.why
    assert "without a path" in caught.value.fix


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', '{"weights": {}}', "[" * 100_000])
def test_a_broken_index_is_refused(checkpoint: Path, tmp_path: Path, text: str) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="does not say where the weights are") as caught:
        open_bundle(str(checkpoint), tmp_path / "cache")
    assert "weight_map" in caught.value.why
    assert "restore" in caught.value.fix


def test_another_index_is_another_model(checkpoint: Path) -> None:
    before = bundle_module._checkpoint_key(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert bundle_module._checkpoint_key(checkpoint) != before


def test_what_was_wrong_all_along_is_told_as_it_is(model: Path) -> None:
    with pytest.raises(ZeroDivisionError), unchanged(model):
        raise ZeroDivisionError
    with unchanged(model / "nowhere"):
        pass
    (model / "tokenizer.json").write_text(word_tokenizer(*WORDS, "more"))
    Snapshot.of(model).check()
