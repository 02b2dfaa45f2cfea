"""Verification tells exact from differing, says where and in words, and trusts no directory unseen."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from precision_search import Seq2SeqGenerator, export_bundle
from precision_search.errors import InputError
from precision_search.judging.differences import DifferingSample
from precision_search.judging.trial import Judged, Lengths
from precision_search.model.bundle import Bundle
from precision_search.model.graph import GraphName, compute_keys_by_op_type
from precision_search.model.hf_files import copy_hf_files
from precision_search.model.layout import graph_file
from precision_search.model.onnx_files import write_model
from precision_search.model.samples import Sample, SampleSet, load_samples
from precision_search.precision.convert import convert
from precision_search.precision.plan import Plan, pinned_keys
from precision_search.published.load import FACTS_FILE, load_published, open_published
from precision_search.published.verify import VerifyReport, beyond_judged, compare, make_report
from precision_search.runtime.reference import Reference
from precision_search.runtime.session import SessionSettings
from tests.conftest import DEMO_DATA
from tests.graphs import tiny_t5_protos
from tests.other_layouts import merged_files, plain_files, write_configs, write_graphs
from tests.told import Told

SETTINGS = SessionSettings(threads=1)
SAMPLES = 6
SAFELY_LOW = ("MatMul", "Relu")
"""Op types of the decoder that are far from any range problem."""


def few_samples(tmp_path: Path) -> SampleSet:
    lines = (DEMO_DATA / "calibration.txt").read_text().splitlines()[:SAMPLES]
    (tmp_path / "few.txt").write_text("\n".join(lines) + "\n")
    return load_samples(tmp_path / "few.txt", "data")


def write_candidate(bundle: Bundle, fp32: frozenset[str], directory: Path) -> Path:
    directory.mkdir()
    plan = Plan("float16", "base", fp32 | pinned_keys(bundle.graphs))
    for name, model in convert(bundle.graphs, plan).models.items():
        write_model(model, directory / graph_file(name))
    copy_hf_files(bundle.path, directory)
    return directory


@pytest.fixture(scope="module")
def careful(demo_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with the matrix products and activations of its decoder in fp16."""
    types = compute_keys_by_op_type(demo_bundle.graphs, "decoder")
    keys = {node.key for graph in demo_bundle.graphs.values() for node in graph.compute}
    low = frozenset().union(*(types[op] for op in SAFELY_LOW)) - {"lm_head/MatMul"}
    return write_candidate(demo_bundle, frozenset(keys - low), tmp_path_factory.mktemp("careful") / "model")


