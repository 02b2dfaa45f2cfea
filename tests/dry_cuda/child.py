"""The child process: `python -m tests.dry_cuda.child MODULE FUNCTION ARGUMENTS RESULT`, the last two pickle files.

It fails if a kernel, a library call or a copy was given memory that is not what it takes.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

from tests.dry_cuda.recorder import check_errors, load_libraries


def main() -> None:
    load_libraries()
    module, function, arguments, result = sys.argv[1:]
    called = getattr(importlib.import_module(module), function)
    returned = called(**pickle.loads(Path(arguments).read_bytes()))
    check_errors()
    Path(result).write_bytes(pickle.dumps(returned))


if __name__ == "__main__":
    main()
