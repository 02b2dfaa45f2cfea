"""What a checkpoint says that its sentences begin with.

In: the `task_specific_params` of a `config.json`. Out: a hint for a person. A prefix is never guessed: a model knows
several tasks, and only people know which one is meant.
"""

from __future__ import annotations

from pathlib import Path

from precision_search.files import read_json
from precision_search.model.samples import SampleSet

_SHOWN = 6
_LONGEST = 80


def known_prefixes(directory: Path) -> tuple[str, ...]:
    """The prefixes of a model's tasks; none where its config names none or cannot be read."""
    try:
        config = read_json(directory / "config.json")
    except (OSError, ValueError):
        return ()
    tasks = config.get("task_specific_params") if isinstance(config, dict) else None
    found = (task.get("prefix") for task in tasks.values() if isinstance(task, dict)) if isinstance(tasks, dict) else ()
    return tuple(dict.fromkeys(each for each in found if isinstance(each, str) and each.strip()))


def prefix_hint(directory: Path, prefix: str, samples: SampleSet) -> str | None:
    """What to tell where a model's tasks have prefixes, none is given, and no sentence begins with one.

    Args:
        directory: the model's.
        prefix: what is put before each sentence.
        samples: the sentences.
    """
    known = () if prefix else known_prefixes(directory)
    if not known or any(sample.text.startswith(known) for sample in samples.samples):
        return None
    shown = ", ".join(f'"{each[:_LONGEST]}"' for each in known[:_SHOWN])
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    how = "calibration.prefix (--prefix)" if samples.name != "data" else "--prefix"
    return f"the model's config.json names the prefixes {shown}{more}; none is given, so set {how} if one belongs there"
