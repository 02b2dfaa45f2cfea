"""The config file: TOML in, frozen dataclasses out.

The dataclasses are the specification, tables and keys with their types, defaults, limits and meaning; the reference in
the docs is made of them, and `toml_tables` reads and writes whatever is declared here. A new key is one new field.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from precision_search.errors import ConfigError
from precision_search.toml_tables import (
    absolute_path,
    at_least,
    between,
    more_than,
    one_of,
    only,
    read_tables,
    without_blanks,
    write_tables,
)

MOST_THREADS = 1024
"""Every session makes as many: a number far beyond the cores of any machine ends the process."""

MOST = 10**6
"""Of samples and tokens at once: more than any machine holds, and products of them still fit into an int64."""

MOST_DEVICES = 1023
MOST_GIB = 2**20
"""Beyond these, CUDA and ONNX Runtime would say so in words that help nobody."""

STRATEGIES = ("nodes", "op-types", "exhaustive", "random")

OVERRIDES = ("num_beams", "do_sample", "no_repeat_ngram_size", "repetition_penalty")
"""Keys of [generation] that set what a model's generation config asks for to the value of greedy decoding."""

GPUS: Mapping[str, str] = {"float16": "t4", "bfloat16": "a10g"}
"""The device profile that is estimated for where nobody says, by low dtype. T4 has no bfloat16."""

OnMiss = Literal["fp32", "calmest"]

RUNS = Path("runs")
"""Where run directories are made if nobody says."""

FORMER_RUNS = Path("artifacts/runs")
"""Where they were made before, and the demo's still are: looked at, too, where one is looked for."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# A key that [validation] or [test] lacks is taken from [calibration]: the three feed the same model.
PARENTS = {"validation": "calibration", "test": "calibration"}


def new_run(name: str) -> Path:
    """The default run directory for a config of that name, by the time in UTC."""
    return RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


def default_cache() -> Path:
    """Where exports are kept if nobody says: the user's cache directory.

    Raises:
        ConfigError: this user has none.
    """
    # The XDG base directory specification says that relative values are invalid and must be ignored.
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if root.is_absolute():
        return root / "precision-search"
    try:
        return Path.home() / ".cache" / "precision-search"
    except RuntimeError as error:
        raise ConfigError(
            "there is no place for the export cache",
            why=f"model.cache is not set and this user has no home directory ({error})",
            fix='write, under [model]: cache = "some/directory"; or set XDG_CACHE_HOME to an absolute path',
        ) from error


def _directory_or_hub_id(text: str, base: Path) -> str:
    if text.startswith(("./", "../", "/", "~")) or text in {".", ".."} or (text.strip() and (base / text).is_dir()):
        return str(absolute_path(text, base))
    if not is_hub_id(text):
        raise ValueError(f"a directory (there is none of that name in {base}) or a hub id such as google-t5/t5-small")
    return text


def is_hub_id(text: str) -> bool:
    """Whether a repository on the Hub can be called so."""
    return _HUB_ID.fullmatch(text) is not None


def _name_or_file(text: str, base: Path) -> str:
    is_name = re.fullmatch(r"[\w-]+", text) is not None
    return text if is_name else str(absolute_path(text, base))


@dataclass(frozen=True, slots=True)
class ModelSection:
    """What is searched.

    Attributes:
        path: a checkpoint directory, a directory with the three ONNX files, or a hub id. A relative one is a directory
            if there is one of that name or if it starts with `./` or `../`, else a hub id.
        cache: the folder that exports are kept in, by default `$XDG_CACHE_HOME/precision-search`, or
            `~/.cache/precision-search` where the variable is not set.
    """

    path: str = field(metadata={"resolve": _directory_or_hub_id})
    cache: Path = field(default_factory=default_cache)


@dataclass(frozen=True, slots=True)
class DataSection:
    """A file of sentences, what to put before each, and how to batch them.

    Attributes:
        path: text with one sentence a line, or by its suffix a file with columns: `.jsonl`, `.csv`, `.tsv`, `.parquet`.
        column: which of them holds the sentences. Without it exactly one of `input`, `text` and `source` must be there.
        prefix: put before each sentence, such as `translate English to German: `.
        max_length: longest source in tokens, the end token included; longer ones are cut. Without it the model's limit.
        batch_size: sentences at once.
    """

    path: Path
    column: str | None = None
    prefix: str = ""
    max_length: int | None = field(default=None, metadata=at_least(1, MOST))
    batch_size: int = field(default=16, metadata=at_least(1, MOST))


@dataclass(frozen=True, slots=True)
class ValidationSection(DataSection):
    """Unfiltered sentences, from which flip risk is estimated, and the share of them that a winner must keep.

    Attributes:
        min_exact_match: the share of sentences on which the winner must give exactly the tokens of fp32.
        on_miss: what is published where no plan keeps that share: `fp32`, or the `calmest` stable plan, the one with
            the least flip risk.
    """

    min_exact_match: float = field(default=0.99, metadata=between(0.0, 1.0))
    on_miss: OnMiss = "fp32"


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a winner must keep, and what is chosen where no plan does.

    Attributes:
        share: of the validation samples, 0 to 1; 0 where nothing is required.
        on_miss: see `ValidationSection`.
    """

    share: float = 0.0
    on_miss: OnMiss = "fp32"


