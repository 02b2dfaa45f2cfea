"""A run from a model and sentences alone: the config that somebody would have written, and the sets that it reads.

In: a model, sentences, and what may be said beside them. Out: a config like any other, and the sample sets in memory;
whoever writes the directory that the config names writes the sets there, too.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from precision_search.config import GPUS, Config, WorkloadSection, is_hub_id, parse_config
from precision_search.errors import InputError, UsageError
from precision_search.files import refuse_existing, write_atomically, writing
from precision_search.judging.sample_sets import SetName
from precision_search.model.sample_split import SHARES, largest_share, split_samples
from precision_search.model.samples import Sample, SampleSet, load_samples, sample_set, write_samples
from precision_search.model.work_folder import work_folder
from precision_search.records import run_files
from precision_search.toml_tables import toml_value

_NAMES: tuple[SetName, ...] = ("calibration", "validation", "test")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What may be said beside model and sentences.

    Attributes:
        prefix: put before each sentence.
        workload: the workload that latency refers to.
        gpu: a built-in device profile by name, or a TOML file of that form; None for the one that suits the low dtype.
        overrides: of keys of the config, as `load_config` takes them.
    """

    prefix: str = ""
    workload: WorkloadSection = field(default_factory=WorkloadSection)
    gpu: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FromData:
    """A config and the sets that it reads.

    Attributes:
        config: the config.
        text: the same as TOML with comments; paths of the sets are as they were given.
        samples: the sets; the files that the config names for them are not there yet.
        summary: what became of the sentences, for a person.
    """

    config: Config
    text: str
    samples: Mapping[SetName, SampleSet]
    summary: str


def name_of(model: str) -> str:
    """What runs of a model are called: the last part of its path or hub id."""
    path = Path(model)
    return (path.name if path.name not in ("", ".", "..") else path.resolve().name) or "model"


def run_places(out: Path) -> tuple[Path, Path]:
    """Where a run directory has its config and its sets."""
    return out / run_files.CONFIG_FILE, out.absolute() / run_files.DATA_DIRECTORY


def check_model(model: str) -> None:
    """Raises InputError where `model` can be neither a directory nor a hub id."""
    path = Path(model)
    if path.is_dir() or (is_hub_id(model) and not path.exists()):
        return
    raise InputError(
        f"{model} is no model",
        why="it is a file" if path.exists() else "there is no such directory, and it cannot be a hub id",
        fix="give a checkpoint directory, a directory of ONNX graphs or a hub id; the name of a config ends in .toml",
    )


def read_sets(
    data: Path, validation: Path | None, test: Path | None, column: str | None = None
) -> dict[str, SampleSet]:
    """The sentences of a file, under `data`, and sets that were given beside it, under their names.

    Raises:
        InputError: a file cannot be used.
    """
    files = {"data": data, "validation": validation, "test": test}
    return {name: load_samples(path, name, column) for name, path in files.items() if path is not None}


def sets_of_texts(**texts: Iterable[str] | None) -> dict[str, SampleSet]:
    """Likewise, for sentences in memory: `data`, and `validation` and `test` where they are given.

    Raises:
        InputError: they are no list of texts.
    """
    return {name: _set_of(name, given) for name, given in texts.items() if given is not None}


def _set_of(name: str, texts: Iterable[str]) -> SampleSet:
    what = "sentences" if name == "data" else name
    listed = [] if isinstance(texts, str | bytes) else list(texts)
    wrong = next((each for each in listed if not isinstance(each, str) or not _is_text(each)), None)
    if not listed or wrong is not None:
        raise InputError(
            f"{what} is no list of texts",
            why=f"it holds {wrong!r:.60}" if wrong is not None else f"it is {texts!r:.60}",
            fix="give a list of strings, none of them blank",
        )
    samples = tuple(Sample(text, None, number) for number, text in enumerate(listed, start=1))
    return sample_set(name, Path(what), samples)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text.strip())


