"""The stage: what it writes, what it reports, and that times alone decide."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.artifacts.rewriting import LayerRewrite, RewriteReport
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.config import EngineOptions, RewriteOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.rewrite import run as stage
from masksparse_deploy.rewrite.run import rewrite
from masksparse_deploy.rewrite.verify import differences
from tests.rewrite.machine import FakeBackend, LatencyModel, convolutions, is_small
from tests.rewrite.models import (
    assert_same_function,
    blocked_weight,
    conv,
    layer_constants,
    model_of,
    residual_blocks,
    with_positions,
)

HALF = BlockPattern(n=4, rate=0.5)
ENGINE = EngineOptions(batch=2, threads=1)


def rewrite_with(
    latency_s: LatencyModel, folder: Path, model: onnx.ModelProto | None = None, **options: object
) -> tuple[RewriteReport, FakeBackend]:
    """Rewrite a model on a machine that takes as long as the function says."""
    backend = FakeBackend(latency_s)
    sparse = folder / "sparse.onnx"
    onnx.save(model or residual_blocks(HALF), sparse)
    report = rewrite(sparse, RewriteOptions(**options), ENGINE, out=folder / "out", backend=backend, clock=backend.clock)  # type: ignore[arg-type]
    return report, backend


def grouped_is(factor: float) -> LatencyModel:
    """Every convolution takes 1 ms, one with groups `factor` ms."""
    return lambda model: 1e-3 * sum(factor if groups > 1 else 1.0 for groups in convolutions(model).values())


def by_name(report: RewriteReport) -> dict[str, LayerRewrite]:
    return {layer.node: layer for layer in report.layers}


def test_layers_that_get_faster_are_rewritten(tmp_path: Path) -> None:
    report, _ = rewrite_with(grouped_is(0.5), tmp_path)
    assert {layer.form for layer in report.layers} == {"gathered"}
    # in the network three of four convolutions take half a millisecond
    assert report.speedup == pytest.approx(4 / 2.5)
    written = tmp_path / "out" / "rewritten.onnx"
    assert read_graph(written).sha256 == report.rewritten_sha256
    assert RewriteReport.read(tmp_path / "out" / "rewrite.json") == report
    sparse = tmp_path / "sparse.onnx"
    assert report.sparse_sha256 == read_graph(sparse).sha256
    assert differences(read_graph(sparse), read_graph(written)) == ()
    assert_same_function(onnx.load(sparse), onnx.load(written))
    layer = by_name(report)["conv1"]
    assert (layer.pattern, layer.density, layer.computed_density, layer.ideal) == ("1x4@0.5", 0.5, 0.5, 2.0)
    # one of two convolutions in the small network is the layer
    assert layer.speedup == pytest.approx(2 / 1.5)
    assert layer.times[0].form == "dense" and layer.times[0].median_ms == pytest.approx(2.0)
    assert layer.reason.startswith("faster: 1.33x")


def test_nothing_is_written_where_nothing_gets_faster(tmp_path: Path) -> None:
    rewrite_with(grouped_is(0.5), tmp_path)
    assert (tmp_path / "out" / "rewritten.onnx").exists()
    (tmp_path / "out" / "rewrite_times.json").unlink()
    report, _ = rewrite_with(grouped_is(1.5), tmp_path)
    assert report.rewritten_sha256 is None and report.speedup is None
    assert {layer.form for layer in report.layers} == {"dense"}
    assert by_name(report)["conv1"].reason.startswith("not faster: 0.80x")
    # that of the run before would no longer belong to the report
    assert not (tmp_path / "out" / "rewritten.onnx").exists()


def test_one_layer_may_stay_dense(tmp_path: Path) -> None:
    def strided_is_slow(model: onnx.ModelProto) -> float:
        wide = any(tuple(tensor.dims)[:1] == (32,) and len(tensor.dims) == 4 for tensor in model.graph.initializer)
        groups = convolutions(model)
        slow = groups.get("conv3", 1) > 1 or (is_small(model) and wide and groups["layer"] > 1)
        return grouped_is(0.5)(model) + (5e-3 if slow else 0.0)

    report, _ = rewrite_with(strided_is_slow, tmp_path)
    forms = {layer.node: layer.form for layer in report.layers}
    assert forms == {"conv1": "gathered", "conv2": "gathered", "conv3": "dense"}


def test_the_network_decides_what_layers_alone_do_not(tmp_path: Path) -> None:
    """A little faster alone, but not in the network."""

    def misleading(model: onnx.ModelProto) -> float:
        return grouped_is(0.9 if is_small(model) else 1.2)(model)

    report, _ = rewrite_with(misleading, tmp_path)
    assert report.rewritten_sha256 is None
    assert "alone as gathered, but the network is not faster with it" in by_name(report)["conv1"].reason


def test_the_network_may_gain_by_what_layers_lose(tmp_path: Path) -> None:
    report, _ = rewrite_with(lambda model: grouped_is(1.1 if is_small(model) else 0.5)(model), tmp_path)
    assert {layer.form for layer in report.layers} == {"gathered"}
    assert "and the network is faster with it" in by_name(report)["conv1"].reason


def test_a_network_that_loses_although_layers_gain_much_is_not_written(tmp_path: Path) -> None:
    report, _ = rewrite_with(lambda model: grouped_is(0.1 if is_small(model) else 1.5)(model), tmp_path)
    assert report.rewritten_sha256 is None


def test_the_network_decides_between_variants_of_a_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone four groups of 8 output channels are as fast as two of 16; in the network two are faster."""
    monkeypatch.setattr(stage, "channel_block", lambda: 16)
    weight = np.zeros((32, 64, 3, 3), np.float32)
    weight[:16, :16] = weight[16:, 8:24] = 1
    nodes = [conv("stem", "x", "b"), conv("a", "b", "y")]
    constants = layer_constants("stem", np.ones((64, 4, 3, 3), np.float32)) | layer_constants("a", weight)
    model = model_of(nodes, constants, {"a": BlockPattern(n=8, rate=0.75)})

    def latency_s(small: onnx.ModelProto) -> float:
        groups = convolutions(small).values()
        return 1e-3 * sum(1.0 if count == 1 else 0.5 if is_small(small) or count == 2 else 0.7 for count in groups)

    report, _ = rewrite_with(latency_s, tmp_path, model)
    (layer,) = report.layers
    assert [timed.variant for timed in layer.times[1:]] == ["", "16 channels a group, groups of 16"]
    assert [timed.median_ms for timed in layer.times[1:]] == pytest.approx([1.5, 1.5])
    assert layer.reason.endswith("alone as gathered, 16 channels a group, groups of 16")
    assert report.speedup == pytest.approx(2 / 1.5)


