"""Every layer gets exactly one status with a reason, and contradictions are found."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksparse_deploy.core.artifacts.engines import DeviceFacts, EngineArtifact
from masksparse_deploy.core.artifacts.sparse_tactics import LayerTactic, SparseTactics
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.build_log import parse_log
from masksparse_deploy.engine.inspector import parse_inspector
from masksparse_deploy.engine.why_not_sparse.explain import explain
from tests.engine.sparse_models import CONVOLUTIONS, SPARSE_HALF, engine_layer, make_engine, make_model, read

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
GRAPH, LINT = read(make_model())


def explained(engine: EngineArtifact, **others: Any) -> SparseTactics:
    return explain(GRAPH, LINT, engine, **others)


def layer_of(report: SparseTactics, node: str) -> LayerTactic:
    (layer,) = [layer for layer in report.layers if layer.node == node]
    return layer


def judged(report: SparseTactics, node: str) -> tuple[str, str]:
    layer = layer_of(report, node)
    return layer.status, layer.evidence


def timed(layer: str, *tactics: tuple[str, float], formats: str = "Half(1) -> Half(1)") -> str:
    lines = [f"Autotuning format combination: {formats} ***", f"Timing Runner: {layer} (CaskConvolution[0x80000009])"]
    lines += [f"Tactic Name: {name} Tactic: {zlib.crc32(name.encode()):#x} Time: {time}" for name, time in tactics]
    return "\n".join(lines) + "\n"


def test_each_layer_has_one_status() -> None:
    report = explained(make_engine(GRAPH, engine_layer("a", SPARSE_HALF), engine_layer("b", has_sparse_weights=True)))
    assert {layer.node: layer.status for layer in report.layers} == {
        "stem": "not eligible",
        "a": "sparse",
        "b": "dense was faster",
        "depthwise": "not eligible",
        "dense": "not eligible",
    }
    assert report.counts == {"sparse": 1, "dense was faster": 1, "not eligible": 3, "unknown": 0}
    assert report.findings == ()
    assert [layer.node for layer in report.layers if layer.eligible] == ["a", "b"]


def test_what_the_file_proves() -> None:
    report = explained(make_engine(GRAPH))
    for node, reason, action in (
        ("stem", "3 input channels: not a multiple of 4", "append channels of zeros (mask.pad_channels)"),
        ("depthwise", "a group convolution (8 groups)", ""),
        ("dense", "dense; small", "mask it (mask.include)"),
    ):
        layer = layer_of(report, node)
        assert (layer.status, layer.evidence) == ("not eligible", "file")
        assert reason in layer.reason
        assert layer.action.startswith(action)


def test_a_sparse_tactic_is_named_with_its_sums() -> None:
    layer = layer_of(explained(make_engine(GRAPH, engine_layer("a", SPARSE_HALF))), "a")
    assert (layer.tactic, layer.sums, layer.engine_layer) == (SPARSE_HALF, "fp16", "a + a.relu")
    assert layer.evidence == "builder"


def test_both_times_come_from_the_builder() -> None:
    log = parse_log(timed("b + b.relu", ("sm80_dense_x", 0.010), (SPARSE_HALF, 0.012), ("sm80_dense_y", 0.011)))
    layer = layer_of(explained(make_engine(GRAPH), log=log), "b")
    assert (layer.status, layer.evidence) == ("dense was faster", "builder")
    (times,) = layer.times
    assert (times.sparse_ms, times.dense_ms, times.source) == (0.012, 0.010, "builder")
    assert f"{SPARSE_HALF} at 0.0120 ms, sm80_dense_x at 0.0100 ms" in layer.reason


@pytest.mark.parametrize("chosen", [True, False])
def test_times_do_not_tell_which_tactic_an_unnamed_one_is(chosen: bool) -> None:
    text = timed("b + b.relu", ("sm80_dense_x", 0.010), (SPARSE_HALF, 0.009))
    if chosen:
        text += "(Sparsity) TRT inference plan picked sparse implementation for layers: b + b.relu\n"
    layer = layer_of(explained(make_engine(GRAPH, engine_layer("b", tactic="")), log=parse_log(text)), "b")
    assert (layer.status, layer.evidence) == ("sparse" if chosen else "unknown", "builder")


def test_times_of_other_formats_are_not_compared_where_the_same_are_there() -> None:
    text = timed("b + b.relu", ("sm80_dense_x", 0.001), formats="Half(9) -> Half(9)")
    text += timed("b + b.relu", ("sm80_dense_x", 0.010), (SPARSE_HALF, 0.012))
    (times,) = layer_of(explained(make_engine(GRAPH), log=parse_log(text)), "b").times
    assert times.dense_ms == 0.010


def test_times_of_the_formats_that_were_chosen_come_first() -> None:
    text = timed("b + b.relu", ("sm80_dense_x", 0.002), (SPARSE_HALF, 0.001), formats="Half(9) -> Half(9)")
    text += timed("b + b.relu", ("sm80_dense_y", 0.010), (SPARSE_HALF, 0.012))
    found = engine_layer("b", "sm80_dense_y", tactic_value=f"{zlib.crc32(b'sm80_dense_y'):#x}")
    (times,) = layer_of(explained(make_engine(GRAPH, found), log=parse_log(text)), "b").times
    assert (times.sparse_ms, times.dense_ms) == (0.012, 0.010)


def test_times_of_other_formats_say_so() -> None:
    text = timed("b + b.relu", ("sm80_dense_x", 0.010), formats="Half(9) -> Half(9)")
    layer = layer_of(explained(make_engine(GRAPH), log=parse_log(text + timed("b + b.relu", (SPARSE_HALF, 0.009)))), "b")
    assert layer.status == "dense was faster"
    assert "with other formats of tensors; alone the sparse one is no slower" in layer.reason


def test_no_sparse_tactic_among_those_that_were_timed() -> None:
    log = parse_log(timed("a + a.relu", (SPARSE_HALF, 0.02)) + timed("b + b.relu", ("sm80_dense_x", 0.01)))
    layer = layer_of(explained(make_engine(GRAPH), log=log), "b")
    assert (layer.status, layer.evidence) == ("not eligible", "builder")
    assert "timed 1 tactics for it, all of them dense" in layer.reason


@pytest.mark.parametrize("kept", [True, False])
def test_times_that_may_be_incomplete_prove_nothing(kept: bool) -> None:
    text = timed("b + b.relu", ("sm80_dense_x", 0.01))
    if kept:  # another time of the layer was kept from before, and its kernel is not named
        text += timed("a + a.relu", (SPARSE_HALF, 0.02))
        text += "b + b.relu [Half(2) -> Half(2)] got cached result: CaskConvolution, tactic 0xabc, 0.5 ms\n"
    assert judged(explained(make_engine(GRAPH), log=parse_log(text)), "b") == ("unknown", "builder")


@pytest.mark.parametrize(
    "lines",
    [
        "(Sparsity) Layers eligible for sparse math: {0}\n"
        "(Sparsity) TRT inference plan picked sparse implementation for layers:",
        "(Sparsity) Found 1 layer(s) eligible to use sparse tactics: {0}\n(Sparsity) Chose 0 layer(s) using sparse tactics",
    ],
)
@pytest.mark.parametrize("name", ["b + b.relu", "b"])
def test_the_builder_lists_a_layer_and_does_not_pick_it(lines: str, name: str) -> None:
    report = explained(make_engine(GRAPH), log=parse_log(lines.format(name)))
    assert judged(report, "b") == ("dense was faster", "builder")
    assert "whether it timed a sparse one is not told" in layer_of(report, "b").reason
    assert judged(report, "a") == ("not eligible", "builder")
    assert "did not find its weights eligible" in layer_of(report, "a").reason
    assert report.findings == ()


def test_the_log_alone_tells_of_a_sparse_tactic() -> None:
    log = parse_log("(Sparsity) Chose 1 layer(s) using sparse tactics: b + b.relu")
    report = explained(make_engine(GRAPH, engine_layer("b", "")), log=log)
    assert judged(report, "b") == ("sparse", "builder")
    assert layer_of(report, "b").tactic == ""


def test_nothing_tells() -> None:
    report = explained(make_engine(GRAPH, engine_layer("a", "")))
    assert judged(report, "a") == ("unknown", "builder")
    assert judged(report, "b") == ("unknown", "builder")


def test_a_node_that_was_split_is_looked_up_where_its_weights_are() -> None:
    text = (GOLDEN / "inspector-rtx-1.7.1-listing.json").read_text(encoding="utf-8")
    report = explained(make_engine(GRAPH).model_copy(update={"layers": parse_inspector(text)}))
    assert layer_of(report, "stem").engine_layer == "stem_myl0_2"  # and not the copy in front of it
    assert judged(report, "a") == ("unknown", "builder")
    assert "does not tell which tactic it runs" in layer_of(report, "a").reason


def test_a_node_that_no_layer_names() -> None:
    layers = tuple(engine_layer(name) for name in CONVOLUTIONS if name != "b")
    report = explained(make_engine(GRAPH).model_copy(update={"layers": layers}))
    assert judged(report, "b") == ("unknown", "builder")
    assert layer_of(report, "b").engine_layer == ""


def test_layers_without_metadata_are_found_by_their_names() -> None:
    names = ("Reformatting CopyNode for Input Tensor 0 to x + b", "w + w.q + b")
    layers = tuple(engine_layer("b", "kernel", onnx_nodes=(), name=name) for name in names)
    report = explained(make_engine(GRAPH).model_copy(update={"layers": layers}))
    assert layer_of(report, "b").engine_layer == "w + w.q + b"


@pytest.mark.parametrize(
    ("changes", "reason", "evidence"),
    [
        ({"options": {"sparse_tactics": False}}, "sparse tactics were forbidden", "builder"),
        ({"options": {"sparse_tactics": False}}, "sparse tactics were forbidden", "builder"),
        (
            {"device": DeviceFacts(kind="cuda", name="T4", details={"compute_capability": "7.5"})},
            "compute capability 7.5: sparse tensor cores came with 8.0",
            "documented",
        ),
    ],
)
def test_no_layer_can_have_one(changes: dict[str, Any], reason: str, evidence: str) -> None:
    layer = layer_of(explained(make_engine(GRAPH, **changes)), "a")
    assert (layer.status, layer.evidence) == ("not eligible", evidence)
    assert reason in layer.reason


def test_an_fp32_file_gets_none() -> None:
    graph, lint = read(make_model(np.float32))
    engine = make_engine(graph, engine_layer("a", "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc"))
    layer = layer_of(explain(graph, lint, engine), "a")
    assert (layer.status, layer.evidence) == ("not eligible", "rule of thumb")
    assert (layer.reason, layer.action) == (
        "it multiplies FP32: sparse tactics were seen for FP16 and INT8 only",
        "bake with precision fp16 or int8",
    )


@pytest.mark.parametrize(("backend", "status"), [("onnxruntime", "not eligible"), ("onnxruntime-tensorrt", "unknown")])
def test_runtimes_without_or_with_hidden_kernels(backend: str, status: str) -> None:
    engine = make_engine(GRAPH, backend=backend)
    report = explained(engine.model_copy(update={"layers": ()}))
    assert layer_of(report, "a").status == status
    assert [layer.node for layer in report.layers if layer.eligible] == ["a", "b"]
    line = "this runtime has no 2:4 kernels: it multiplies the zeros too; 2 of 5 layers would be eligible"
    assert (line in report.remarks) == (backend == "onnxruntime")


def test_a_sparse_tactic_on_dense_weights_is_found() -> None:
    report = explained(make_engine(GRAPH, engine_layer("dense", SPARSE_HALF)))
    assert layer_of(report, "dense").status == "sparse"
    (finding,) = report.findings
    assert finding.startswith(f"dense runs the sparse tactic {SPARSE_HALF}, but ")
    assert "groups in the file keep more than 2 of 4 weights: the engine holds other weights" in finding


def test_a_log_of_another_build_is_found() -> None:
    log = parse_log("(Sparsity) Layers eligible for sparse math: Conv_0, Conv_1, a + a.relu, __mye1_myl0_3")
    (finding,) = explained(make_engine(GRAPH), log=log).findings
    assert finding == "the builder's log names 2 layers that the file does not have (Conv_0, Conv_1): it is of another build"


def test_a_log_that_contradicts_the_inspector_is_found() -> None:
    log = parse_log("(Sparsity) Chose 1 layer(s) using sparse tactics: b + b.relu")
    (finding,) = explained(make_engine(GRAPH), log=log).findings
    assert "says that b + b.relu got a sparse tactic, the inspector names sm80" in finding


def test_files_that_do_not_belong_together_are_refused() -> None:
    other, lint = read(make_model(np.float32))
    with pytest.raises(ArtifactError, match="the engine was built from another file"):
        explain(other, lint, make_engine(GRAPH))
    with pytest.raises(ArtifactError, match="the linter's report is of another file"):
        explain(GRAPH, lint, make_engine(GRAPH))
