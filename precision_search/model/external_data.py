"""Where the external data of an ONNX file lie: beside it, as it is called or as it really is, and nowhere else.

In: an ONNX file and the tensors that were read from it. Out: the files that hold their numbers, or the error that says
what is wrong with one. In a cache of the Hub every file of a model is a link into a folder of blobs, the ONNX file and
its data alike; in any other folder a link or a `../` that leaves it may lead to a file of somebody else's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from precision_search.errors import InputError


def data_file(path: Path, location: str) -> Path:
    """The file that an ONNX file means by a location: beside it, else beside the file that it is a link to."""
    beside = path.parent / location
    if path.is_symlink() and not os.path.lexists(beside):
        return path.resolve().parent / location
    return beside


def check_external_data(tensors: Iterable[ir.TensorProtocol], path: Path) -> None:
    """Every external file must lie beside the ONNX file and be as long as it is said to be.

    Raises:
        InputError: one does not.
    """
    for tensor in tensors:
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)
        target = data_file(path, location).resolve()
        if not _is_beside(path, location, target):
            raise InputError(
                f"{path.name} keeps the weight {tensor.name!r} outside its folder",
                why=f"its external data is {location!r}",
                fix="put the data file beside the ONNX file and save the model with a relative location",
            )
        if not target.is_file():
            raise InputError(
                f"{path.name} needs the file {location}",
                why="what has that name is no regular file" if target.exists() else "it is not beside the ONNX file",
                fix="copy it there",
            )
        if target.stat().st_nlink > 1:  # onnx_ir would refuse it too, when the weight is first read
            raise InputError(
                f"the data file {location} of {path.name} has several names (hard links)",
                why="it may be a file of somebody else's under another name",
                fix="put a copy of it there, not a link",
            )
        offset, size = tensor.offset or 0, target.stat().st_size
        if offset < 0 or tensor.length not in (None, tensor.nbytes) or offset + tensor.nbytes > size:
            raise InputError(
                f"the data file {location} does not fit {path.name}",
                why=f"the weight {tensor.name!r} needs {tensor.nbytes} bytes from byte {offset} on, of {size}",
                fix="copy it again, whole, together with the ONNX file",
            )


def follow_links(tensor: ir.ExternalTensor, path: Path) -> ir.ExternalTensor:
    """The tensor as onnx_ir reads it: it follows no link that leaves the folder, so it gets the file itself."""
    target = data_file(path, str(tensor.location)).resolve()
    if target.is_relative_to(path.parent.resolve()):
        return tensor
    return ir.ExternalTensor(
        target.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=target.parent,
    )


def _is_beside(path: Path, location: str, target: Path) -> bool:
    """Whether a location stays in the folder as it is written, and its file there or beside the real ONNX file."""
    written = Path(os.path.normpath(location))
    folders = path.parent.resolve(), path.resolve().parent
    leaves = written.is_absolute() or written.parts[:1] == ("..",)
    return not leaves and any(target.is_relative_to(each) for each in folders)