@pytest.fixture(scope="module")
def careless(demo_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo wholly in fp16, which its norms do not survive."""
    return write_candidate(demo_bundle, frozenset(), tmp_path_factory.mktemp("careless") / "model")


@pytest.fixture
def broken(careful: Path, tmp_path: Path) -> Path:
    """A copy to break: the graphs are links, the small files are copies."""
    target = tmp_path / "broken"
    target.mkdir()
    for file in careful.iterdir():
        if file.suffix == ".onnx":
            (target / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, target / file.name)
    return target


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_careful_mixture_gives_the_tokens_of_fp32(demo_bundle: Bundle, careful: Path, tmp_path: Path) -> None:
    told = Told()

    report = compare(
        demo_bundle,
        open_published(careful, demo_bundle),
        few_samples(tmp_path),
        SETTINGS,
        batch_size=3,
        reporter=told,
    )

    assert (report.samples, report.exact, report.exact_match) == (SAMPLES, SAMPLES, 1.0)
    assert report.differences == ()
    assert report.source == "emulated"
    assert 0.5 < report.low < report.high == 1.0
    assert report.warnings == ()
    assert len(told.stages) == 2


def test_all_fp16_is_caught_although_a_cpu_would_hide_it(demo_bundle: Bundle, careless: Path, tmp_path: Path) -> None:
    """The CPU provider computes such graphs in fp32, in effect: only the widened graphs fail as a GPU does."""
    samples = few_samples(tmp_path)

    report = compare(demo_bundle, open_published(careless, demo_bundle), samples, SETTINGS)

    assert report.exact == 0
    assert [difference.index for difference in report.differences] == list(range(SAMPLES))
    first = report.differences[0]
    assert first.source == samples.samples[0].text
    assert first.line == 1
    assert first.reference != first.model
    assert not first.near_tie


def test_the_fp32_model_verifies_against_itself(demo_bundle: Bundle, tmp_path: Path) -> None:
    candidate = open_published(demo_bundle.path, demo_bundle)

    report = compare(demo_bundle, candidate, few_samples(tmp_path), SETTINGS, batch_size=2)

    assert report.exact_match == 1.0


def decode(tokens: Sequence[int]) -> str:
    return f"text of {tuple(tokens)}"


def report_on(*tokens: tuple[int, ...], nonfinite: tuple[bool, ...] = (False, False, False)) -> VerifyReport:
    """On three samples: the second token of the first is a near-tie of fp32, the first of the third was forced."""
    sources = tuple(Sample(f"source {number}", None, number + 1) for number in range(3))
    margins = tuple(np.array(m, np.float32) for m in ([2.0, 1e-4, 3.0], [1.0, 0.5], [np.nan, 4.0]))
    return make_report(
        SampleSet("data", Path("data.txt"), sources, "hash", ()),
        Reference(((5, 6, 1), (7, 1), (8, 1)), margins),
        tokens,
        np.array(nonfinite),
        decode=decode,
        source="cuda",
        warnings=("a doubt",),
    )


def test_differences_come_with_texts_position_margin_and_whether_fp32_was_sure() -> None:
    report = report_on((5, 9, 1), (7, 1), (2, 1))

    assert (report.samples, report.exact, report.nonfinite, report.near_ties) == (3, 1, 0, 1)
    assert report.low < report.exact_match == 1 / 3 < report.high
    assert (report.source, report.warnings) == ("cuda", ("a doubt",))
    near_tie, forced = report.differences
    assert near_tie == DifferingSample(
        index=0,
        line=1,
        source="source 0",
        reference="text of (5, 6, 1)",
        model="text of (5, 9, 1)",
        position=1,
        margin=float(np.float32(1e-4)),
        near_tie=True,
        nonfinite=False,
    )
    assert (forced.index, forced.position, forced.margin, forced.near_tie) == (2, 0, None, False)


def test_one_that_ends_early_differs_where_it_ended() -> None:
    (difference,) = report_on((5, 6), (7, 1), (8, 1)).differences

    assert (difference.position, difference.margin) == (2, 3.0)


def test_right_tokens_from_nonfinite_values_are_no_match_and_no_near_tie() -> None:
    report = report_on((5, 6, 1), (7, 1), (8, 1), nonfinite=(True, False, False))

    assert (report.exact, report.nonfinite, report.near_ties) == (2, 1, 0)
    assert report.differences[0].nonfinite


def test_missing_directories_and_files_are_named(demo_bundle: Bundle, broken: Path) -> None:
    with pytest.raises(InputError, match="there is no model directory"):
        open_published(broken / "nothing", demo_bundle)
    (broken / "decoder_model.onnx").unlink()
    with pytest.raises(InputError, match=r"decoder_model\.onnx"):
        open_published(broken, demo_bundle)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_hugging_face_files_are_named(demo_bundle: Bundle, broken: Path, name: str) -> None:
    (broken / name).unlink()

    with pytest.raises(InputError, match=rf"{name}|no tokenizer"):
        open_published(broken, demo_bundle)


@pytest.mark.parametrize("key", ["vocab_size", "num_decoder_layers"])
def test_a_config_of_another_model_is_refused(demo_bundle: Bundle, broken: Path, key: str) -> None:
    edit_json(broken / "config.json", **{key: 3})

    with pytest.raises(InputError, match="not a version of the reference") as caught:
        open_published(broken, demo_bundle)
    assert key in caught.value.why
    assert "--reference" in caught.value.fix


def replace_graph(directory: Path, name: GraphName, change: Callable[[ir.Model], None]) -> None:
    path = directory / graph_file(name)
    model = ir.load(path)
    change(model)
    path.unlink()
    ir.save(model, path)


def test_a_graph_with_another_cache_is_refused_whatever_the_config_says(demo_bundle: Bundle, broken: Path) -> None:
    def rename(model: ir.Model) -> None:
        next(v for v in model.graph.inputs if v.name == "past_key_values.3.decoder.key").name = "past_key_values.9.key"

    replace_graph(broken, "decoder_with_past", rename)

    with pytest.raises(InputError, match="another cache") as caught:
        open_published(broken, demo_bundle)
    assert "past_key_values.3.decoder.key" in caught.value.why


def test_types_that_contradict_the_operators_are_refused(demo_bundle: Bundle, broken: Path) -> None:
    """Widening goes by declared types: with a wrong one it would emulate another model."""

    def lie(model: ir.Model) -> None:
        next(node for node in model.graph if node.op_type == "Softmax").outputs[0].type = ir.TensorType(
            ir.DataType.FLOAT16
        )

    replace_graph(broken, "encoder", lie)

    with pytest.raises(InputError, match="does not pass the ONNX checker"):
        open_published(broken, demo_bundle)


def test_types_left_out_are_inferred(demo_bundle: Bundle, broken: Path) -> None:
    def forget(model: ir.Model) -> None:
        kept = set(model.graph.outputs)
        for node in model.graph:
            for value in node.outputs:
                if value not in kept:
                    value.type = value.shape = None

    replace_graph(broken, "decoder", forget)

    values = [value for node in open_published(broken, demo_bundle).graphs["decoder"].graph for value in node.outputs]
    assert {ir.DataType.FLOAT, ir.DataType.FLOAT16} <= {value.dtype for value in values}
    assert None not in {value.dtype for value in values if value.name}


def test_an_unknown_operator_without_a_type_is_refused(demo_bundle: Bundle, broken: Path) -> None:
    def obscure(model: ir.Model) -> None:
        node = next(node for node in model.graph if node.op_type == "Relu")
        node.domain, node.op_type = "custom", "Mystery"
        node.outputs[0].type = None
        model.opset_imports["custom"] = 1

    replace_graph(broken, "encoder", obscure)

    with pytest.raises(InputError, match="is unknown") as caught:
        open_published(broken, demo_bundle)
    assert "Mystery" in caught.value.why


def test_another_tokenizer_is_refused_by_what_it_makes_of_the_data(
    demo_bundle: Bundle, broken: Path, tmp_path: Path
) -> None:
    tokenizer = json.loads((broken / "tokenizer.json").read_text())
    pieces = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = [*pieces[:3], *reversed(pieces[3:])]
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(InputError, match="another tokenizer") as caught:
        compare(demo_bundle, open_published(broken, demo_bundle), few_samples(tmp_path), SETTINGS)
    assert caught.value.why.startswith("line 1 of ")


def test_a_tokenizer_beyond_the_vocabulary_is_refused(demo_bundle: Bundle, careful: Path, tmp_path: Path) -> None:
    small = dataclasses.replace(demo_bundle, config=dataclasses.replace(demo_bundle.config, vocab_size=20))
    candidate = open_published(careful, demo_bundle)

    with pytest.raises(InputError, match="gives the id"):
        compare(small, candidate, few_samples(tmp_path), SETTINGS)


def test_what_a_published_model_says_of_itself_is_applied_and_doubted(
    demo_bundle: Bundle, broken: Path, tmp_path: Path
) -> None:
    facts = {"settings": {"optimization_level": "disabled", "use_tf32": True}, "content_hash": "of another model"}
    (broken / FACTS_FILE).write_text(json.dumps(facts))
    edit_json(broken / "generation_config.json", decoder_start_token_id=5)

    candidate = open_published(broken, demo_bundle)
    report = compare(demo_bundle, candidate, few_samples(tmp_path), SETTINGS)

    assert (candidate.optimization_level, candidate.use_tf32) == ("disabled", True)
    assert report.exact_match == 1.0
    other_model, other_start, unjudged = report.warnings
    assert "made from another fp32 model" in other_model
    assert "decoder_start_token_id 5 instead of" in other_start
    assert "does not say" in unjudged or "not judged" in unjudged


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be an object"),
        ('{"settings": 3}', "settings is 3"),
        ('{"settings": {"optimization_level": "maximal"}}', "one of disabled, basic, extended, all"),
        ('{"settings": {"use_tf32": 1}}', "true or false"),
        ('{"settings": {"use_tf32": "maybe"}}', "true or false"),
        ('{"settings": {"gemm_options": 7}}', 'from "0" to "7"'),
        ('{"settings": {"gemm_options": "99"}}', 'from "0" to "7"'),
        ('{"judged": 3}', "judged is 3, and must be as `run` writes it"),
        ('{"judged": {"batch_sizes": [1]}}', "as `run` writes it"),
        (
            '{"judged": {"batch_sizes": [], "padded": true, "source_lengths": {"min": 1, "max": 2},'
            ' "target_lengths": {"min": 1, "max": 2}}}',
            "as `run` writes it: it was judged in batches of no size",
        ),
    ],
)
def test_a_fact_file_that_is_not_understood_is_an_error(broken: Path, text: str, told: str) -> None:
    (broken / FACTS_FILE).write_text(text)
    with pytest.raises(InputError) as caught:
        load_published(broken)
    assert told in str(caught.value)


def test_facts_that_say_nothing_of_settings_leave_them_open(broken: Path) -> None:
    (broken / FACTS_FILE).write_text('{"settings": {"gemm_options": null}, "content_hash": 1}')
    found = load_published(broken)
    assert (found.optimization_level, found.use_tf32, found.gemm_options, found.content_hash) == (None,) * 4


def test_what_was_not_judged_is_said(demo_bundle: Bundle) -> None:
    judged = Judged((1, 32), True, Lengths(2, 5), Lengths(1, 4))
    model = replace(open_published(demo_bundle.path, demo_bundle), judged=judged, content_hash="x")
    rows, tokens = [(3,) * 5] * 40, [(4,) * 4] * 40

    assert beyond_judged(model, rows, tokens, 32) == beyond_judged(model, rows, tokens, 1) == ()
    assert beyond_judged(model, rows[:9], tokens[:9], 32) == ()  # a batch that is not full
    (other,) = beyond_judged(model, rows, tokens, 16)
    assert other.startswith("batches of 16 were not judged: ")
    assert other.endswith("was judged in batches of 1 and 32")
    source, target = beyond_judged(model, [*rows, (3,) * 6], [*tokens, (4,) * 7], 32)
    assert "of 41 sentences, 1 is longer than" in source
    assert "up to 7 tokens, judged up to 4" in target
    (unpadded,) = beyond_judged(
        replace(model, judged=replace(judged, padded=False)), [(3,), *rows], [(4,), *tokens], 32
    )
    assert "not judged in padded batches" in unpadded
    (older,) = beyond_judged(replace(model, judged=None), rows, tokens, 32)
    assert "an older version judged it" in older
    assert beyond_judged(replace(model, judged=None, content_hash=None), rows, tokens, 32) == ()


def in_a_folder() -> dict[str, onnx.ModelProto]:
    return {f"onnx/{name}": proto for name, proto in plain_files(tiny_t5_protos()).items()}


@pytest.mark.parametrize(
    ("files", "layout", "named"),
    [
        (merged_files, "optimum, merged decoder", "decoder_model_merged.onnx and encoder_model.onnx"),
        (in_a_folder, "transformers.js", "onnx/decoder_model.onnx"),
    ],
)
def test_layouts_that_only_a_search_reads_are_refused_by_name(
    tmp_path: Path, files: Callable[[], dict[str, onnx.ModelProto]], layout: str, named: str
) -> None:
    folder = write_configs(tmp_path / "model")
    write_graphs(folder, files())

    for load in (load_published, lambda path: Seq2SeqGenerator.from_pretrained(path, device="cpu")):
        with pytest.raises(InputError, match=f"holds graphs as {layout} lays them out") as caught:
            load(folder)
        assert named in caught.value.why
        assert "export_bundle" in caught.value.fix
    export_bundle(folder, tmp_path / "plain")  # the way out that is told
    assert (tmp_path / "plain/decoder_with_past_model.onnx").is_file()
