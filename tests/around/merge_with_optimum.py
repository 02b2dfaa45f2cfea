"""Merges the decoders of a directory with optimum; a script for the environment that has it, and no part of any import.

In: the directory, and the path of the merged decoder. Out: that file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from optimum.onnx import merge_decoders


def main() -> None:
    """Entry of the script."""
    folder, target = map(Path, sys.argv[1:])
    merge_decoders(
        folder / "decoder_model.onnx", folder / "decoder_with_past_model.onnx", save_path=target, strict=False
    )


if __name__ == "__main__":
    main()
