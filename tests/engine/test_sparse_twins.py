"""Sparse tactics beside their dense twins: sums, times; and what may keep a layer from one."""

from typing import Any

import pytest

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.engines import DeviceFacts, EngineArtifact
from masksparse_deploy.core.artifacts.sparse_tactics import LayerTactic, SparseTactics
from masksparse_deploy.core.artifacts.timing import EngineRole, Latency, LayerTime, ProfileReport, RunConditions, Speedup
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.why_not_sparse.explain import explain
from tests.engine.sparse_models import (
    DENSE_HALF,
    DENSE_SINGLE,
    SPARSE_HALF,
    SPARSE_SINGLE,
    engine_layer,
    make_engine,
    make_model,
    read,
)
from tests.models.make_int8 import int8_pair

GRAPH, LINT = read(make_model())


def layer_of(report: SparseTactics, node: str) -> LayerTactic:
    (layer,) = [layer for layer in report.layers if layer.node == node]
    return layer


def sparse_a(tactic: str = SPARSE_HALF, **changes: Any) -> EngineArtifact:
    return make_engine(GRAPH, engine_layer("a", tactic), **changes)


def timed(engine: EngineArtifact, *layers: LayerTime) -> ProfileReport:
    latency = Latency(median_ms=1.0, p90_ms=1.0, p99_ms=1.0, mean_ms=1.0, throughput_per_s=1.0, samples_ms=(1.0,))
    speedup = Speedup(ratio=1.0, interval=Interval(low=1.0, high=1.0, confidence=0.95))
    conditions = RunConditions(batch=1, threads=1, warmup_count=1, round_count=1, inferences_per_round=1, seed=0, details={})
    return ProfileReport(
        dense_engine_sha256="2" * 64,
        sparse_engine_sha256=engine.digest,
        backend="tensorrt",
        device="NVIDIA A100",
        dense=latency,
        sparse=latency,
        speedup=speedup,
        control=speedup,
        sparse_kernels="",
        conditions=conditions,
        invalid_because=(),
        layers=layers,
    )


def layer_time(engine: EngineRole, node: str, tactic: str, median_ms: float, share: float = 0.5) -> LayerTime:
    nodes = (node, f"{node}.relu")
    return LayerTime(engine=engine, name=" + ".join(nodes), onnx_nodes=nodes, tactic=tactic, median_ms=median_ms, share=share)


def test_sums_that_are_coarser_than_the_dense_ones_are_pointed_out() -> None:
    dense = make_engine(GRAPH, engine_layer("a", DENSE_SINGLE))
    report = explain(GRAPH, LINT, sparse_a(), dense=dense)
    layer = layer_of(report, "a")
    assert (layer.coarser_sums, layer.sums, layer.dense_sums, layer.dense_tactic) == (True, "fp16", "fp32", DENSE_SINGLE)
    (remark,) = report.remarks
    assert remark.startswith("a: the sparse tactic adds up in FP16 where the dense one does in FP32")


@pytest.mark.parametrize(("sparse", "dense"), [(SPARSE_HALF, DENSE_HALF), (SPARSE_SINGLE, DENSE_SINGLE)])
def test_sums_that_are_the_same_are_not(sparse: str, dense: str) -> None:
    report = explain(GRAPH, LINT, sparse_a(sparse), dense=make_engine(GRAPH, engine_layer("a", dense)))
    assert not layer_of(report, "a").coarser_sums
    assert report.remarks == ()


def test_a_missing_twin_is_said() -> None:
    report = explain(GRAPH, LINT, sparse_a())
    assert not layer_of(report, "a").coarser_sums
    assert report.remarks == ("a: sums in FP16, perhaps coarser than the dense ones; give the dense engine to compare them",)
    unnamed = make_engine(GRAPH, engine_layer("a", ""))
    (remark,) = explain(GRAPH, LINT, sparse_a(), dense=unnamed).remarks
    assert "the dense tactics do not tell in what they add up" in remark


def test_the_same_weights_without_sparse_tactics_are_the_nearer_twin() -> None:
    engine = sparse_a()
    profile = timed(
        engine,
        layer_time("dense", "a", DENSE_HALF, 3.0),
        layer_time("forbidden", "a", DENSE_SINGLE, 2.0),
        layer_time("sparse", "a", SPARSE_HALF, 1.0, share=0.25),
        layer_time("sparse", "b", DENSE_SINGLE, 4.0, share=0.75),
    )
    report = explain(GRAPH, LINT, engine, dense=make_engine(GRAPH, engine_layer("a", DENSE_HALF)), profile=profile)
    layer = layer_of(report, "a")
    assert (layer.dense_tactic, layer.coarser_sums, layer.median_ms, layer.share) == (DENSE_SINGLE, True, 1.0, 0.25)
    (times,) = layer.times
    assert (times.sparse_ms, times.dense_ms, times.source) == (1.0, 2.0, "profile")
    dense_layer = layer_of(report, "b")
    assert (dense_layer.median_ms, dense_layer.times) == (4.0, ())  # both of its engines run dense tactics


def test_times_of_another_engine_are_refused() -> None:
    with pytest.raises(ArtifactError, match="the times are of another engine"):
        explain(GRAPH, LINT, sparse_a(), profile=timed(make_engine(GRAPH)))


@pytest.mark.parametrize(
    ("changes", "text", "evidence"),
    [
        ({}, "fewer than 256 input or output channels (8)", "rule of thumb"),
        ({}, "a 1x1 kernel", "rule of thumb"),
        ({"options": {"batch": 1}}, "a batch of 1: memory may limit the layer", "rule of thumb"),
        ({"options": {"hardware_compatibility": "ampere-plus"}}, "must run on other GPUs too (ampere-plus)", "documented"),
        (
            {"device": DeviceFacts(kind="cuda", name="H100", details={"compute_capability": "9.0"})},
            "on Hopper few sparse tactics for FP16 were seen",
            "rule of thumb",
        ),
    ],
)
def test_hints_say_what_they_rest_on(changes: dict[str, Any], text: str, evidence: str) -> None:
    hints = layer_of(explain(GRAPH, LINT, make_engine(GRAPH, **changes)), "b").hints
    assert [hint.evidence for hint in hints if text in hint.text] == [evidence]


def test_layers_that_need_no_explanation_have_no_hints() -> None:
    report = explain(GRAPH, LINT, sparse_a())
    assert layer_of(report, "a").hints == layer_of(report, "stem").hints == ()
    on_cpu = explain(GRAPH, LINT, make_engine(GRAPH, backend="onnxruntime"))
    assert all(layer.hints == () for layer in on_cpu.layers)


@pytest.mark.parametrize(("output", "expected"), [("Half", 1), ("Thirty-two wide channel vectorized row major Int8 format", 0)])
def test_an_int8_layer_whose_output_is_not(output: str, expected: int) -> None:
    graph, lint = read(int8_pair()[1])
    node = next(row.node for row in lint.layers if row.state == "conforming")
    found = engine_layer(node, "sm80_xmma_fprop_implicit_gemm_i8f16_i8i32_f32_nhwckrsc_nhwc", outputs=(output,))
    engine = make_engine(graph, precision="int8").model_copy(update={"layers": (found,)})
    hints = layer_of(explain(graph, lint, engine), node).hints
    assert sum("its output is not INT8" in hint.text for hint in hints) == expected
