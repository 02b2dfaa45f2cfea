"""The same T5 with its residual stream scaled by a power of two: the same function, other magnitudes.

What feeds the stream (embeddings, attention `o`, `wo`) is multiplied, in encoder and decoder. Norms read the stream
relative to its own size, so nothing else notices, except for logits from tied embeddings, which the final decoder norm
makes up for by the inverse. A power of two changes exponents only. What is not scale-free is the norm's epsilon: where
the stream's mean square is so small that the epsilon reaches its last bit, results differ in theirs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from precision_search.errors import InputError
from precision_search.model.hf_files import hf_files

WEIGHTS = "model.safetensors"
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
INTO_THE_STREAM = (".o.weight", ".wo.weight")
FINAL_NORM, OWN_PROJECTION = "decoder.final_layer_norm.weight", "lm_head.weight"

Tensors = Mapping[str, npt.NDArray[np.float32]]


def scaled_checkpoint(source: Path, power: int, work: Path) -> Path:
    """The directory of the checkpoint with its stream multiplied by 2 to the `power`; `source` itself for 0.

    It is written below `work` and used again when it is there; its name does not tell sources apart.

    Raises:
        InputError: the checkpoint is not one fp32 `model.safetensors` of a T5, or its weights cannot be scaled exactly.
    """
    if power == 0:
        return source
    target = work / scale_name(power)
    if not target.is_dir():
        scaled = scale_stream(_read(source / WEIGHTS), power)
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            fresh = Path(folder) / target.name
            fresh.mkdir()
            for name in hf_files():
                if (source / name).is_file():
                    shutil.copyfile(source / name, fresh / name)
            save_file(dict(scaled), fresh / WEIGHTS, metadata={"format": "pt"})
            fresh.rename(target)
    return target


def scale_stream(tensors: Tensors, power: int) -> Tensors:
    """The weights by name, those that feed the residual stream multiplied.

    Raises:
        InputError: no T5, or a product that is not exact because it leaves fp32's range.
    """
    if "shared.weight" not in tensors or FINAL_NORM not in tensors:
        raise InputError("the checkpoint is not a T5", why=f"it has no shared.weight or no {FINAL_NORM}")
    scaled = {}
    for name, values in tensors.items():
        change = _change(name, power, tied=OWN_PROJECTION not in tensors)
        with np.errstate(over="ignore", under="ignore"):
            scaled[name] = np.ldexp(values, change)
            exact = np.array_equal(np.ldexp(scaled[name], -change), values)
        if not exact:
            raise InputError(f"{name} cannot be multiplied by 2^{change}", why="some product leaves the range of fp32")
    return scaled


def scale_name(power: int) -> str:
    """The factor as text, such as `2^-6`; `1` for none."""
    return f"2^{power}" if power else "1"


def _change(name: str, power: int, *, tied: bool) -> int:
    if name in EMBEDDINGS or name.endswith(INTO_THE_STREAM):
        return power
    return -power if tied and name == FINAL_NORM else 0


def _read(path: Path) -> Tensors:
    if not path.is_file():
        raise InputError(f"there is no {path}", why="only checkpoints of a single file are scaled")
    with safe_open(path, "numpy") as file:
        names = file.keys()
        if other := sorted({str(file.get_slice(name).get_dtype()) for name in names} - {"F32"}):
            raise InputError(f"{path} holds {', '.join(other)}", why="only fp32 weights are scaled exactly here")
        return {name: file.get_tensor(name) for name in names}