def from_data(
    model: str, given: Mapping[str, SampleSet], wishes: Wishes, path: Path, folder: Path, *, relative: bool = False
) -> FromData:
    """Makes the config.

    Args:
        model: checkpoint directory, directory of ONNX graphs, or hub id.
        given: sentences under `data`, and under their names sets that are not split off them.
        wishes: what was said beside them.
        path: where the config will be.
        folder: where the sets will be.
        relative: name them from the config's directory on.

    Raises:
        InputError: there are too few sentences.
        ConfigError: an override is wrong.
        UsageError: an override names other sets.
    """
    check_model(model)
    absolute = str(Path(model).resolve()) if Path(model).is_dir() else model
    files = {name: folder / f"{name}.jsonl" for name in _NAMES}
    search = parse_config(_text(absolute, files, 0.0, wishes, ""), path, wishes.overrides).search
    wishes = replace(wishes, gpu=wishes.gpu or GPUS[search.dtype])
    split = split_samples(given["data"], search.seed, [name for name in SHARES if name not in given])
    sets: dict[SetName, SampleSet] = {name: split[name] if name in split else given[name] for name in _NAMES}
    share = largest_share(len(sets["validation"].samples))
    summary = _summary(given["data"], sets, search.seed)
    shown = {name: file.relative_to(path.parent) for name, file in files.items()} if relative else files
    named = _from_there(model, path) if relative and _is_relative(model) else absolute
    text = _text(named, shown, share, wishes, summary)
    config = parse_config(text, path, wishes.overrides)
    _check_sets(config, files)
    return FromData(config, text, sets, f"{summary}; {_requirement(config, len(sets['validation'].samples))}")


def _from_there(model: str, path: Path) -> str:
    """The directory of a model as a config in the file `path` calls it, never to be taken for a hub id."""
    found = os.path.relpath(model, path.parent)
    return found if found.startswith("..") else f"./{found}"


def _is_relative(model: str) -> bool:
    return Path(model).is_dir() and not Path(model).is_absolute()


def write_config(made: FromData, path: Path, folder: Path) -> None:
    """Writes the config, and the sets into a new folder beside it.

    Raises:
        OutputExistsError: one of the two is there.
        EnvironmentProblemError: they cannot be written.
    """
    for each in (path, folder):
        refuse_existing(each)
    with writing(folder), work_folder(folder.parent, f".{folder.name}-new-") as work:
        for name, samples in made.samples.items():
            write_samples(samples, work / f"{name}.jsonl")
        work.rename(folder)
    try:
        write_atomically(path, made.text.encode())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _text(model: str, files: Mapping[SetName, Path], share: float, wishes: Wishes, summary: str) -> str:
    """The config as TOML."""
    workload = wishes.workload
    sections: dict[str, dict[str, object]] = {
        "model": {"path": model},
        "calibration": {"path": files["calibration"], "prefix": wishes.prefix},
        "validation": {"path": files["validation"], "min_exact_match": share},
        "test": {"path": files["test"]},
        "workload": {
            "batch": workload.batch,
            "source_length": workload.source_length,
            "target_length": workload.target_length,
        },
        "latency": {} if wishes.gpu is None else {"profile": wishes.gpu},
    }
    lines = [f"# Made by precision-search {version('precision-search')}.", *(f"# {line}" for line in [summary] if line)]
    for name, keys in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {toml_value(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def _summary(data: SampleSet, sets: Mapping[SetName, SampleSet], seed: int) -> str:
    different = len({sample.text for sample in data.samples})
    counts = [f"{len(samples.samples)} for {name}" for name, samples in sets.items()]
    repeated = len(data.samples) - different
    left_out = f" ({repeated} repeated)" if repeated else ""
    return f"{different} different sentences{left_out}, split by the seed {seed}: {', '.join(counts)}"


def _requirement(config: Config, count: int) -> str:
    share = config.min_exact_match
    needed = math.ceil(share * count - 1e-9)
    return f"a winner must keep {needed} of {count} validation samples (min_exact_match = {share:.6g})"


def _check_sets(config: Config, files: Mapping[SetName, Path]) -> None:
    """The sets are those of the sentences, whatever an override says."""
    sections = {"calibration": config.calibration, "validation": config.validation, "test": config.test}
    for name in _NAMES:
        section = sections[name]
        if section is None or section.path != files[name].resolve():
            raise UsageError(
                f"an override sets {name}.path",
                why="the sets of this run are made of the given sentences",
                fix=f"give --{name} FILE" if name != "calibration" else "give the sentences with --data",
            )
