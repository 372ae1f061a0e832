"""Networks in which one source of deviation is there alone, or a known one beside others, and what each part then is."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.artifacts.attribution import PARTS, Attribution, DeviationParts
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import LayerBound
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import parse_graph, read_graph, weighted_layers
from masksparse_deploy.validate.attribution import attribute
from masksparse_deploy.validate.deployed import read_unconverted
from masksparse_deploy.validate.layers import LayerPair, exposed_tensors
from masksparse_deploy.validate.units import unit_of
from masksparse_deploy.validate.variants import make_variants, without_grids
from tests.models.make_int8 import int8_images, int8_networks, int8_pair
from tests.models.make_onnx import MASKED_LAYERS, residual_pair
from tests.validate.deployment import OPTIONS, set_constant

Pair = tuple[onnx.ModelProto, onnx.ModelProto]
# FP32 sums of a few hundred terms, relative to the layer's output: seen up to 1.2e-7, allowed 16 units.
ROUNDING = 2.0**-20


def parts_of(
    folder: Path, files: Pair, *, engine: onnx.ModelProto | None = None, unconverted: Pair | None = None
) -> Attribution:
    """Build an engine of `engine`, or of the sparse file, and attribute its deviation from the dense network."""
    dense, sparse = (parse_graph(model.SerializeToString(), name="model") for model in files)
    layers = zip(weighted_layers(dense), weighted_layers(sparse), strict=True)
    pairs = tuple(
        LayerPair(bound=_bound(other.node.name), dense=unit_of(dense, one), sparse=unit_of(sparse, other))
        for one, other in layers
    )
    onnx.save(engine or files[1], folder / "engine.onnx")
    backend = OnnxRuntimeBackend()
    backend.build(folder / "engine.onnx", folder, OPTIONS, name="layers", expose=exposed_tensors(pairs, sparse))
    networks = None
    if unconverted is not None:
        first, second = (parse_graph(model.SerializeToString(), name="model") for model in unconverted)
        networks = (first, second)
    images = int8_images(24)
    with backend.open(folder / "layers.engine.json", threads=1) as session:
        outputs = session.run(images)[session.output_names[0]]
        return attribute(
            session, pairs, make_variants(dense, sparse, networks), images, outputs, input_name=next(iter(sparse.inputs))
        )


def _bound(node: str) -> LayerBound:
    """Attribution reads its names only."""
    norms = dict.fromkeys(("removed_norm", "difference_norm", "dense_norm", "sparse_norm", "bias_difference"), 1.0)
    return LayerBound(layer=node, node=node, initializer=node, output_positions=1, method="made for a test", **norms)


def all_parts(found: Attribution) -> dict[str, DeviationParts]:
    """Of every layer by name, and of the output."""
    assert found.output is not None and found.output_obstacle == ""
    return {**{layer.layer: layer.parts for layer in found.layers}, "the output": found.output}


def require_alone(parts: DeviationParts, source: str, others: float = 0.0) -> None:
    """Check that the deviation is all of one source, others being at most rounding and `others`."""
    assert parts.total > 0.001
    for part in PARTS:
        value = getattr(parts, part)
        expected = (
            pytest.approx(parts.total, abs=ROUNDING + others) if part == source else pytest.approx(0, abs=ROUNDING + others)
        )
        assert value == expected, (part, parts)
    assert parts.sparsity == pytest.approx(parts.total if source in ("mask", "new_values") else 0, abs=ROUNDING + others)


def test_masks_alone(tmp_path: Path) -> None:
    found = all_parts(parts_of(tmp_path, residual_pair()))
    for name in (*MASKED_LAYERS, "the output"):
        require_alone(found[name], "mask")
    for name in found.keys() - {*MASKED_LAYERS, "the output"}:
        assert found[name].total < ROUNDING


@pytest.mark.parametrize("constant", ["layer1.conv2.bias", "layer1.conv2.weight"])
def test_new_values_alone(tmp_path: Path, constant: str) -> None:
    dense, _ = residual_pair()
    sparse = onnx.ModelProto()
    sparse.CopyFrom(dense)
    set_constant(sparse, constant, lambda array: array * np.float32(1.5))
    found = all_parts(parts_of(tmp_path, (dense, sparse)))
    for name in ("layer1.conv2", "the output"):
        require_alone(found[name], "new_values")


def test_new_values_that_undo_a_mask(tmp_path: Path) -> None:
    dense, _ = residual_pair()
    # the channels that layer1.conv1 reads are all 1, so that a weight of one can take over for a weight of another
    for name, change in (("stem.weight", np.zeros_like), ("stem.bias", np.ones_like)):
        set_constant(dense, name, change)
    sparse = onnx.ModelProto()
    sparse.CopyFrom(dense)

    def move(weight: np.ndarray) -> np.ndarray:
        weight[:, 1] += weight[:, 0]
        weight[:, 0] = 0
        return weight

    set_constant(sparse, "layer1.conv1.weight", move)
    found = all_parts(parts_of(tmp_path, (dense, sparse)))
    for name in ("layer1.conv1", "the output"):
        assert found[name].mask == pytest.approx(found[name].new_values, abs=ROUNDING) and found[name].mask > 0.05
        assert found[name].sparsity < ROUNDING and found[name].total < ROUNDING


def test_what_the_engine_does_otherwise_is_rounding(tmp_path: Path) -> None:
    dense, _ = residual_pair()
    faulty = onnx.ModelProto()
    faulty.CopyFrom(dense)
    set_constant(faulty, "layer1.conv2.bias", lambda array: array * np.float32(1.5))
    found = all_parts(parts_of(tmp_path, (dense, dense), engine=faulty))
    for name in ("layer1.conv2", "the output"):
        require_alone(found[name], "rounding")
    assert found["layer2.conv1"].total < ROUNDING  # on its own input there is nothing wrong with it


def test_quantization_alone(tmp_path: Path) -> None:
    network, _ = int8_networks()
    file, _ = int8_pair()
    found = all_parts(parts_of(tmp_path, (file, file), unconverted=(network, network)))
    for name, parts in found.items():
        assert (parts.mask, parts.new_values) == (0, 0), name
        # kernels fall on another level now and then, where the file's number is between two, and what follows amplifies that
        if name != "the output":
            require_alone(parts, "quantization", others=0.002)
        assert parts.quantization > 2 * parts.rounding
    # weights are off by up to 1/254 of a channel's largest, inputs are given
    assert 0.002 < found["fc"].total < 0.02


def test_weights_count_as_exact_where_the_networks_before_their_conversion_are_not_given(tmp_path: Path) -> None:
    file, _ = int8_pair()
    found = parts_of(tmp_path, (file, file))
    assert "what its weights lost in their precision is not counted" in found.reference
    parts = all_parts(found)
    assert parts["fc"].total < ROUNDING  # its output is on no grid
    assert parts["conv1"].quantization > 0.002


def test_masks_and_grids_together_are_told_apart(tmp_path: Path) -> None:
    networks, files = int8_networks(), int8_pair()
    alone = all_parts(parts_of(tmp_path, networks))
    found = all_parts(parts_of(tmp_path, files, unconverted=networks))
    assert parts_of(tmp_path, files, unconverted=networks).reference == (
        "the dense network before it was converted to the precision of the file"
    )
    # the output's part of the mask is that of the same networks without any precision in the way
    assert found["the output"].mask == pytest.approx(alone["the output"].mask, rel=1e-9)
    for name, parts in found.items():
        steps = [getattr(parts, part) for part in PARTS]
        assert parts.total <= sum(steps) * (1 + 1e-12), name
        assert max(steps) - (sum(steps) - max(steps)) <= parts.total * (1 + 1e-12), name


def test_grids_of_activations_are_taken_out_and_weights_stay() -> None:
    (network, _), (file, _) = int8_networks(), int8_pair()
    graph = parse_graph(file.SerializeToString(), name="file")
    plain = without_grids(graph)
    for before, after in zip(weighted_layers(graph), weighted_layers(plain), strict=True):
        np.testing.assert_array_equal(before.weight, after.weight)
    exact = parse_graph(network.SerializeToString(), name="network")
    constants = {layer.weight_name: layer.weight for layer in weighted_layers(graph)}
    weights = {name.removesuffix("float") + "weight": array for name, array in constants.items()}
    rounded = dataclasses.replace(exact, constants={**exact.constants, **weights})
    images = int8_images(8)
    # weights behind a DequantizeLinear are given in float32, the graph multiplies by their exact products
    expected = evaluate(rounded, images)["logits"]
    np.testing.assert_allclose(evaluate(plain, images)["logits"], expected, atol=2.0**-20 * np.abs(expected).max())
    assert np.abs(evaluate(graph, images)["logits"] - expected).max() > 1e-3
    assert without_grids(exact) is exact


def test_an_operator_without_a_reference_leaves_the_output_open(tmp_path: Path) -> None:
    files = residual_pair()
    for model in files:
        (last,) = [node for node in model.graph.node if "logits" in node.output]
        last.output[0] = "before"
        model.graph.node.append(onnx.helper.make_node("CumSum", ["before", "axis"], ["logits"], name="sum"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "axis"))
    found = parts_of(tmp_path, files)
    assert (found.output, found.output_norm) == (None, None)
    assert found.output_obstacle == "the float64 reference does not cover CumSum"
    require_alone({layer.layer: layer.parts for layer in found.layers}["layer1.conv1"], "mask")


def test_networks_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the network before its conversion has no layer layer1"):
        parts_of(tmp_path, residual_pair(), unconverted=int8_networks())


def test_a_network_that_was_not_baked_with_the_files_is_refused(tmp_path: Path) -> None:
    paths = (tmp_path / "dense.fp32.onnx", tmp_path / "sparse.fp32.onnx")
    for path, model in zip(paths, residual_pair(), strict=True):
        onnx.save(model, path)
    dense, sparse = (read_graph(path).sha256 for path in paths)
    report = BakeReport(
        dense_sha256="",
        sparse_sha256="",
        mask_set_sha256="",
        probe_sha256=None,
        opset=20,
        precision="int8",
        statistics_updated=False,
        layers=(),
        skipped=(),
        dense_fp32_sha256=dense,
        sparse_fp32_sha256=sparse,
    )
    assert [graph.sha256 for graph in read_unconverted(paths, report)] == [dense, sparse]
    with pytest.raises(
        ArtifactError, match=r"sparse\.fp32\.onnx is another file than 'masksparse bake' wrote: .* run 'masksparse"
    ):
        read_unconverted(paths, report.model_copy(update={"sparse_fp32_sha256": "0" * 64}))
