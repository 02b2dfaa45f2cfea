"""A run from a model and a file of sentences: what it makes of them, how it goes on, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import precision_search
from precision_search import api
from precision_search.config import load_config
from precision_search.errors import EnvironmentProblemError, InputError
from precision_search.model.samples import load_samples
from tests.cli_models import DEMO, fails, invoke, raiser
from tests.tiny_model import write_sentences, write_tiny_model

FEW = ("--set", "search.strategy=op-types", "--set", "search.max_trials=3", "--set", "device.threads=1")
OPTIONS = ("--batch", "4096", *FEW)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and sentences; default directories are relative to it."""
    write_tiny_model(tmp_path / "tiny")
    write_sentences(tmp_path / "data.txt", 60, 0)
    with (tmp_path / "data.txt").open("a") as file:
        file.write((tmp_path / "data.txt").read_text().splitlines()[0] + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(path: Path) -> list[str]:
    return [sample.text for sample in load_samples(path, "data").samples]


def split(run: Path) -> dict[str, list[str]]:
    return {name: texts(run / "data" / f"{name}.jsonl") for name in ("calibration", "validation", "test")}


def test_a_model_and_a_file_are_a_run_that_can_be_run_again() -> None:
    result = invoke("run", "tiny", "--data", "data.txt", *OPTIONS)

    (run,) = Path("runs").iterdir()
    assert result.exit_code in (0, 1), result.output
    assert run.name.startswith("tiny-")
    sets = split(run)
    together = [text for found in sets.values() for text in found]
    assert sorted(together) == sorted(set(texts(Path("data.txt"))))
    count = len(together)
    assert f"{count} different sentences ({61 - count} repeated), split by the seed 0" in result.stderr
    needed = len(sets["validation"]) - 1
    assert f"a winner must keep {needed} of {needed + 1} validation samples" in result.stderr
    assert "in the calibration set, too" not in result.stderr
    assert "repeat others" not in result.stderr
    config = load_config(run / "config.toml")
    assert config.min_exact_match < 1.0
    assert (config.workload.batch, config.search.max_trials) == (4096, 3)

    more = ("--set", "search.max_trials=4")
    fails_before = len((run / "trials.jsonl").read_text().splitlines())
    for again in (("tiny", "--data", "data.txt", *OPTIONS, *more), (run / "config.toml", "--out", run, *more)):
        assert invoke("run", *again, "--resume").exit_code in (0, 1)
    assert len((run / "trials.jsonl").read_text().splitlines()) == fails_before + 1

    Path("data.txt").write_text("a b\nc d\ne f\n")
    assert "changed since it began" in invoke("run", "tiny", "--data", "data.txt", *OPTIONS, "--resume").stderr


def test_a_written_config_runs_the_same(folder: Path) -> None:
    made = invoke("init", "tiny", "--data", "data.txt", "-o", "sub/my.toml", "--batch", "4096", "--gpu", "a100")

    assert (made.exit_code, made.stdout) == (0, "sub/my.toml\n")
    (folder / "sub").rename(folder / "other")  # paths are relative to the config
    config = load_config("other/my.toml")
    plain = invoke("run", "tiny", "--data", "data.txt", "--batch", "4096", "--gpu", "a100", *FEW, "--dry-run")
    assert plain.exit_code == 0
    written = invoke("run", "other/my.toml", *FEW, "--dry-run")
    assert written.stdout.split("# ", 1)[1] == plain.stdout.split("# ", 1)[1]
    assert config.latency.profile == "a100"
    assert not Path("runs").exists()


def test_init_takes_no_other_file_s_place() -> None:
    assert invoke("init", "tiny", "--data", "data.txt").exit_code == 0
    assert "tiny.toml already exists" in fails(invoke("init", "tiny", "--data", "data.txt"), 2)
    Path("tiny.toml").unlink()
    assert "tiny-data already exists" in fails(invoke("init", "tiny", "--data", "data.txt"), 2)
    assert "does not end in .toml" in fails(invoke("init", "tiny", "--data", "data.txt", "-o", "my.cfg"), 2)


def test_a_config_that_cannot_be_written_leaves_no_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "precision_search.run.from_data.write_atomically"
    monkeypatch.setattr(module, raiser(EnvironmentProblemError("the disk is full")))

    fails(invoke("init", "tiny", "--data", "data.txt"), 3)
    assert not list(Path().glob("tiny-*"))


def test_sets_can_be_given_and_columns_are_read(folder: Path) -> None:
    Path("data.csv").write_text("id,de\n" + "".join(f"{n},{t}\n" for n, t in enumerate(texts(Path("data.txt")))))
    Path("val.csv").write_text("id,de\n1,a b c\n2,c d\n")
    Path("new.tsv").write_text("de\nd e\n")
    given = ("--validation", "val.csv", "--test", "new.tsv", "--column", "de", "--prefix", "a ")

    assert invoke("init", "tiny", "--data", "data.csv", *given).exit_code == 0
    config = load_config("tiny.toml")
    assert texts(config.calibration.path) == list(dict.fromkeys(texts(Path("data.txt"))))
    assert config.validation is not None and config.test is not None
    assert (texts(config.validation.path), texts(config.test.path)) == (["a b c", "c d"], ["d e"])
    assert config.min_exact_match == 0.5
    assert {each.prefix for each in (config.calibration, config.validation, config.test)} == {"a "}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "tiny"), "there are no sentences to judge tiny by"),
        (("init", "tiny"), "there are no sentences to judge tiny by"),
        (("run", "data.txt"), "data.txt is no config"),
        (("run", "data.txt", "--data", "data.txt"), "it is a file"),
        (("run", "no/such/model", "--data", "data.txt"), "no/such/model is no model"),
        (("run", "tiny", "--data", "absent.txt"), "absent.txt does not exist"),
        (("run", "tiny", "--data", "two.txt"), "two.txt has 2 different sentences for 3 sets"),
        (("run", "tiny", "--data", "two.txt", "--column", "x", "--gpu", "t5"), "different sentences"),
        (("run", "tiny", "--data", "data.txt", "--gpu", "t5"), "t5"),
        (("run", "tiny", "--data", "data.txt", "--batch", "0"), "--batch"),
        (("run", "tiny", "--data", "data.txt", "--set", "test.path=two.txt"), "an override sets test.path"),
        (("run", "tiny", "--data", "data.txt", "--set", "calibration.path=two.txt"), "calibration.path"),
        (("run", "tiny", "--data", "data.txt", "--resume"), "there is no run of tiny to resume"),
        (("run", str(DEMO), "--data", "data.txt"), "--data goes with a model, not with a config"),
        (("run", str(DEMO), "--source-length", "7"), "--source-length goes with a model, not with a config"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(arguments: tuple[str, ...], message: str) -> None:
    Path("two.txt").write_text("a b\nc d\na b\n")

    assert message in fails(invoke(*arguments), 2)
    assert not Path("runs").exists()


def test_an_interrupted_run_goes_on_from_its_own_config(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(config: Any, out: Path, **options: Any) -> None:
        out.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "search", search)

    message = fails(invoke("run", "tiny", "--data", "data.txt", "--out", "mine", *FEW), 130)
    assert "precision-search run mine/config.toml --out mine --resume\n" in message


def test_the_default_profile_suits_the_low_dtype() -> None:
    result = invoke("run", "tiny", "--data", "data.txt", *FEW, "--set", "search.dtype=bfloat16", "--dry-run")

    assert 'profile = "a10g"' in result.stdout


def test_a_prefix_of_the_checkpoint_is_named_and_not_used(folder: Path) -> None:
    config = json.loads((folder / "tiny/config.json").read_text())
    config["task_specific_params"] = {"translation": {"prefix": "translate: "}}
    (folder / "tiny/config.json").write_text(json.dumps(config))

    result = invoke("run", "tiny", "--data", "data.txt", *FEW, "--dry-run")
    assert 'names the prefixes "translate: "' in result.stderr
    assert 'prefix = ""' in result.stdout


def test_python_does_the_same(folder: Path) -> None:
    sentences = texts(Path("data.txt"))
    overrides = ["search.strategy=op-types", "search.max_trials=3", "device.threads=1"]

    result = precision_search.optimize("tiny", iter(sentences), batch=4096, overrides=overrides)

    assert result.directory.parent == Path("runs")
    assert sorted(text for found in split(result.directory).values() for text in found) == sorted(set(sentences))
    assert len(result.trials) == 3


@pytest.mark.parametrize(
    ("sentences", "why"),
    [
        ("a text", "'a text'"),
        ([], "[]"),
        (["a", 3, "b"], "it holds 3"),
        (["a", " "], "' '"),
        (["a", "\ud800"], "ud800"),
    ],
)
def test_python_refuses_what_is_no_list_of_texts(sentences: Any, why: str) -> None:
    with pytest.raises(InputError, match="sentences is no list of texts") as caught:
        precision_search.optimize("tiny", sentences)
    assert why in caught.value.why
