"""Generates greedily with optimum; a script for the environment that has it, and no part of any import.

In: one JSON argument, a list of cases `{"directory", "input_ids", "attention_mask", "max_new_tokens"}` whose matrices
are padded. Out: the matrices of generated tokens as JSON, start token and padding included.
"""

from __future__ import annotations

import json
import sys

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForSeq2SeqLM


def main() -> None:
    """Entry of the script."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    tokens = []
    for case in json.loads(sys.argv[1]):
        model = ORTModelForSeq2SeqLM.from_pretrained(
            case["directory"], use_merged=False, provider="CPUExecutionProvider", session_options=options
        )
        assert model.decoder_with_past is not None
        made = model.generate(
            input_ids=torch.tensor(case["input_ids"]),
            attention_mask=torch.tensor(case["attention_mask"]),
            max_new_tokens=case["max_new_tokens"],
            num_beams=1,
            do_sample=False,
        )
        tokens.append(made.tolist())
    print(json.dumps(tokens))


if __name__ == "__main__":
    main()
