from __future__ import annotations

from pathlib import Path

import numpy as np

from precision_search.model.bundle import open_bundle
from precision_search.runtime.generator import Generator
from precision_search.runtime.session import SessionSettings
from tests.dry_cuda.recorder import Recorder


def explore(tmp: str, cache: str, batch: int = 1, limit: int = 9):
    bundle = open_bundle("artifacts/models/t5-debian-en-de", Path(cache))
    with Recorder(Path(tmp)) as r:
        g = Generator(bundle.models, bundle.generation, SessionSettings(device="cuda"))
        ids = np.full((batch, 11), 5, np.int64)
        out = g.generate(ids, np.ones_like(ids), max_new_tokens=limit)
    return r.sections, r.nodes, out
