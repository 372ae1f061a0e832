"""1xN blocks in baked files: annotated, counted by blocks, and found broken where one weight is back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from masksparse_deploy.bake.blocks import count_blocks
from masksparse_deploy.bake.conformity import check_conformity, count_groups
from masksparse_deploy.bake.from_file import bake_file
from masksparse_deploy.bake.lint import lint, lint_graph
from masksparse_deploy.bake.precision.quantized_check import check_quantized
from masksparse_deploy.bake.run import bake
from masksparse_deploy.core.artifacts.baking import BakeReport, LintLayer
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.reader import parse_graph, read_graph
from tests.bake.file_models import mask_set, matmul_model, values
from tests.bake.lint_models import layer_of, one_layer, report_of, weights
from tests.models.blocks import block_keep, put_back_one_weight
from tests.models.tiny_cnn import EXAMPLE_SHAPE, MASKED_LAYERS, example_images, magnitude_masks, tiny_cnn

PATTERN = "1x4@0.5"
LAYER = "block.conv2"
# 16 output channels in blocks of 4; 8 of 16 input channels are kept
GROUPS, KEPT = 4, "8 of 16 input channels"


def bake_tiny(out: Path, precision: str = "fp32", pattern: str = PATTERN) -> tuple[MaskSet, BakeReport]:
    model = tiny_cnn()
    masks = magnitude_masks(model, pattern=pattern)
    report = bake(
        model,
        masks,
        # convolutions take BF16 since opset 22
        BakeOptions.model_validate({"precision": precision, "opset": 22 if precision == "bf16" else 20}),
        example_shape=EXAMPLE_SHAPE,
        source_sha256=masks.source_sha256,
        out=out,
        probe_images=example_images(),
        calibration=None if precision == "fp32" else example_images(16),
    )
    return masks, report


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MaskSet, BakeReport]:
    out = tmp_path_factory.mktemp("blocks")
    return out, *bake_tiny(out)


def changed(path: Path, change: Callable[[np.ndarray], np.ndarray], name: str = f"{LAYER}.weight") -> onnx.ModelProto:
    model = onnx.load(path)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.raw_data = np.ascontiguousarray(change(numpy_helper.to_array(tensor))).tobytes()
    return model


def linted(model: onnx.ModelProto, layer: str = f"{LAYER}.weight") -> LintLayer:
    (row,) = (row for row in report_of(model).layers if row.weight == layer)
    return row


def test_node_and_weight_say_so_and_the_linter_agrees(baked: tuple[Path, MaskSet, BakeReport]) -> None:
    out, masks, report = baked
    for part in (*onnx.load(out / "sparse.onnx").graph.node, *onnx.load(out / "sparse.onnx").graph.initializer):
        notes = {entry.key: entry.value for entry in part.metadata_props}
        if keys.PATTERN in notes:
            assert (notes[keys.PATTERN], notes[keys.GROUP_AXIS], notes[keys.DENSITY]) == (PATTERN, "1", "0.5")
    for layer in report.layers:
        assert (layer.pattern, layer.group_count, layer.violation_count) == (PATTERN, GROUPS, 0)
        assert [(c.stage, c.violation_count, c.group_count) for c in layer.checkpoints] == [
            (stage, 0, GROUPS) for stage in ("module", "onnx", "converted")
        ]
        stored = read_graph(out / "sparse.onnx").constants[layer.weight_name]
        assert not stored[~masks.layers[layer.weight_name].keep].any()
    found = lint(out / "sparse.onnx")
    rows = {row.weight.removesuffix(".weight"): row for row in found.layers}
    assert found.ok
    assert {name: (rows[name].state, rows[name].why) for name in MASKED_LAYERS} == dict.fromkeys(
        MASKED_LAYERS, ("conforming", PATTERN)
    )
    # half of what the two layers do is left out
    share = sum(rows[name].mac_share or 0 for name in MASKED_LAYERS)
    assert found.amdahl_limit == pytest.approx(1 / (1 - share / 2))
    # the only layers in FP32 of which sparse kernels would want another type are those that are not 1xN
    eligible = sum(row.state == "eligible" for row in found.layers)
    assert next(remark for remark in found.remarks if "FP32" in remark).startswith(f"{eligible} layer")


def test_one_weight_in_a_pruned_block_is_found_by_linter_and_conformity(baked: tuple[Path, MaskSet, BakeReport]) -> None:
    out, masks, _ = baked
    model = changed(out / "sparse.onnx", put_back_one_weight)
    row = linted(model)
    assert (row.state, row.violation_count, row.group_count) == ("broken claim", 1, GROUPS)
    broken = f"1 of {GROUPS} groups keep more than {KEPT}"
    assert row.why == f"annotated {PATTERN}, but {broken} (changed after baking?)"
    assert row.drift == (broken, "1 nonzeros put back: density 0.5004, noted 0.5")
    findings = check_conformity(parse_graph(model.SerializeToString(), name="changed"), masks).findings
    assert any(finding.endswith(f": {broken}") for finding in findings)
    assert any(finding.endswith(": 1 weights that the mask drops are not zero") for finding in findings)


def swap_blocks(weight: np.ndarray) -> np.ndarray:
    """The first group's blocks in another order: as many, but not those of the mask."""
    swapped = weight.copy()
    swapped[:4] = np.roll(weight[:4], 1, axis=1)
    return swapped