def test_blocks_and_masked_positions_of_one_network(tmp_path: Path) -> None:
    """The layer with both takes the form that is faster."""
    model = with_positions(residual_blocks(HALF), ["stem", "conv2"])

    def latency_s(network: onnx.ModelProto) -> float:
        products = sum(node.op_type == "Gemm" for node in network.graph.node)
        return grouped_is(0.5)(network) + 0.2e-3 * products

    report, _ = rewrite_with(latency_s, tmp_path, model)
    layers = by_name(report)
    assert {name: layer.form for name, layer in layers.items()} == {
        "stem": "rows",
        "conv1": "gathered",
        "conv2": "rows",
        "conv3": "gathered",
    }
    assert {timed.form for timed in layers["conv2"].times} == {"dense", "gathered", "rows"}
    assert layers["conv2"].pattern == "1x4@0.5 + positions"
    assert layers["stem"].computed_density == layers["stem"].density < 1
    assert_same_function(model, onnx.load(tmp_path / "out" / "rewritten.onnx"))


def test_known_times_are_taken_from_the_file(tmp_path: Path) -> None:
    first, before = rewrite_with(grouped_is(0.5), tmp_path)
    again, after = rewrite_with(grouped_is(0.5), tmp_path)
    assert before.run_count > 0 and after.run_count == 0
    assert again.rewritten_sha256 == first.rewritten_sha256
    assert not any(timed.from_cache for layer in first.layers for timed in layer.times)
    assert all(timed.from_cache for layer in again.layers for timed in layer.times)


def test_more_rounds_are_timed_anew(tmp_path: Path) -> None:
    rewrite_with(grouped_is(0.5), tmp_path)
    _, backend = rewrite_with(grouped_is(0.5), tmp_path, rounds=30)
    assert backend.run_count > 0


def test_layers_with_the_same_arithmetic_are_timed_once(tmp_path: Path) -> None:
    _, backend = rewrite_with(grouped_is(0.5), tmp_path)
    small = [model for model in backend.built if is_small(model)]
    dense = [model for model in small if max(convolutions(model).values()) == 1]
    assert len(dense) == 2  # conv1 and conv2 have one shape, conv3 another


def test_a_damaged_file_of_times_is_set_aside(tmp_path: Path) -> None:
    first, _ = rewrite_with(grouped_is(0.5), tmp_path)
    times = tmp_path / "out" / "rewrite_times.json"
    times.write_bytes(times.read_bytes().replace(b'"rounds": 20', b'"rounds": 99', 1))
    report, backend = rewrite_with(grouped_is(0.5), tmp_path)
    assert backend.run_count > 0
    (remark,) = report.remarks
    assert remark.startswith("known times were set aside as rewrite_times.json.damaged, and layers timed anew: ")
    assert (tmp_path / "out" / "rewrite_times.json.damaged").exists() and times.exists()
    assert report.rewritten_sha256 == first.rewritten_sha256


