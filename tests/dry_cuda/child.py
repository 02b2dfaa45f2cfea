"""The child process: `python -m tests.dry_cuda.child MODULE FUNCTION ARGUMENTS RESULT`, the last two pickle files."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

from tests.dry_cuda.recorder import load_libraries

if __name__ == "__main__":
    load_libraries()
    module, function, arguments, result = sys.argv[1:]
    called = getattr(importlib.import_module(module), function)
    returned = called(**pickle.loads(Path(arguments).read_bytes()))
    Path(result).write_bytes(pickle.dumps(returned))
