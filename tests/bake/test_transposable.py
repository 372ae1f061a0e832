"""Transposable patterns in files: annotated, held along both axes, and found broken where only the columns are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from masksparse_deploy.bake.conformity import check_conformity
from masksparse_deploy.bake.from_file import bake_file
from masksparse_deploy.bake.lint import lint, lint_graph
from masksparse_deploy.bake.precision.quantized_check import check_quantized
from masksparse_deploy.bake.run import bake
from masksparse_deploy.cli.cmd_lint import command
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.reader import parse_graph, read_graph
from masksparse_deploy.learn.transposable.solve import transposable_mask
from tests.bake.baking import function_model
from tests.bake.file_models import mask_set, matmul_model, values
from tests.bake.lint_models import layer_of, one_layer, pruned, report_of, weights
from tests.models.tiny_cnn import EXAMPLE_SHAPE, MASKED_LAYERS, example_images, tiny_cnn
from tests.models.transposable import T24, move_within_a_row, transposable_masks

LAYER = "block.conv2"
BROKEN = "1 of 1,152 groups keep more than 2 weights along input or output channels"

# Groups of four output channels of a weight that is 2:4 along its input channels only, which keep more than two.
FULL = int((np.count_nonzero(pruned(weights(8, 8, 1, 1)).reshape(2, 4, 8), axis=1) > 2).sum())


def transposed(weight: np.ndarray) -> np.ndarray:
    return np.where(transposable_mask(weight, T24), weight, np.float32(0))


def bake_tiny(out: Path, precision: str = "fp32", *, new_weights: bool = False) -> tuple[MaskSet, BakeReport]:
    model = tiny_cnn()
    masks = transposable_masks(model, new_weights=new_weights)
    options = BakeOptions.model_validate({"precision": precision})
    report = bake(
        model,
        masks,
        options,
        example_shape=EXAMPLE_SHAPE,
        source_sha256=masks.source_sha256,
        out=out,
        probe_images=example_images(),
        calibration=None if precision == "fp32" else example_images(16),
    )
    return masks, report


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MaskSet, BakeReport]:
    out = tmp_path_factory.mktemp("transposable")
    return out, *bake_tiny(out)


def with_weight(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    model = onnx.load(path)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.raw_data = change(numpy_helper.to_array(tensor)).tobytes()
    return model


def test_node_and_weight_say_so_and_both_axes_are_counted(baked: tuple[Path, MaskSet, BakeReport]) -> None:
    out, masks, report = baked
    model = onnx.load(out / "sparse.onnx")
    for part in (*model.graph.node, *model.graph.initializer):
        notes = {entry.key: entry.value for entry in part.metadata_props}
        if notes.get(keys.PATTERN) is not None:
            assert (notes[keys.PATTERN], notes[keys.GROUP_AXIS], notes[keys.DENSITY]) == ("T2:4", "1", "0.5")
    assert [layer.pattern for layer in report.layers] == ["T2:4", "T2:4"]
    for layer in report.layers:
        # A group for every four weights, along each of the two axes.
        groups = 2 * masks.layers[layer.weight_name].keep.size // 4
        assert [(c.stage, c.violation_count, c.group_count) for c in layer.checkpoints] == [
            (stage, 0, groups) for stage in ("module", "onnx", "converted")
        ]
    found = lint(out / "sparse.onnx", transposable=True)
    assert found.ok
    states = {layer.weight.removesuffix(".weight"): (layer.state, layer.transposable) for layer in found.layers}
    assert {name: states[name] for name in MASKED_LAYERS} == dict.fromkeys(MASKED_LAYERS, ("conforming", True))


def test_a_weight_moved_to_another_column_is_found_by_linter_and_conformity(
    baked: tuple[Path, MaskSet, BakeReport],
) -> None:
    out, masks, _ = baked
    model = with_weight(out / "sparse.onnx", f"{LAYER}.weight", move_within_a_row)
    graph = parse_graph(model.SerializeToString(), name="moved.onnx")
    report = lint_graph(graph, name="moved.onnx")
    assert not report.ok
    (row,) = (layer for layer in report.layers if layer.state == "broken claim")
    assert row.weight == f"{LAYER}.weight"
    # One column gained a weight and keeps three; the other lost one, which breaks nothing.
    assert row.why == f"annotated T2:4, but {BROKEN} (changed after baking?)"
    assert (row.violation_count, row.group_count, row.transposable) == (1, 1152, None)
    findings = check_conformity(graph, masks).findings
    assert any(": 1 of 1152 groups keep more than 2 of 4 along input or output channels" in finding for finding in findings)
    # The rows are what they should be: as a plain pattern, nothing of it is broken.
    assert NMPattern(n=2, m=4).count_violations(graph.constants[f"{LAYER}.weight"] != 0, group_axis=1) == 0


def test_int8_keeps_the_columns_too_with_new_weights(tmp_path: Path) -> None:
    masks, report = bake_tiny(tmp_path, "int8", new_weights=True)
    assert report.weights_updated
    assert all(layer.violation_count == 0 for layer in report.layers)
    graph = read_graph(tmp_path / "sparse.onnx")
    assert lint_graph(graph, name="int8", transposable=True).ok
    assert check_quantized(graph, masks) == ()
    name = f"{LAYER}.weight"
    assert graph.constants[name].dtype == np.int8
    moved = with_weight(tmp_path / "sparse.onnx", name, move_within_a_row)
    findings = check_quantized(parse_graph(moved.SerializeToString(), name="moved.onnx"))
    assert len(findings) == 1
    assert "1 of 1152 groups keep more than 2 of 4 integers" in findings[0]


@pytest.mark.parametrize(
    ("model", "state", "why"),
    [
        (one_layer("Conv", transposed(weights(8, 8, 3, 3)), x=["n", 8, 8, 8]), True, "2:4, transposable, not annotated; small"),
        (one_layer("Conv", pruned(weights(8, 8, 3, 3)), x=["n", 8, 8, 8]), False, "2:4, not annotated; small"),
        (one_layer("MatMul", transposed(weights(8, 12)), x=["n", 8]), True, "2:4, transposable, not annotated; small"),
        (one_layer("Gemm", transposed(weights(12, 8)), x=["n", 8], transB=1), True, "2:4, transposable, not annotated; small"),
        (one_layer("Conv", pruned(weights(6, 8, 3, 3)), x=["n", 8, 8, 8]), False, "2:4, not annotated; small"),
        (one_layer("Conv", weights(8, 8, 3, 3), x=["n", 8, 8, 8]), None, "dense; small"),
    ],
)
def test_files_without_annotations_are_told_whether_they_are_transposable(
    model: onnx.ModelProto, state: bool | None, why: str
) -> None:
    layer = layer_of(report_of(model), "layer")
    assert layer.transposable is state
    assert layer.why.startswith(why)


@pytest.mark.parametrize(
    ("weight", "finding"),
    [
        (
            pruned(weights(8, 8, 1, 1)),
            f"w is not transposable: {FULL} of 16 groups of output channels keep more than 2 of 4 weights",
        ),
        (pruned(weights(6, 8, 1, 1)), "w is not transposable: 6 output channels: not a multiple of 4"),
        (weights(8, 8, 1, 1), "no layer conforms to a pattern, so none is transposable"),
    ],
)
def test_the_user_may_demand_it_of_any_file(weight: np.ndarray, finding: str) -> None:
    graph = parse_graph(one_layer("Conv", weight, x=["n", 8, 8, 8]).SerializeToString(), name="test.onnx")
    assert lint_graph(graph, name="test.onnx").ok
    report = lint_graph(graph, name="test.onnx", transposable=True)
    assert not report.ok
    assert report.findings == (finding,)


def test_the_command_line_answers_by_its_exit_code(tmp_path: Path) -> None:
    for name, weight, code in (("both", transposed(weights(8, 8, 3, 3)), 0), ("rows", pruned(weights(8, 8, 3, 3)), 1)):
        onnx.save(one_layer("Conv", weight, x=["n", 8, 8, 8]), tmp_path / f"{name}.onnx")
        path = str(tmp_path / f"{name}.onnx")
        assert CliRunner().invoke(command, [path], standalone_mode=False).return_value == 0
        result = CliRunner().invoke(command, [path, "--transposable"], standalone_mode=False)
        assert result.return_value == code
        assert ("w is not transposable: " in result.output) == bool(code)


def annotated(model: onnx.ModelProto, pattern: str, axis: int) -> onnx.ModelProto:
    for part in (model.graph.node[0], model.graph.initializer[0]):
        part.metadata_props.add(key=keys.PATTERN, value=pattern)
        part.metadata_props.add(key=keys.GROUP_AXIS, value=str(axis))
    return model


@pytest.mark.parametrize(
    ("model", "axis", "why"),
    [
        (
            one_layer("Conv", pruned(weights(6, 8, 1, 1)), x=["n", 8, 4, 4]),
            1,
            "annotated T2:4, but 6 output channels: not a multiple",
        ),
        (
            one_layer("MatMul", pruned(weights(8, 10), axis=0), x=["n", 8]),
            0,
            "annotated T2:4, but 10 output channels: not a mult",
        ),
        (
            one_layer("MatMul", pruned(weights(8), axis=0), x=["n", 8], rank=1),
            0,
            "annotated T2:4, but 8 output channels: not a mu",
        ),
        (
            one_layer("Conv", pruned(weights(8, 8, 1, 1)), x=["n", 8, 4, 4]),
            1,
            f"annotated T2:4, but {FULL} of 32 groups keep more than 2",
        ),
    ],
)
def test_claims_that_cannot_be_or_are_not(model: onnx.ModelProto, axis: int, why: str) -> None:
    layer = layer_of(report_of(annotated(model, "T2:4", axis)), "layer")
    assert layer.state == "broken claim"
    assert layer.why.startswith(why)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("Conv", ()),
        ("Conv", (8,)),
        ("Conv", (8, 8)),
        ("Conv", (0, 8, 1, 1)),
        ("Conv", (8, 0, 1, 1)),
        ("Conv", (8, 8, 1, 1, 1)),
        ("ConvTranspose", (8,)),
        ("ConvTranspose", (8, 8, 1, 1)),
        ("Gemm", ()),
        ("Gemm", (8,)),
        ("MatMul", ()),
        ("MatMul", (2, 2, 8, 8)),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 7])
def test_claims_on_weights_of_any_shape_are_judged(op: str, shape: tuple[int, ...], axis: int) -> None:
    graph = parse_graph(annotated(one_layer(op, weights(*shape), x=["n", 8, 4, 4]), "T2:4", axis).SerializeToString(), name="x")
    report = lint_graph(graph, name="x", transposable=True)
    assert report.layers[0].state == ("not eligible" if (shape, axis) == ((0, 8, 1, 1), 1) else "broken claim")
    assert not report.ok


def test_a_batch_of_matrices_has_its_outputs_on_the_last_axis() -> None:
    weight = np.stack([transposed(weights(8, 12, seed=seed)) for seed in range(3)])
    layer = layer_of(report_of(annotated(one_layer("MatMul", weight, x=["n", 3, 5, 8]), "T2:4", 1)), "layer")
    assert (layer.violation_count, layer.group_count) == (0, 2 * weight.size // 4)


@pytest.mark.parametrize(("m", "n"), [(4, 2), (8, 4), (16, 8)])
def test_masks_of_pytorch_linear_weights_go_into_files_that_store_them_transposed(tmp_path: Path, n: int, m: int) -> None:
    pattern = NMPattern(n=n, m=m, transposable=True)
    weight = values(2 * m, m)
    mask = LayerMask(weight_name="fc.weight", keep=transposable_mask(weight, pattern), group_axis=1, pattern=pattern)
    onnx.save(matmul_model(np.ascontiguousarray(weight.T)), tmp_path / "in.onnx")
    report = bake_file(tmp_path / "in.onnx", mask_set(mask), BakeOptions(), out=tmp_path / "out")
    (layer,) = report.layers
    assert (layer.pattern, layer.group_axis, layer.group_count, layer.violation_count) == (
        str(pattern),
        0,
        2 * weight.size // m,
        0,
    )
    x = values(3, m, seed=1)
    (found,) = onnxruntime.InferenceSession(tmp_path / "out" / "sparse.onnx").run(None, {"x": x})
    # Sums of at most 8 terms of size one in FP32: 8 * 2^-24, about 5e-7
    np.testing.assert_allclose(found, x @ np.where(mask.keep, weight, 0).T, atol=5e-6)
    moved = with_weight(tmp_path / "out" / "sparse.onnx", "fc.weight", lambda stored: move_within_a_row(stored.T).T.copy())
    if m == 4:
        assert not lint_graph(parse_graph(moved.SerializeToString(), name="moved"), name="moved").ok


def test_weights_that_functions_multiply_by_are_counted_along_both_axes(tmp_path: Path) -> None:
    weight = values(8, 8)
    mask = LayerMask(weight_name="a.weight", keep=transposable_mask(weight, T24), group_axis=0, pattern=T24)
    onnx.save(function_model("a.weight"), tmp_path / "in.onnx")
    (layer,) = bake_file(tmp_path / "in.onnx", mask_set(mask), BakeOptions(), out=tmp_path / "out").layers
    assert (layer.pattern, layer.group_count, layer.violation_count) == ("T2:4", 32, 0)
