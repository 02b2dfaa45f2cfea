"""What rejected landmarks make of sentences: which are shown, where they part, and the file of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_search.config import DataSection, Requirement
from precision_search.display.html.sentences import Text, shown_landmarks
from precision_search.errors import InputError
from precision_search.judging import landmarks
from precision_search.judging.landmarks import AT_ONCE, SHOWN, Landmark, Span, rejected_landmarks, show_landmark
from precision_search.judging.sample_sets import LoadedSet, SampleRows
from precision_search.model.samples import Sample, SampleSet
from precision_search.records.landmarks_json import LANDMARKS_FILE, are_there, read_landmarks, write_landmarks
from precision_search.records.pareto_table import pareto_table
from precision_search.records.run_files import read_run
from precision_search.run import search as run_module
from precision_search.runtime.batch_limit import BatchLimit
from precision_search.runtime.reference import Reference
from tests.cli_models import invoke
from tests.output_models import small_run
from tests.report_models import differing
from tests.search_models import trial
from tests.tiny_model import write_tiny_config

EOS = 1
PIECES: Mapping[int, str] = {EOS: "", 2: " ", 3: " Haus", 4: "boot", 5: " Garten", 6: " im", 7: " klein", 8: ""}
Tokens = tuple[int, ...]


def decode(tokens: Sequence[int]) -> str:
    """As sentence pieces are joined: the space before the first one is dropped."""
    return "".join(PIECES[token] for token in tokens).strip()


def shown(
    monkeypatch: pytest.MonkeyPatch, wanted: Sequence[Tokens], found: Sequence[Tokens], nonfinite: Sequence[int] = ()
) -> Landmark:
    """What is shown of a landmark that makes `found` where fp32 makes `wanted`."""
    count = len(wanted)
    rows = tuple((number,) for number in range(count))
    sources = tuple(Sample(f"source {number}", None, number + 1) for number in range(count))
    margins = tuple(np.full(len(tokens), 0.5, np.float32) for tokens in wanted)
    calibration = LoadedSet(
        SampleSet("calibration", Path("c.txt"), sources, "hash", ()),
        SampleRows(rows, Reference(tuple(wanted), margins)),
        0,
        DataSection(Path("c.txt")),
    )

    def generate(generator: object, part: Sequence[Tokens], pad: int, size: int) -> Any:
        numbers = [row[0] for row in part]
        return tuple(found[n] for n in numbers), np.array([n in nonfinite for n in numbers])

    monkeypatch.setattr(landmarks, "generate_all", generate)
    generator: Any = None
    return show_landmark(trial(1), generator, calibration, decode, pad=0, limit=BatchLimit())


def marked(text: str, span: Span | None) -> str | None:
    return None if span is None else f"{text[: span.start]}[{text[span.start : span.end]}]{text[span.end :]}"


@pytest.mark.parametrize(
    ("wanted", "found", "reference", "model"),
    [
        ((7, 3, EOS), (7, 5, EOS), "klein [Haus]", "klein [Garten]"),
        ((3, 4, EOS), (3, EOS), "Haus[boot]", "Haus[]"),
        ((3, EOS), (3, 6, 5, EOS), "Haus[]", "Haus [im] Garten"),
        ((3, 6, EOS), (2, 4, 6, EOS), "[Haus] im", "[boot] im"),
        ((3, EOS), (8, 8, 8), "[Haus]", "[]"),
    ],
    ids=["another word", "ends early", "goes on", "a token that is only space", "no text at all"],
)
def test_the_first_differing_token_is_marked(
    monkeypatch: pytest.MonkeyPatch, wanted: Tokens, found: Tokens, reference: str, model: str
) -> None:
    (sample,) = shown(monkeypatch, [wanted], [found]).samples

    assert marked(sample.sample.reference, sample.reference) == reference
    assert marked(sample.sample.model, sample.model) == model
    assert sample.tokens == len(found)


def test_a_value_that_is_not_finite_differs_though_no_token_does(monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = shown(monkeypatch, [(3, EOS)], [(3, EOS)], nonfinite=[0]).samples

    assert sample.sample.nonfinite
    assert (sample.reference, sample.model) == (None, None)


def test_the_first_that_differ_are_shown_and_no_more_is_generated_than_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted: list[Tokens] = [(3, EOS)] * 50
    found: list[Tokens] = [(5 if number % 2 else 3, EOS) for number in range(50)]

    landmark = shown(monkeypatch, wanted, found)

    assert [sample.sample.index for sample in landmark.samples] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert (len(landmark.samples), landmark.generated) == (SHOWN, 2 * AT_ONCE)


def test_a_landmark_that_breaks_little_is_looked_at_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    landmark = shown(monkeypatch, [(3, EOS)] * 20, [*[(3, EOS)] * 19, (5, EOS)])

    assert [sample.sample.index for sample in landmark.samples] == [19]
    assert landmark.generated == 20


def test_only_landmarks_whose_tokens_differ_are_shown() -> None:
    odd = (trial(7, stage="given", verdict="error"), trial(8, stage="cut", verdict="mismatch"))

    assert [found.stage for found in rejected_landmarks((*small_run(), *odd))] == ["all-low", "classic"]


def test_the_file_is_read_back_and_is_stale_where_others_were_rejected(tmp_path: Path) -> None:
    rejected = rejected_landmarks(small_run())
    assert not are_there(tmp_path, rejected)

    write_landmarks(tmp_path, 100, "emulated", [Landmark(found.id, 8, (differing(),)) for found in rejected])

    assert read_landmarks(tmp_path).landmarks[1] == Landmark(2, 8, (differing(),))
    assert are_there(tmp_path, rejected)
    assert not are_there(tmp_path, rejected[:1])
    (tmp_path / LANDMARKS_FILE).write_text("{}")
    assert not are_there(tmp_path, rejected)
    with pytest.raises(InputError, match=r"landmarks\.json is not the record of a run's landmarks"):
        read_landmarks(tmp_path)


# In words


def words(tmp_path: Path, *landmarks: Landmark) -> Any:
    write_landmarks(tmp_path, 100, "emulated", landmarks)
    rejected = pareto_table(small_run(), Requirement(0.98), every=True).rejected
    return shown_landmarks(read_landmarks(tmp_path), {row.trial.id: row for row in rejected})


def test_a_landmark_says_how_many_differ_and_which_are_shown(tmp_path: Path) -> None:
    many, few, none = words(
        tmp_path, Landmark(1, 8, (differing(),) * SHOWN), Landmark(2, 100, (differing(),)), Landmark(6, 100, ())
    )

    assert many.summary.startswith("8 of 8 calibration samples differ (0.0% exact); shown are the first 8 in the order")
    assert "generated freely, 1 of 100 do. By the screen: nonfinite from token 1 of sample 43" in few.summary
    assert "generated freely, none of 100 do" in none.summary


def test_texts_come_apart_at_the_mark(tmp_path: Path) -> None:
    (landmark,) = words(tmp_path, Landmark(1, 8, (differing(), differing(model=""))))

    assert landmark.pairs[0].reference == Text("ein ", "Satz", "")
    assert landmark.pairs[0].note == "they part at token 2, which fp32 chose by a margin of 0.5"
    assert landmark.pairs[1].model == Text("", "", "", "4 tokens without text")


# In a run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a config whose landmarks break, and its run in `run`."""
    folder = tmp_path_factory.mktemp("tiny")
    config = write_tiny_config(folder, max_trials=5)
    result = invoke("run", config, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert f"report: {folder / 'run' / 'report.html'}\n" in result.stderr
    yield folder


def resume(folder: Path) -> None:
    result = invoke("run", folder / "tiny.toml", "--out", folder / "run", "--resume")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_run_shows_what_its_rejected_landmarks_make_of_sentences(tiny: Path) -> None:
    found = read_landmarks(tiny / "run")
    rejected = rejected_landmarks(read_run(tiny / "run").trials)

    assert rejected
    assert [landmark.id for landmark in found.landmarks] == [trial.id for trial in rejected]
    sources = (tiny / "calibration.txt").read_text().splitlines()
    for landmark in found.landmarks:
        assert landmark.samples
        for shown in landmark.samples:
            assert shown.sample.source == sources[shown.sample.index] == sources[shown.sample.line - 1]
            assert shown.sample.nonfinite or shown.model is not None
    html = (tiny / "run" / "report.html").read_text()
    assert found.landmarks[0].samples[0].sample.source in html


@pytest.mark.slow
def test_a_resumed_run_keeps_the_file_or_makes_the_same_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny / "run" / LANDMARKS_FILE
    before = file.read_bytes()
    file.unlink()
    resume(tiny)
    assert file.read_bytes() == before

    def never(*_: object, **__: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(run_module, "show_landmark", never)
    resume(tiny)
    assert file.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["write_report", "show_landmark"])
def test_a_run_is_complete_without_what_is_only_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(run_module, name, broken)
    result = invoke("run", write_tiny_config(tmp_path, max_trials=4), "--out", tmp_path / "run")

    assert result.exit_code == 0, result.output
    assert "could not be written: RuntimeError('a bug')" in result.stderr
    assert read_run(tmp_path / "run").info.status == "complete"
    assert (tmp_path / "run" / "model").is_dir()
    assert (tmp_path / "run" / "report.html").exists() == (name != "write_report")


@pytest.mark.slow
def test_a_given_plan_that_breaks_is_shown_too(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "low.json").write_text('{"op_types": {"encoder": ["Softmax"]}}')
    invoke("run", tiny / "tiny.toml", "--out", tmp_path / "run", "--blocklist", tmp_path / "low.json")

    found = read_landmarks(tmp_path / "run").landmarks

    stages = {trial.id: trial.stage for trial in read_run(tmp_path / "run").trials}
    assert [stages[landmark.id] for landmark in found] == ["given"]
    assert found[0].samples


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_test", "show_landmark"])
def test_an_interrupted_run_has_a_report_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A run whose model is written is complete: what comes after it is for readers."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, name, interrupted)
    result = invoke("run", write_tiny_config(tmp_path, max_trials=4), "--out", tmp_path / "run")

    html = (tmp_path / "run" / "report.html").read_text()
    assert "Nothing was generated" in html
    if name == "_test":
        assert result.exit_code == 130, result.output
        assert "This run was interrupted after 4 plans" in html
    else:
        assert result.exit_code == 0, result.output
        assert "was not written: interrupted" in result.stderr
        assert "interrupted after" not in html
        assert read_run(tmp_path / "run").info.status == "complete"
        assert (tmp_path / "run/model/precision_search.json").is_file()
