"""From a config to a model that runs, in Python: search, look at the table, take a plan, verify it, generate.

    python examples/search.py my.toml runs/first

Leaves a run directory, and beside it the model of the calmest plan of the Pareto front that is faster than fp32.
"""

from __future__ import annotations

import sys
from pathlib import Path

from precision_search import Seq2SeqGenerator, api, load_config


def main(config_file: str, run: str) -> int:
    """Runs the whole way; the exit code is that of `precision-search run`."""
    config = load_config(Path(config_file))
    result = api.search(config, run, reporter=api.make_reporter())
    print(f"chosen: {result.choice.reason}")
    if not result.choice.faster:
        return result.exit_code

    table = api.pareto(run)
    front = [row.trial for row in table.rows if row.on_front and row.trial.latency and row.trial.flip_risk]
    faster = [trial for trial in front if trial.latency and trial.latency.speedup > 1.1]
    for trial in front:
        assert trial.latency is not None and trial.flip_risk is not None
        risk = f"{trial.flip_risk.value:.2g} flips in 1,000 tokens"
        print(f"plan {trial.id}: {trial.latency.speedup:.2f}x ({trial.latency.source}), {risk}")
    calm = faster[-1] if faster else front[0]

    model = api.publish(run, f"{run}-calm", candidate=calm.id)
    report = api.verify(model, config.model.path, config.calibration.path, prefix=config.calibration.prefix)
    print(f"{model}: {report.exact} of {report.samples} calibration samples exact ({report.source})")

    generator = Seq2SeqGenerator.from_pretrained(model, device="auto")
    sentence = config.calibration.path.read_text(encoding="utf-8").splitlines()[0]
    print(sentence, "->", generator.generate([sentence], prefix=config.calibration.prefix).texts[0])
    return result.exit_code


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} CONFIG RUN_DIRECTORY")
    sys.exit(main(*sys.argv[1:]))
