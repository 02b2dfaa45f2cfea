"""Imported by a process that torch workers are forked from: what they import, and what a first export sets up."""

from __future__ import annotations

import importlib
import logging
import warnings

import torch
from transformers.models.mt5 import modeling_mt5
from transformers.models.t5 import modeling_t5

from precision_search.model import export, export_worker

IMPORTED = (modeling_mt5, modeling_t5, export, export_worker)


class _Nothing(torch.nn.Module):
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers + 1


importlib.import_module("tqdm").tqdm.monitor_interval = 0  # or it starts a thread
logging.disable(logging.WARNING)
with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.onnx.export(_Nothing(), (torch.zeros(2, 3),), dynamo=True, verbose=False)
logging.disable(logging.NOTSET)