def test_the_cache_can_lie_elsewhere(tmp_path: Path) -> None:
    rewrite_with(grouped_is(0.5), tmp_path, cache=str(tmp_path / "shared.json"))
    assert (tmp_path / "shared.json").exists() and not (tmp_path / "out" / "rewrite_times.json").exists()


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_always_rewrites_and_says_what_it_brought(tmp_path: Path, factor: float) -> None:
    report, _ = rewrite_with(grouped_is(factor), tmp_path, mode="always")
    assert {layer.form for layer in report.layers} == {"gathered"}
    assert report.speedup == pytest.approx(4 / (1 + 3 * factor))
    slower = [remark for remark in report.remarks if remark.startswith("the rewritten network is slower")]
    assert bool(slower) == (factor > 1)


def test_never_leaves_all_as_it_is(tmp_path: Path) -> None:
    report, backend = rewrite_with(grouped_is(0.5), tmp_path, mode="never")
    assert backend.run_count == 0 and report.rewritten_sha256 is None
    assert {layer.reason for layer in report.layers} == {"not rewritten, as configured"}


def test_a_file_without_blocks_has_nothing_to_rewrite(tmp_path: Path) -> None:
    weight = np.ones((8, 4, 3, 3), np.float32)
    report, backend = rewrite_with(grouped_is(0.5), tmp_path, model_of([conv("a", "x", "y")], layer_constants("a", weight), {}))
    assert report.remarks == ("the file has no layer with 1xN blocks or masked positions: nothing to rewrite",)
    assert report.layers == () and report.rewritten_sha256 is None and backend.run_count == 0


def test_what_the_runtime_refuses_stays_dense(tmp_path: Path) -> None:
    report, _ = rewrite_with(lambda model: -1.0 if max(convolutions(model).values()) > 1 else 1e-3, tmp_path)
    assert {layer.reason for layer in report.layers} == {"the runtime does not take it: refused by the fake runtime"}


def test_layers_of_unknown_size_stay_dense(tmp_path: Path) -> None:
    weights = layer_constants("a", blocked_weight((8, 4, 3, 3), HALF))
    model = model_of([conv("a", "x", "y")], weights, {"a": HALF}, size="side")
    report, _ = rewrite_with(grouped_is(0.5), tmp_path, model)
    (layer,) = report.layers
    assert layer.reason == "the file does not fix the height and width of its input, so that it cannot be timed"
    report, _ = rewrite_with(grouped_is(0.5), tmp_path, model, mode="always")
    assert report.rewritten_sha256 is not None and report.speedup is None
    assert report.remarks == ("the network was not timed, as the file does not fix the height and width of its input",)


def test_nodes_without_names_are_rewritten_too(tmp_path: Path) -> None:
    model = residual_blocks(HALF)
    for node in model.graph.node:
        node.name = "" if node.op_type == "Conv" else "Conv_2"
    report, _ = rewrite_with(grouped_is(0.5), tmp_path, model, mode="always")
    assert [layer.node for layer in report.layers] == ["Conv_2_", "Conv_4", "Conv_7"]
    written = onnx.load(tmp_path / "out" / "rewritten.onnx")
    assert convolutions(written) == {"Conv_0": 1, "Conv_2_": 4, "Conv_4": 4, "Conv_7": 8}


def test_layers_in_functions_are_rewritten(tmp_path: Path) -> None:
    weights = layer_constants("a", blocked_weight((8, 4, 3, 3), HALF))
    model = model_of([conv("a", "x", "y")], weights, {})
    names = ["x", "a.weight", "a.bias"]
    function = helper.make_function("own", "Layer", names, ["y"], list(model.graph.node), [helper.make_opsetid("", 20)])
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Layer", names, ["y"], name="call", domain="own"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    report, _ = rewrite_with(grouped_is(0.5), tmp_path, model, mode="always")
    assert [layer.form for layer in report.layers] == ["gathered"]
    assert_same_function(model, onnx.load(tmp_path / "out" / "rewritten.onnx"))