NOTHING_REQUIRED = Requirement()


@dataclass(frozen=True, slots=True)
class GenerationSection:
    """How far is generated, and what of the model's generation config gives way to greedy decoding.

    Plans are judged by the tokens of greedy decoding. A model whose generation config asks for something else is
    refused until the key of that name says here that greedy decoding is meant; each such key takes that one value.

    Attributes:
        max_new_tokens: most tokens of a target, the end token included. Without it what the model's generation config
            says.
        num_beams: 1 decodes without beams, whatever the model's generation config says.
        do_sample: `false` takes the best token instead of drawing one, likewise.
        no_repeat_ngram_size: 0 lets n-grams come again, likewise.
        repetition_penalty: 1.0 lets tokens come again at no cost, likewise.
    """

    max_new_tokens: int | None = field(default=None, metadata=at_least(1, MOST))
    num_beams: int | None = field(default=None, metadata=only(1, "1"))
    do_sample: bool | None = field(default=None, metadata=only(False, "false"))
    no_repeat_ngram_size: int | None = field(default=None, metadata=only(0, "0"))
    repetition_penalty: float | None = field(default=None, metadata=only(1.0, "1.0"))

    @property
    def overrides(self) -> Mapping[str, object]:
        """What replaces values of the model's generation config."""
        values = {name: getattr(self, name) for name in OVERRIDES}
        return {name: value for name, value in values.items() if value is not None}


GREEDY = GenerationSection(num_beams=1, do_sample=False, no_repeat_ngram_size=0, repetition_penalty=1.0)
"""Greedy decoding, whatever a model asks for: where nothing but a model is given."""


@dataclass(frozen=True, slots=True)
class DeviceSection:
    """Where sessions run.

    Attributes:
        kind: `auto` is CUDA where one node runs on it, else the CPU; with `cuda` there is never a silent CPU fallback.
        id: which CUDA device, of those that `CUDA_VISIBLE_DEVICES` leaves.
        use_tf32: whether fp32 products on CUDA may round their factors to TF32. It keeps 10 mantissa bits, as fp16
            does, and is no reference.
        threads: threads within an operator on the CPU. Without it the runtime's choice, all cores.
        gemm_options: bits of ONNX Runtime's `ORT_CUDA_GEMM_OPTIONS`, for fp16 products on CUDA: 1 sums in fp16, 2 joins
            partial sums in fp32 only, 4 is pedantic. Emulation assumes 2.
        memory_limit: GiB (2^30 bytes) of device memory that all sessions and buffers take together; CUDA's context and
            workspaces come on top.
    """

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    id: int = field(default=0, metadata=at_least(0, MOST_DEVICES))
    use_tf32: bool = False
    threads: int | None = field(default=None, metadata=between(1, MOST_THREADS))
    gemm_options: int = field(default=2, metadata=between(0, 7))
    memory_limit: float | None = field(default=None, metadata=more_than(0, MOST_GIB))


