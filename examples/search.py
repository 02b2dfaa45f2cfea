"""From a config to a model that runs, in Python: search, look at the table, take a plan, verify it, generate.

    python examples/search.py my.toml runs/first

Leaves a run directory, and beside it the model of the calmest plan of the Pareto front that is faster than fp32.
"""

from __future__ import annotations

import sys

from precision_search import Seq2SeqGenerator, load_config, make_reporter, pareto, publish, search, verify


def main(config_file: str, run: str) -> int:
    """Runs the whole way; the exit code is that of `precision-search run`."""
    config = load_config(config_file)
    result = search(config, run, reporter=make_reporter())
    print(f"chosen: {result.choice.reason}")
    if not result.choice.faster or result.choice.trial is None:
        return result.exit_code

    calm, least = result.choice.trial, float("inf")
    for row in pareto(run).rows:
        latency, risk = row.trial.latency, row.trial.flip_risk
        if not row.on_front or latency is None or latency.speedup < 1.01:
            continue
        flips = "unknown" if risk is None else f"{risk.value:.2g} in 1,000 tokens"
        print(f"plan {row.trial.id}: {latency.speedup:.2f}x ({latency.source}), flips: {flips}")
        if risk is not None and risk.value < least:
            calm, least = row.trial, risk.value

    sentences = config.calibration
    model = publish(run, f"{run}-calm", plan=calm.id)
    report = verify(
        model,
        config.model.path,
        sentences.path,
        prefix=sentences.prefix,
        max_length=sentences.max_length,
        cache=config.model.cache,
    )
    print(f"{model}: {report.exact} of {report.samples} calibration samples exact ({report.source})")

    generator = Seq2SeqGenerator.from_pretrained(model, device="auto")
    print(generator.generate(["Avahi GTK+ utilities"], prefix=sentences.prefix).texts[0])
    return result.exit_code


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} CONFIG RUN_DIRECTORY")
    sys.exit(main(*sys.argv[1:]))