def test_layers_of_which_no_form_computes_less_stay_dense(tmp_path: Path) -> None:
    """One group needs all channels, so that the others get all, too."""
    weight = np.zeros((8, 4, 3, 3), np.float32)
    weight[:4, :3] = weight[4:] = 1
    model = model_of([conv("a", "x", "y")], layer_constants("a", weight), {"a": BlockPattern(n=4, rate=0.1, uniform=False)})
    report, backend = rewrite_with(grouped_is(0.5), tmp_path, model)
    assert [layer.reason for layer in report.layers] == ["no form of it computes less"] and backend.run_count == 0


def test_masked_positions_in_half_precision_stay_dense(tmp_path: Path) -> None:
    weights = layer_constants("a", np.ones((8, 4, 3, 3), np.float16))
    nodes = [conv("a", "x", "b"), helper.make_node("Relu", ["b"], ["y"], name="relu")]
    model = with_positions(model_of(nodes, weights, {}, element=TensorProto.FLOAT16), ["a"])
    report, _ = rewrite_with(grouped_is(0.5), tmp_path, model)
    assert [layer.reason for layer in report.layers] == ["rows are computed in float32, and its weights are float16"]


def test_a_mask_that_keeps_nothing_leaves_its_layer_dense(tmp_path: Path) -> None:
    weights = layer_constants("a", np.ones((8, 4, 3, 3), np.float32))
    nodes = [conv("a", "x", "b"), helper.make_node("Relu", ["b"], ["y"], name="relu")]
    model = with_positions(model_of(nodes, weights, {}), ["a"])
    keep = next(tensor for tensor in model.graph.initializer if tensor.name == "a.keep")
    keep.CopyFrom(numpy_helper.from_array(np.zeros(tuple(keep.dims), np.bool_), "a.keep"))
    report, _ = rewrite_with(grouped_is(0.5), tmp_path, model)
    assert [layer.reason for layer in report.layers] == ["none of its positions is kept"]


def test_a_file_is_not_written_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "rewritten.onnx"
    onnx.save(residual_blocks(HALF), path)
    with pytest.raises(UsageError, match="would be overwritten by what is made from it; choose another output folder"):
        rewrite(path, RewriteOptions(), ENGINE, out=tmp_path, backend=FakeBackend(grouped_is(1)))


def test_masks_of_another_n_are_refused(tmp_path: Path) -> None:
    model = residual_blocks(BlockPattern(n=4, rate=0.5))
    for message in (*model.graph.node, *model.graph.initializer):
        for entry in message.metadata_props:
            entry.value = entry.value.replace("1x4@", "1x8@")
    with pytest.raises(
        ArtifactError, match=r"node conv1 is annotated with the pattern 1x8@0\.5, but 2 of 2 groups hold weights in"
    ):
        rewrite_with(grouped_is(0.5), tmp_path, model)


def test_a_rewrite_that_changed_the_function_would_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "differences", lambda sparse, written: ("planted",))
    with pytest.raises(ArtifactError, match=r"would not be the function of .* \(planted\); nothing was written"):
        rewrite_with(grouped_is(0.5), tmp_path)
    assert not (tmp_path / "out" / "rewritten.onnx").exists()


def test_progress_is_told_for_every_layer(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    sparse = tmp_path / "sparse.onnx"
    onnx.save(residual_blocks(HALF), sparse)
    backend = FakeBackend(grouped_is(0.5))
    rewrite(
        sparse,
        RewriteOptions(),
        ENGINE,
        out=tmp_path,
        backend=backend,
        clock=backend.clock,
        progress=lambda *words: told.append(words),
    )
    assert [words for words in told if words[0] == "timing layers"] == [("timing layers", index, 3) for index in range(4)]
    networks = [words for words in told if words[0] == "timing networks"]
    assert networks[-1][1] == networks[-1][2]


@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_whole_stage_with_onnx_runtime(tmp_path: Path, element: int) -> None:
    """What gets faster here depends on the machine; that the function stays does not."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weights = layer_constants("a", blocked_weight((32, 4, 3, 3), HALF, dtype=dtype))
    model = model_of([conv("a", "x", "y")], weights, {"a": HALF}, element=element)
    onnx.save(model, tmp_path / "sparse.onnx")
    options = RewriteOptions(rounds=10)
    report = rewrite(tmp_path / "sparse.onnx", options, ENGINE, out=tmp_path / "out")
    (layer,) = report.layers
    assert {timed.form for timed in layer.times} == {"dense", "gathered"}, layer.reason
    assert (report.rewritten_sha256 is not None) == (tmp_path / "out" / "rewritten.onnx").exists()
    assert report.backend == "onnxruntime" and report.channel_block in (8, 16)
    always = rewrite(tmp_path / "sparse.onnx", RewriteOptions(rounds=10, mode="always"), ENGINE, out=tmp_path / "all")
    assert always.rewritten_sha256 is not None and always.speedup is not None