def test_blocks_of_another_mask_are_found(baked: tuple[Path, MaskSet, BakeReport]) -> None:
    row = linted(changed(baked[0] / "sparse.onnx", swap_blocks))
    assert (row.state, row.violation_count) == ("broken claim", 0)
    assert row.why == f"{PATTERN}, but its blocks are not those of the mask it names (of another layer?)"


def test_zeros_inside_a_kept_block_break_nothing(baked: tuple[Path, MaskSet, BakeReport]) -> None:
    def lose(weight: np.ndarray) -> np.ndarray:
        kept = weight.copy()
        kept[tuple(index[0] for index in np.nonzero(weight))] = 0
        return kept

    row = linted(changed(baked[0] / "sparse.onnx", lose))
    assert (row.state, row.drift) == ("conforming", ("1 nonzeros lost: density 0.4996, noted 0.5",))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_zeros_survive_every_precision(tmp_path: Path, precision: str) -> None:
    masks, report = bake_tiny(tmp_path, precision)
    assert {(layer.pattern, layer.violation_count, layer.group_count) for layer in report.layers} == {(PATTERN, 0, GROUPS)}
    graph = read_graph(tmp_path / "sparse.onnx")
    found = lint_graph(graph, name=precision)
    rows = {row.weight.removesuffix(".weight"): row for row in found.layers}
    assert found.ok and {rows[name].state for name in MASKED_LAYERS} == {"conforming"}
    remark = "; int8: 'masksparse rewrite' leaves it dense" if precision == "int8" else ""
    assert rows[LAYER].why == PATTERN + remark
    if precision == "int8":
        assert check_quantized(graph, masks) == ()
        model = changed(tmp_path / "sparse.onnx", put_back_one_weight)
        (finding,) = check_quantized(parse_graph(model.SerializeToString(), name="changed"))
        assert finding.endswith(f": 1 of {GROUPS} groups keep more than {KEPT}")
        assert linted(model).state == "broken claim"


def test_blocks_that_are_not_uniform_are_counted_over_the_layer(tmp_path: Path) -> None:
    pattern = "1x4~0.5"
    _, report = bake_tiny(tmp_path, pattern=pattern)
    assert {(layer.pattern, layer.group_count, layer.violation_count) for layer in report.layers} == {(pattern, 1, 0)}
    assert linted(onnx.load(tmp_path / "sparse.onnx")).state == "conforming"
    row = linted(changed(tmp_path / "sparse.onnx", put_back_one_weight))
    assert row.why == f"annotated {pattern}, but 1 of 1 groups keep more than 32 of 64 blocks (changed after baking?)"


