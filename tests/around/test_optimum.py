"""optimum loads what we write and generates our generator's tokens, both as ONNX Runtime's CPU provider runs them.

Our public generator widens low graphs on a CPU; here the stored graphs run as they are, at the same optimization level
as optimum's sessions. The CPU provider computes fp16 nodes in fp32, so a plan that is garbage on a GPU is none here.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from precision_search import api
from precision_search.model.bundle import Bundle, open_bundle, write_bundle
from precision_search.model.file_layouts import MERGED
from precision_search.model.generation_config import read_generation_settings
from precision_search.model.hf_files import copy_hf_files
from precision_search.model.layout import graph_file
from precision_search.model.samples import TokenBatch, batches
from precision_search.precision.plan import Plan
from precision_search.published.load import load_published
from precision_search.published.publish import publish
from precision_search.runtime.generator import Generator
from precision_search.runtime.session import SessionSettings
from tests.around.optimum_environment import missing_packages, run_with_optimum
from tests.around.page import code_under
from tests.checkpoints import SPECS, open_once, saved_checkpoints
from tests.conftest import Rows
from tests.output_models import publish_facts_of_a_run
from tests.plans import NORMS, WO, keeping

pytestmark = pytest.mark.slow

TINY = [name for name, *_ in SPECS if name != "t5-float16"]  # as t5-bfloat16, stored otherwise
FACTS = publish_facts_of_a_run()
TINY_ROWS: Rows = ((5, 9, 23, 41, 1), (17, 1), (60, 2, 33, 8, 8, 19, 1), (12, 44, 1))
TINY_TOKENS = 12
SENTENCES = 24

Tokens = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Case:
    """A directory that we wrote, and what to generate from."""

    directory: Path
    batch: TokenBatch
    max_new_tokens: int

    def ours(self) -> Tokens:
        """What our generator makes of the stored graphs."""
        settings = read_generation_settings(self.directory, None)
        generator = Generator(load_published(self.directory).graphs, settings, SessionSettings(threads=1))
        made = generator.generate(self.batch.input_ids, self.batch.attention_mask, max_new_tokens=self.max_new_tokens)
        return [tuple(row[:length].tolist()) for row, length in zip(made.tokens, made.lengths, strict=True)]


def written(bundle: Bundle, plan: Plan | None, out: Path) -> Path:
    return write_bundle(bundle, out) if plan is None else publish(bundle, plan, FACTS, out)


@pytest.fixture(scope="module")
def cases(
    demo_bundle: Bundle, demo_ids: Rows, export_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Case]:
    """The demo and tiny random models (one gated, one with a deeper decoder, an mT5), in fp32 and mixed."""
    folder = tmp_path_factory.mktemp("models")
    rows = batches(demo_ids[:SENTENCES], SENTENCES, demo_bundle.generation.pad_token_id)[0]
    plans = {"fp32": None, "mixed": keeping(demo_bundle, NORMS, WO), "all-low": keeping(demo_bundle)}
    found = {
        f"demo-{name}": Case(written(demo_bundle, plan, folder / f"demo-{name}"), rows, 64)
        for name, plan in plans.items()
    }
    tiny = batches(TINY_ROWS, len(TINY_ROWS), 0)[0]
    for name in TINY:
        bundle = open_once(saved_checkpoints(export_cache) / name, export_cache)
        for kind, plan in {"fp32": None, "mixed": keeping(bundle, NORMS)}.items():
            out = written(bundle, plan, folder / f"{name}-{kind}")
            found[f"{name}-{kind}"] = Case(out, tiny, TINY_TOKENS)
    return found


@pytest.fixture(scope="module")
def theirs(cases: dict[str, Case]) -> dict[str, Tokens]:
    """What optimum generates in each case: the rows without the start token, up to their end token."""
    request = [
        {
            "directory": str(case.directory),
            "input_ids": case.batch.input_ids.tolist(),
            "attention_mask": case.batch.attention_mask.tolist(),
            "max_new_tokens": case.max_new_tokens,
        }
        for case in cases.values()
    ]
    script = Path(__file__).with_name("generate_with_optimum.py")
    made = json.loads(run_with_optimum(str(script), json.dumps(request)))
    return {name: [_cut(row[1:]) for row in rows] for name, rows in zip(cases, made, strict=True)}


def _cut(row: list[int]) -> tuple[int, ...]:
    return tuple(row[: row.index(1) + 1] if 1 in row else row)


def test_only_what_is_not_here_in_that_version_is_installed() -> None:
    here = [f"{name}=={version(name)}" for name in ("numpy", "onnx")]
    other = ["transformers==4.57.6", "no-such-package==1.0"]
    assert missing_packages("\n".join(["# why", *here, *other])) == other


@pytest.mark.parametrize(
    "name",
    ["demo-fp32", "demo-mixed", "demo-all-low"] + [f"{name}-{kind}" for name in TINY for kind in ("fp32", "mixed")],
)
def test_optimum_generates_the_tokens_that_our_generator_does(
    name: str, cases: dict[str, Case], theirs: dict[str, Tokens]
) -> None:
    assert cases[name].ours() == theirs[name]
    assert len(set(theirs[name])) > 1, "rows of one kind would prove little"


def test_decoders_that_optimum_merged_are_taken_apart_again(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases[f"{TINY[0]}-fp32"]
    merged = tmp_path / "merged"
    merged.mkdir()
    copy_hf_files(case.directory, merged)
    shutil.copy(case.directory / graph_file("encoder"), merged)
    script = Path(__file__).with_name("merge_with_optimum.py")
    run_with_optimum(str(script), str(case.directory), str(merged / MERGED))
    bundle, plain = (open_bundle(str(each), tmp_path / "cache") for each in (merged, case.directory))
    for name, graph in plain.graphs.items():
        assert [node.key for node in bundle.graphs[name].compute] == [node.key for node in graph.compute]
    written = write_bundle(bundle, tmp_path / "written")
    assert Case(written, case.batch, case.max_new_tokens).ours() == case.ours()


def test_a_cpu_hides_from_optimum_what_a_gpu_would_make_of_all_fp16(
    cases: dict[str, Case], theirs: dict[str, Tokens]
) -> None:
    """So this is no way to check a low-precision model; our generator shows it."""
    case = cases["demo-all-low"]
    rows = [row[mask == 1].tolist() for row, mask in zip(case.batch.input_ids, case.batch.attention_mask, strict=True)]
    emulated = list(api.Seq2SeqGenerator.from_pretrained(case.directory, device="cpu").generate(rows).ids)
    same = [
        sum(one == other for one, other in zip(rows, theirs["demo-fp32"], strict=True))
        for rows in (theirs["demo-all-low"], emulated)
    ]
    assert same[0] >= SENTENCES - 2
    assert same[1] == 0


def test_the_page_shows_how(cases: dict[str, Case], tmp_path: Path) -> None:
    (code,) = code_under("optimum")
    assert "RUN/model" in code
    assert '"CUDAExecutionProvider"' in code
    model = cases["demo-mixed"].directory
    script = tmp_path / "page.py"
    script.write_text(code.replace("RUN/model", str(model)).replace("CUDAExecutionProvider", "CPUExecutionProvider"))
    printed = run_with_optimum(str(script))
    texts = (
        api.Seq2SeqGenerator.from_pretrained(model, device="cpu")
        .generate(["Avahi GTK+ utilities", "Kazakh dictionary for GNU Aspell"])
        .texts
    )
    assert printed.splitlines() == [str(list(texts))]
