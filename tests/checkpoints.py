"""Tiny checkpoints for the bundle tests, and exports that the workers of one test run share.

Torch stays in child processes, as it does in the package.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from precision_search.model import bundle
from precision_search.model.bundle import Bundle, open_bundle
from tests.warm import torch_command

_SAVE = """
import json, sys, warnings
import torch
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

CLASSES = {"t5": (T5Config, T5ForConditionalGeneration), "mt5": (MT5Config, MT5ForConditionalGeneration)}
for path, kind, dtype, options in json.loads(sys.argv[1]):
    config_class, model_class = CLASSES[kind]
    sizes = dict(vocab_size=61, d_model=16, d_kv=4, d_ff=24, num_heads=2, relative_attention_num_buckets=8)
    config = config_class(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes, **options)
    torch.manual_seed(5)
    model = model_class(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.7)
    model.to(getattr(torch, dtype)).save_pretrained(path)
"""


def word_tokenizer(*words: str) -> str:
    """A tokenizer.json that knows these words, numbered from 3 on; without any the smallest that one can load."""
    vocabulary = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        }
    )


TOKENIZER = word_tokenizer()

Spec = tuple[str, str, str, dict[str, object]]
"""Directory name, model type, dtype it is stored in, and options of its config."""

DEEPER_DECODER: dict[str, object] = {"num_layers": 1, "num_decoder_layers": 2}
GATED: dict[str, object] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_layers": 1}

SPECS: tuple[Spec, ...] = (
    ("t5-bfloat16", "t5", "bfloat16", DEEPER_DECODER),
    ("t5-float16", "t5", "float16", DEEPER_DECODER),
    ("t5-v1_1", "t5", "float32", GATED),
    ("mt5", "mt5", "float32", {"num_layers": 1, "num_decoder_layers": 1}),
)

_TRACE = """
import sys, warnings
from pathlib import Path
import torch
from precision_search.model import export
from precision_search.model.families import FAMILIES
from precision_search.model.layout import SEQ2SEQ

warnings.simplefilter("ignore")
checkpoint = export.load_checkpoint(Path(sys.argv[1]), FAMILIES["t5"])

class Flat(torch.nn.Module):
    # The TorchScript exporter wants tensors, not lists of them, and no wrapper's name in front of the modules'.
    def __init__(self, wrapper):
        super().__init__()
        self.decoder, self.lm_head, self.layers = wrapper.decoder, wrapper.lm_head, wrapper.layers
        self.width = wrapper.width
        object.__setattr__(self, "step", type(wrapper).forward)
        object.__setattr__(self, "run", lambda *rest: type(wrapper).run(self, *rest))
    def forward(self, ids, mask, *past):
        return self.step(self, ids, mask, list(past))

for name in ("encoder", "decoder", "decoder_with_past"):
    graph, layers = SEQ2SEQ.graph(name), checkpoint.sizes.num_decoder_layers
    inputs, outputs = (list(names(graph, layers)) for names in (SEQ2SEQ.input_names, SEQ2SEQ.output_names))
    module = export._WRAPPERS[name](checkpoint)
    arguments, axes = export._trace_request(checkpoint.sizes, name)
    if name == "decoder_with_past":
        module, arguments, axes = Flat(module), (*arguments[:2], *arguments[2]), (*axes[:2], *axes[2])
    dynamic = dict(zip(inputs, axes)) | {output: {0: "batch_size"} for output in outputs}
    target = Path(sys.argv[2]) / f"{name}_model.onnx"
    with torch.no_grad():
        torch.onnx.export(module, arguments, target, dynamo=False, input_names=inputs, output_names=outputs,
                          dynamic_axes=dynamic, opset_version=17)
"""


def saved_checkpoints(cache: Path) -> Path:
    """The folder that holds all of `SPECS`, made if it is not in the cache; named by what makes them."""
    name = hashlib.sha256(json.dumps([_SAVE, TOKENIZER, SPECS]).encode()).hexdigest()[:16]
    target = cache / "checkpoints" / name
    with _one_at_a_time(cache):
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                work = Path(folder) / name
                _run(_SAVE, json.dumps([(str(work / spec), *rest) for spec, *rest in SPECS]))
                for spec, *_ in SPECS:
                    (work / spec / "tokenizer.json").write_text(TOKENIZER)
                work.rename(target)
    return target


def open_once(source: Path, cache: Path, **options: Any) -> Bundle:
    """`open_bundle` for pytest's workers: if two want the same export, one makes it and the other waits."""
    with _one_at_a_time(cache):
        return open_bundle(str(source), cache, **options)


def _one_at_a_time(cache: Path) -> FileLock:
    cache.mkdir(parents=True, exist_ok=True)
    return FileLock(cache / "exporting.lock")


def trace(checkpoint: Path, target: Path, cache: Path) -> None:
    """The three graphs as torch's older exporter makes them, which names nodes as optimum's files do.

    They are kept in the cache, named by what makes them.
    """
    content = hashlib.sha256(f"{_TRACE} {metadata.version('torch')} {metadata.version('transformers')}".encode())
    for path in (Path(bundle.__file__).with_name("export.py"), *sorted(checkpoint.iterdir())):
        content.update(path.read_bytes())
    kept = cache / "traced" / content.hexdigest()[:16]
    with _one_at_a_time(cache):
        if not kept.is_dir():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                work = Path(folder) / kept.name
                work.mkdir()
                for name in ("config.json", "generation_config.json"):
                    (work / name).write_bytes((checkpoint / name).read_bytes())
                _run(_TRACE, str(checkpoint), str(work))
                work.rename(kept)
    shutil.copytree(kept, target)


def _run(script: str, *arguments: str) -> None:
    command = [*torch_command(), "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