def test_masks_of_linear_weights_go_into_files_that_store_them_transposed(tmp_path: Path) -> None:
    weight, pattern = values(8, 6), BlockPattern(n=4, rate=0.5)
    mask = LayerMask(weight_name="fc.weight", keep=block_keep(weight, pattern), group_axis=1, pattern=pattern)
    onnx.save(matmul_model(np.ascontiguousarray(weight.T)), tmp_path / "in.onnx")
    (layer,) = bake_file(tmp_path / "in.onnx", mask_set(mask), BakeOptions(), out=tmp_path / "out").layers
    assert (layer.group_axis, layer.group_count, layer.violation_count, layer.density) == (0, 2, 0, 0.5)
    row = linted(onnx.load(tmp_path / "out" / "sparse.onnx"), "fc.weight")
    assert (row.state, row.why) == ("conforming", f"{pattern}; no convolution: 'masksparse rewrite' leaves it dense")
    x = values(3, 6, seed=1)
    (found,) = onnxruntime.InferenceSession(tmp_path / "out" / "sparse.onnx").run(None, {"x": x})
    # sums of three terms of size one in FP32: 3 * 2^-24, about 2e-7
    np.testing.assert_allclose(found, x @ np.where(mask.keep, weight, 0).T, atol=2e-6)
    moved = changed(tmp_path / "out" / "sparse.onnx", lambda stored: put_back_one_weight(stored.T).T, "fc.weight")
    assert linted(moved, "fc.weight").state == "broken claim"


def annotated(model: onnx.ModelProto, pattern: str, axis: int = 1) -> onnx.ModelProto:
    for part in (model.graph.node[0], model.graph.initializer[0]):
        part.metadata_props.add(key=keys.PATTERN, value=pattern)
        part.metadata_props.add(key=keys.GROUP_AXIS, value=str(axis))
    return model


@pytest.mark.parametrize(
    ("model", "pattern", "state", "why"),
    [
        (one_layer("Conv", weights(6, 8, 1, 1), x=["n", 8, 4, 4]), "1x4@0.5", "broken claim", "6 output channels: not a mult"),
        (one_layer("Conv", weights(8, 8, 1, 1), x=["n", 8, 4, 4]), "1x4@0.5", "broken claim", "2 of 2 groups keep more than 4"),
        (one_layer("Conv", weights(8), x=["n", 8, 4, 4]), "1x4@0.5", "broken claim", "has no blocks of output and input"),
        (one_layer("MatMul", weights(8), x=["n", 8], rank=1), "1x4@0.5", "broken claim", "has no blocks of output and input"),
        (
            one_layer("Conv", weights(8, 0, 1, 1), x=["n", 0, 4, 4]),
            "1x4@0.5",
            "broken claim",
            "has no blocks of output and inp",
        ),
        (one_layer("Conv", weights(8, 8, 1, 1), x=["n", 8, 4, 4]), "1x4@1.5", "broken claim", "the annotation cannot be read"),
        (
            one_layer("Conv", np.zeros((8, 8, 1, 1), np.float32), x=["n", 16, 4, 4], group=2),
            "1x4@0.5",
            "not eligible",
            "a group convolution (2 groups): its input channels are split",
        ),
    ],
)
def test_claims_that_cannot_be_or_are_not(model: onnx.ModelProto, pattern: str, state: str, why: str) -> None:
    axis = 0 if model.graph.node[0].op_type == "MatMul" else 1
    report = report_of(annotated(model, pattern, axis))
    layer = layer_of(report, "layer")
    assert (layer.state, report.ok) == (state, state != "broken claim")
    assert why in layer.why


def test_no_layer_of_blocks_is_transposable(baked: tuple[Path, MaskSet, BakeReport]) -> None:
    report = lint(baked[0] / "sparse.onnx", transposable=True)
    assert not report.ok
    assert f"{LAYER}.weight is not transposable: it has 1xN blocks, which are no N:M groups" in report.findings


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("group_axis", [1, 0])
def test_blocks_are_counted_as_the_pattern_itself_counts_them(uniform: bool, group_axis: int) -> None:
    generator = np.random.default_rng(0)
    pattern = BlockPattern(n=4, rate=0.5, uniform=uniform)
    for density in (0.02, 0.05, 0.1, 0.3):
        weight = (generator.random((16, 12)) < density).astype(np.float32)
        stored = weight if group_axis == 1 else weight.T
        counts = count_blocks(stored, pattern, output_axis=1 - group_axis, group_axis=group_axis)
        assert counts.violation_count == pattern.count_violations(stored != 0, group_axis=group_axis)
        assert counts.nonzero_count == np.count_nonzero(weight)
        np.testing.assert_array_equal(counts.used, pattern.blocks(weight != 0))


def test_weights_that_cannot_have_the_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^1x4@0\.5: 6 output channels: not a multiple of 4$"):
        count_groups(values(6, 8), BlockPattern(n=4, rate=0.5), output_axis=0, group_axis=1)
