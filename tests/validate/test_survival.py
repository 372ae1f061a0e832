"""Each of the four checkpoints finds a layer that was lost there, and names it as the first."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.artifacts.baking import BakedLayer, BakeReport
from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.survival import Checkpoint, LayerSurvival, StageState
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.annotations import PATTERN
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph, read_graph, weighted_layers
from masksparse_deploy.learn.transposable.solve import transposable_mask
from masksparse_deploy.validate.deployed import check_weights, read_plan_graph
from masksparse_deploy.validate.survival import check_survival, survival
from tests.bake.lint_models import one_layer, pruned, weights
from tests.engine.preflight_models import change_initializer
from tests.models.make_onnx import MASKED_LAYERS, residual_masks, residual_pair, set_properties
from tests.models.transposable import T24, move_within_a_row

LAYER = "layer1.conv2"
WEIGHT = f"{LAYER}.weight"
# 16 output channels, 16 / 4 groups, 9 taps
GROUPS = 576
SOUND = StageState(state="conforming", group_count=GROUPS)
BROKEN = StageState(state="broken", violation_count=1, group_count=GROUPS)


def fill_group(array: np.ndarray) -> np.ndarray:
    """One group of four input channels with no zero in it, one step above the smallest number of the type."""
    array[0, :4, 1, 1] = 1
    return array


def graph_of(model: onnx.ModelProto) -> Graph:
    return parse_graph(model.SerializeToString(), name="model.onnx")


def engine_of(graph: Graph, backend: str = "onnxruntime", layers: tuple[EngineLayer, ...] = ()) -> EngineArtifact:
    return EngineArtifact.model_construct(backend=backend, source_sha256=graph.sha256, layers=layers)


def bake_report(sparse: Graph, broken_at: str | None = None) -> BakeReport:
    """What the bake stage records; from `broken_at` on, one group of the layer LAYER is broken."""
    masks = residual_masks()
    stages = ("module", "onnx", "converted")
    layers = []
    for layer in weighted_layers(sparse):
        if layer.node.name not in MASKED_LAYERS:
            continue
        from_here = stages.index(broken_at) if layer.node.name == LAYER and broken_at is not None else len(stages)
        count = layer.weight.size // 4
        layers.append(
            BakedLayer(
                layer=layer.node.name,
                weight_name=layer.weight_name,
                node=layer.node.name,
                initializer=layer.weight_name,
                shape=layer.weight.shape,
                pattern="2:4",
                group_axis=1,
                density=0.5,
                group_count=count,
                violation_count=0,
                mask_sha256=masks.layers[layer.weight_name].digest,
                checkpoints=tuple(
                    Checkpoint(stage=stage, violation_count=int(place >= from_here), group_count=count)
                    for place, stage in enumerate(stages)
                ),
            )
        )
    return BakeReport.model_construct(sparse_sha256=sparse.sha256, layers=tuple(layers))


def followed(layers: tuple[LayerSurvival, ...]) -> LayerSurvival:
    (layer,) = [layer for layer in layers if layer.layer == LAYER]
    return layer


@pytest.fixture(scope="module")
def sparse() -> Graph:
    return graph_of(residual_pair()[1])


@pytest.fixture(scope="module")
def broken() -> Graph:
    model = residual_pair()[1]
    change_initializer(model, WEIGHT, fill_group)
    return graph_of(model)


def test_a_sound_network_conforms_at_all_four(sparse: Graph) -> None:
    engine = engine_of(sparse)
    layers = survival(sparse, sparse, engine, bake_report(sparse))
    assert [layer.layer for layer in layers] == list(MASKED_LAYERS)
    found = followed(layers)
    assert (found.module, found.onnx, found.converted, found.engine, found.lost_at) == (SOUND, SOUND, SOUND, SOUND, None)
    check = check_survival(layers, engine)
    assert (check.verdict, check.measured, check.decides) == ("pass", 0.0, True)


def test_each_stage_names_the_layer_that_was_lost_there(sparse: Graph, broken: Graph) -> None:
    engine = engine_of(sparse)
    cases = {
        "module": survival(broken, broken, engine, bake_report(broken, "module")),
        "onnx": survival(broken, broken, engine, bake_report(broken, "onnx")),
        # what the report says about the converted file does not count: the file itself is looked at
        "converted": survival(broken, broken, engine, bake_report(broken)),
        "engine": survival(sparse, broken, engine, bake_report(sparse)),
    }
    for stage, layers in cases.items():
        found = followed(layers)
        assert found.lost_at == stage
        assert found.at(stage) == BROKEN and str(found.at(stage)) == "broken (1 of 576 groups)"
        check = check_survival(layers, engine)
        assert (check.verdict, check.measured) == ("fail", 1.0)
        assert check.detail == f"{LAYER}: first lost at the stage {stage}: 1 of 576 groups keep more than 2 of 4 weights"


def test_what_was_not_checked_says_why(sparse: Graph) -> None:
    found = followed(survival(sparse, sparse, engine_of(sparse), None))
    assert str(found.module) == str(found.onnx) == "not checked: no bake report was given for it"
    report = bake_report(sparse)
    bare = tuple(layer.model_copy(update={"checkpoints": ()}) for layer in report.layers)
    found = followed(survival(sparse, sparse, engine_of(sparse), report.model_copy(update={"layers": bare})))
    assert str(found.module) == "not checked: the bake report has no count for this stage"
    assert found.lost_at is None


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((), "nor which kernel it runs"),
        ((("sm90_xmma_sparse_fprop", True),), "it runs the sparse tactic sm90_xmma_sparse_fprop"),
        ((("sm90_xmma_fprop", False),), "it runs the dense tactic sm90_xmma_fprop"),
        ((("", None),), "nor which kernel it runs"),
    ],
)
def test_an_engine_that_shows_no_weights(sparse: Graph, layers: tuple[Any, ...], words: str) -> None:
    kernels = tuple(
        EngineLayer(name="fused", onnx_nodes=(LAYER,), tactic=tactic, is_sparse=is_sparse, reason="")
        for tactic, is_sparse in layers
    )
    engine = engine_of(sparse, "tensorrt", kernels)
    found = survival(sparse, None, engine, bake_report(sparse))
    assert str(followed(found).engine) == f"not checked: tensorrt does not show the weights; {words}"
    check = check_survival(found, engine)
    assert (check.verdict, check.decides) == ("inconclusive", False)


@pytest.mark.parametrize(
    ("layers", "runs_sparse"),
    [
        (((LAYER, True), ("other", False)), True),
        (((LAYER, False), ("other", True)), False),
        (((LAYER, None), ("other", False)), None),
        # the runtime does not tell which entry computes the layer
        ((("", False), ("other", False)), False),
        ((("", False), ("other", True)), None),
        ((), None),
    ],
)
def test_whether_a_sparse_tactic_runs(
    sparse: Graph, layers: tuple[tuple[str, bool | None], ...], runs_sparse: bool | None
) -> None:
    kernels = tuple(
        EngineLayer(name=node or "entry", onnx_nodes=(node,) if node else (), tactic="", is_sparse=is_sparse, reason="")
        for node, is_sparse in layers
    )
    found = followed(survival(sparse, None, engine_of(sparse, "tensorrt", kernels), bake_report(sparse)))
    assert found.runs_sparse is runs_sparse


def test_a_loss_before_the_engine_fails_whatever_the_engine_shows(broken: Graph) -> None:
    engine = engine_of(broken, "tensorrt")
    assert check_survival(survival(broken, None, engine, None), engine).verdict == "fail"


def test_a_layer_that_went_missing(sparse: Graph) -> None:
    model = residual_pair()[1]
    for node in model.graph.node:
        node.name = f"other.{node.name}"
        if node.name == f"other.{LAYER}":
            node.ClearField("metadata_props")
    renamed = graph_of(model)
    gone = bake_report(sparse).model_copy(update={"sparse_sha256": renamed.sha256})
    layers = survival(renamed, renamed, engine_of(renamed), gone)
    found = followed(layers)
    assert (found.lost_at, found.converted.state, found.engine.state) == ("converted", "missing", "not checked")
    assert (
        "layer1.conv2: first lost at the stage converted: no operator layer1.conv2"
        in check_survival(layers, engine_of(renamed)).detail
    )


def test_a_plan_without_the_weight(sparse: Graph) -> None:
    model = residual_pair()[1]
    for node in model.graph.node:
        node.name = f"other.{node.name}"
        node.input[:] = [f"other.{name}" if name == WEIGHT else name for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = f"other.{WEIGHT}" if tensor.name == WEIGHT else tensor.name
    found = followed(survival(sparse, graph_of(model), engine_of(sparse), None))
    assert (found.lost_at, found.engine.state) == ("engine", "missing")


def test_nothing_masked_is_no_pass() -> None:
    dense = graph_of(residual_pair()[0])
    layers = survival(dense, dense, engine_of(dense), None)
    assert layers == ()
    check = check_survival(layers, engine_of(dense))
    assert (check.verdict, check.decides) == ("inconclusive", True)


def test_a_bake_report_of_another_file(sparse: Graph, broken: Graph) -> None:
    with pytest.raises(ArtifactError, match=f"recorded digest {sparse.sha256}, the file's digest is {broken.sha256}"):
        survival(broken, None, engine_of(broken), bake_report(sparse))


def converted_model(precision: str) -> onnx.ModelProto:
    """One masked convolution in FP16, or in INT8 with Q/DQ around it, which ONNX Runtime turns into integer operators."""
    kernel, bias = pruned(weights(16, 16, 3, 3)), weights(16, seed=1)
    node = helper.make_node
    if precision == "fp16":
        kind = TensorProto.FLOAT16
        constants = {"w": kernel.astype(np.float16), "b": bias.astype(np.float16)}
        nodes = [node("Conv", ["x", "w", "b"], ["y"], name="layer", pads=[1] * 4)]
    else:
        kind = TensorProto.FLOAT
        scale = (np.abs(kernel).max((1, 2, 3)) / 127).astype(np.float32)
        step = np.float32(0.05)
        constants = {
            "w": np.rint(kernel / scale[:, None, None, None]).astype(np.int8),
            "w.scale": scale,
            "w.zero": np.zeros(16, np.int8),
            "b": np.rint(bias / (scale * step)).astype(np.int32),
            "b.scale": scale * step,
            "step": step,
            "zero": np.int8(0),
        }
        nodes = [
            node("QuantizeLinear", ["x", "step", "zero"], ["x8"], name="q"),
            node("DequantizeLinear", ["x8", "step", "zero"], ["xf"], name="dq"),
            node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["wf"], name="w.dq", axis=0),
            node("DequantizeLinear", ["b", "b.scale"], ["bf"], name="b.dq", axis=0),
            node("Conv", ["xf", "wf", "bf"], ["c"], name="layer", pads=[1] * 4),
            node("QuantizeLinear", ["c", "step", "zero"], ["c8"], name="out.q"),
            node("DequantizeLinear", ["c8", "step", "zero"], ["y"], name="out.dq"),
        ]
    for entry in nodes:
        if entry.name == "layer":
            set_properties(entry, {PATTERN: "2:4"})
    values = [helper.make_tensor_value_info(name, kind, ["batch", 16, 6, 6]) for name in "xy"]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "converted", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_converted_layer_is_followed_into_the_plan(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "sparse.onnx"
    onnx.save(converted_model(precision), path)
    OnnxRuntimeBackend().build(path, tmp_path, EngineOptions(batch=2, threads=1), name="sparse")
    source, metadata = read_graph(path), tmp_path / "sparse.engine.json"
    engine = EngineArtifact.read(metadata)
    plan = read_plan_graph(engine, metadata)
    assert plan is not None and (precision != "int8" or any(node.op == "QLinearConv" for node in plan.nodes))
    (layer,) = survival(source, plan, engine, None)
    assert (layer.converted, layer.engine) == (SOUND, SOUND)
    check = check_weights("weights", source, plan, engine.backend)
    assert check.verdict == "pass", check.detail
    assert ("half a step" in check.detail) == (precision == "int8")
    for name, fault in (("w", "4 of 2304 values of w differ"), ("b", "16 of 16 values of b")):
        model = onnx.load(tmp_path / engine.plan)
        change_initializer(model, name, fill_group if name == "w" else lambda array: array + array.dtype.type(1))
        changed = graph_of(model)
        check = check_weights("weights", source, changed, engine.backend)
        assert (check.verdict, fault in check.detail) == ("fail", True), check.detail
        (layer,) = survival(source, changed, engine, None)
        assert layer.lost_at == ("engine" if name == "w" else None)


def test_a_transposable_layer_is_lost_where_only_a_column_is(tmp_path: Path) -> None:
    kernel = np.where(transposable_mask(weights(16, 16, 3, 3), T24), weights(16, 16, 3, 3), np.float32(0))
    files = {}
    for name, weight in (("sound", kernel), ("moved", move_within_a_row(kernel))):
        model = one_layer("Conv", weight, x=["n", 16, 8, 8])
        set_properties(model.graph.node[0], {PATTERN: "T2:4"})
        files[name] = graph_of(model)
    sound = StageState(state="conforming", group_count=2 * GROUPS)
    (found,) = survival(files["sound"], files["sound"], engine_of(files["sound"]), None)
    assert (found.pattern, found.converted, found.engine, found.lost_at) == ("T2:4", sound, sound, None)
    for where, plan in (("engine", files["moved"]), ("converted", files["moved"])):
        source = files["sound" if where == "engine" else "moved"]
        layers = survival(source, plan, engine_of(source), None)
        check = check_survival(layers, engine_of(source))
        assert check.verdict == "fail"
        assert check.detail == (
            f"layer: first lost at the stage {where}: 1 of 1,152 groups keep more than 2 of 4 weights along input or output "
            "channels"
        )
    # Its rows are what they were.
    set_properties(model.graph.node[0], {PATTERN: "2:4"})
    plain = graph_of(model)
    assert survival(plain, plain, engine_of(plain), None)[0].lost_at is None