@dataclass(frozen=True, slots=True)
class SearchSection:
    """The low dtype, how plans are proposed, and when to stop.

    Attributes:
        dtype: the low dtype.
        strategy: `nodes` decides node by node, `op-types` whole op types, `exhaustive` judges all subsets of op types,
            `random` draws some of them.
        seed: of everything random; numpy's generators take no more.
        max_trials: plans to judge, at most.
        timeout: seconds after which no further plan is judged.
        keep_fp32: op types, or patterns over node keys (regular expressions that match a whole key), that stay in fp32
            in every plan.
        force_low: likewise, what is low in every plan, whatever its range.
        range_safety: a node whose fp32 values exceed the low dtype's largest number divided by this stays in fp32
            first.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    strategy: str = field(default="nodes", metadata=one_of(STRATEGIES))
    seed: int = field(default=0, metadata=between(0, 2**32 - 1))
    max_trials: int = field(default=200, metadata=at_least(1))
    timeout: float | None = field(default=None, metadata=more_than(0))
    keep_fp32: tuple[str, ...] = field(default=(), metadata=without_blanks())
    force_low: tuple[str, ...] = field(default=(), metadata=without_blanks())
    range_safety: float = field(default=2.0, metadata=at_least(1.0))


@dataclass(frozen=True, slots=True)
class WorkloadSection:
    """The workload that latency refers to.

    Attributes:
        batch: sentences in a batch.
        source_length: tokens of each source.
        target_length: tokens of each target.
    """

    batch: int = field(default=1, metadata=at_least(1, MOST))
    source_length: int = field(default=128, metadata=at_least(1, MOST))
    target_length: int = field(default=128, metadata=at_least(1, MOST))


@dataclass(frozen=True, slots=True)
class LatencySection:
    """What estimates are made with.

    Attributes:
        profile: a built-in device profile by name (`t4`, `a10g`, `l4`, `a100`, `h100`) or a TOML file of that form,
            used where no CUDA device measures.
    """

    profile: str = field(default=GPUS["float16"], metadata={"resolve": _name_or_file})


@dataclass(frozen=True, slots=True)
class Config:
    """A whole config, every value checked and every path absolute.

    `name` and `path` say where it came from and take no part in comparisons, so that the resolved copy in a run
    directory equals its source.

    Attributes:
        name: the file's stem.
        path: the file.
        model: what is searched.
        calibration: sentences on which a stable plan gives exactly the tokens of fp32.
        validation: unfiltered sentences, of which a winner keeps a share and from which flip risk is estimated.
        test: sentences that choose nothing; what is reported of the winner comes from them.
        generation: how far is generated.
        device: where sessions run.
        search: the low dtype, how plans are proposed, and when to stop.
        workload: the workload that latency refers to.
        latency: what estimates are made with.
    """

    name: str = field(compare=False)
    path: Path = field(compare=False)
    model: ModelSection
    calibration: DataSection
    validation: ValidationSection | None
    test: DataSection | None
    generation: GenerationSection
    device: DeviceSection
    search: SearchSection
    workload: WorkloadSection
    latency: LatencySection

    @property
    def min_exact_match(self) -> float:
        """Share of the validation samples that a winner must keep; 0 without validation."""
        return self.requirement.share

    @property
    def requirement(self) -> Requirement:
        """What a winner must keep; nothing without validation."""
        found = self.validation
        return NOTHING_REQUIRED if found is None else Requirement(found.min_exact_match, found.on_miss)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Reads, checks and resolves the config file `path`.

    `overrides` are `table.key=value` with a TOML value or a bare word; they win over the file. Relative paths in the
    file are relative to its directory, those in overrides to the working directory.

    Raises ConfigError for a file that cannot be read or parsed, an unknown table or key, a missing required key, a
    value of the wrong type or out of range, and an op type pinned both ways. Whether data and model exist is for
    those who read them.
    """
    return _config(Path(path), overrides, None)


def parse_config(text: str, path: Path, overrides: Sequence[str] = ()) -> Config:
    """Likewise, from the text of a config that will be in the file `path`."""
    return _config(path, overrides, text)


def _config(path: Path, overrides: Sequence[str], text: str | None) -> Config:
    tables = read_tables(Config, path, overrides, PARENTS, text)
    both = sorted(set(tables["search"].keep_fp32) & set(tables["search"].force_low))
    if both:
        raise ConfigError(
            "`search.keep_fp32` and `search.force_low` contradict each other",
            why=f"both name {', '.join(both)} (in {path} or an override)",
            fix="remove it from one of the two",
        )
    return Config(name=path.stem, path=path.resolve(), **tables)


def to_toml(config: Config) -> str:
    """Writes `config` as TOML that `load_config` reads back, from any directory, to an equal Config."""
    return write_tables(config)
