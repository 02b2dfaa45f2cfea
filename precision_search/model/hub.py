"""A model on the Hub as a directory here: only the files that are needed are fetched.

In: a hub id. Out: the directory in the Hub's cache. A repository with safetensors is a checkpoint; one that holds only
ONNX often has a dozen copies of each graph in other precisions, of which we want the fp32 ones.
"""

from __future__ import annotations

import glob
import posixpath
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from precision_search.errors import InputError, PrecisionSearchError, first_line
from precision_search.model.file_layouts import GraphFiles, find_graphs, refuse_layout
from precision_search.model.hf_files import hf_files
from precision_search.model.onnx_files import data_locations
from precision_search.model.snapshot import INDEX, WEIGHTS
from precision_search.reporting import Reporter


def download(source: str, reporter: Reporter) -> Path:
    """Fetches the model of a hub id, as far as it is not in the cache already.

    Raises:
        InputError: `source` is no hub id, or nothing can be fetched.
    """
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(
            f"there is no model directory {source}", fix="give a directory, or a hub id such as google-t5/t5-small"
        )
    reporter.stage(f"downloading {source}")
    try:
        return _fetch(source)
    except PrecisionSearchError:
        raise
    except Exception as error:  # the hub client raises its own, the HTTP library's and OS errors alike
        raise InputError(
            f"there is no model directory {source}, and it cannot be fetched from the hub",
            why=first_line(error),
            fix="check the path or hub id; without network, download the checkpoint elsewhere and give its directory",
        ) from error


def _fetch(source: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    graphs, silence = None, None
    try:
        graphs = _graphs_only(source)
    except PrecisionSearchError:
        raise
    except HfHubHTTPError:  # the download says what it means, or takes what the cache has
        pass
    except Exception as error:  # no answer: what the cache has decides, and who reads it says so
        silence = error
    files = sorted(set(graphs.names.values())) if graphs else []
    patterns = [*map(glob.escape, files), *([] if graphs else [WEIGHTS, INDEX]), *hf_files()]
    try:
        fetch = partial(huggingface_hub.snapshot_download, source, local_files_only=silence is not None)
        folder = Path(fetch(allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise silence or error from error
    # What its external data are called, only a file itself says.
    data = [posixpath.join(posixpath.dirname(file), each) for file in files for each in data_locations(folder / file)]
    if data:
        fetch(allow_patterns=[*patterns, *map(glob.escape, data)])
    return folder


def _graphs_only(source: str) -> GraphFiles | None:
    """The graphs of a repository without a checkpoint; None for a checkpoint.

    Raises:
        InputError: there are only graphs of a kind that is told apart.
        Exception: the Hub cannot be asked.
    """
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    # Not list_repo_files: offline it tries again for half a minute. Without a limit it waits forever for an answer.
    found = huggingface_hub.HfApi().model_info(source, timeout=HF_HUB_ETAG_TIMEOUT).siblings or ()
    names = [each.rfilename for each in found]
    if any("/" not in name and fnmatch(name, WEIGHTS) for name in names):
        return None
    graphs = find_graphs(names)
    if graphs is None:
        refuse_layout(source, names)
    return graphs
