"""INT8 engines of ONNX Runtime layer by layer: kernels of every kind within their bounds, and planted faults outside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.validation import Check, LayerDeviation
from masksparse_deploy.core.config import CertifyOptions, EngineOptions
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import read_graph, weighted_layers
from masksparse_deploy.validate.deployed import check_weights
from masksparse_deploy.validate.kernels import check_kernels, layer_kernels
from masksparse_deploy.validate.layers import LayerPair, exposed_tensors, layer_pairs
from masksparse_deploy.validate.layerwise import compare_layers
from masksparse_deploy.validate.units import unit_of
from tests.models.make_int8 import INT8_MASKED, int8_images, int8_pair
from tests.validate.deployment import set_constant

BACKEND = OnnxRuntimeBackend()
OPTIONS = EngineOptions(batch=16, threads=1)
Change = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Files:
    folder: Path
    sparse: Graph
    pairs: tuple[LayerPair, ...]

    def compare(self, folder: Path, change: Change | None = None, images: npt.NDArray[np.float32] | None = None):
        """Layers by name, of an engine of a changed sparse file held against the sound ones; and the check of its weights."""
        model = onnx.load(self.folder / "sparse.onnx")
        if change is not None:
            change(model)
        onnx.save(model, folder / "changed.onnx")
        engine = BACKEND.build(
            folder / "changed.onnx", folder, OPTIONS, name="layers", expose=exposed_tensors(self.pairs, self.sparse)
        )
        with BACKEND.open(folder / "layers.engine.json", threads=1) as session:
            layers = compare_layers(
                session,
                self.pairs,
                int8_images() if images is None else images,
                input_name="images",
                kernels=layer_kernels(self.pairs, engine),
            )
        weights = check_weights("weights", self.sparse, read_graph(folder / engine.plan), engine.backend)
        return {layer.layer: layer for layer in layers}, weights


def files(folder: Path, **options: Any) -> Files:
    for name, model in zip(("dense", "sparse"), int8_pair(**options), strict=True):
        onnx.save(model, folder / f"{name}.onnx")
    samples = Samples(int8_images(), np.zeros(len(int8_images()), dtype=np.int64))
    certificate = certify(folder / "dense.onnx", folder / "sparse.onnx", samples, CertifyOptions(sample_count=2, grid=8))
    dense, sparse = (read_graph(folder / f"{name}.onnx") for name in ("dense", "sparse"))
    return Files(folder=folder, sparse=sparse, pairs=layer_pairs(dense, sparse, certificate))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return files(tmp_path_factory.mktemp("signed"))


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return files(tmp_path_factory.mktemp("unsigned"), signed=False)


def outside(layers: Mapping[str, LayerDeviation]) -> set[str]:
    return {name for name, layer in layers.items() if layer.verdict == "fail"}


@pytest.mark.parametrize("reach", [1.0, 0.4], ids=["in range", "clamped"])
@pytest.mark.parametrize("is_signed", [True, False], ids=["signed", "unsigned"])
def test_sound_engines_are_within_their_bounds(tmp_path: Path, is_signed: bool, reach: float) -> None:
    layers, weights = files(tmp_path, signed=is_signed, reach=reach).compare(tmp_path)
    # the residual layer takes in more than a runtime's integer operator can; the others are one at least
    assert {layer.arithmetic for layer in layers.values()} == {"int8", "int8 in fp32"}
    assert weights.verdict == "pass", weights.detail
    for layer in layers.values():
        assert layer.verdict == "pass", layer
        assert 0.98 < layer.rounding_ratio <= 1  # half a step is reached among thousands of outputs
        assert layer.bound_terms is not None and layer.measured_terms is not None and layer.tightness is not None
        bounds, measured = layer.bound_terms.model_dump(), layer.measured_terms.model_dump()
        assert all(measured[name] <= bounds[name] for name in bounds)
        assert sum(bounds.values()) == pytest.approx(layer.deviation_bound)
        assert layer.deviation <= sum(measured.values())
        assert 1 < layer.tightness < 10


def test_the_kernels_are_the_deployed_ones(unsigned: Files, tmp_path: Path) -> None:
    engines = [
        BACKEND.build(unsigned.folder / "sparse.onnx", tmp_path, OPTIONS, name=name, expose=names)
        for name, names in (("deployed", ()), ("layers", exposed_tensors(unsigned.pairs, unsigned.sparse)))
    ]
    check = check_kernels(engines[0], engines[1], unsigned.pairs)
    assert (check.verdict, check.measured) == ("pass", 0.0)
    assert "all 3 changed layers are compared in the kernels of the deployed engine" in check.detail
    other = engines[1].model_copy(
        update={"layers": tuple(layer.model_copy(update={"tactic": "Conv"}) for layer in engines[1].layers)}
    )
    check: Check = check_kernels(engines[0], other, unsigned.pairs)
    assert (check.verdict, check.decides) == ("inconclusive", False)
    assert "conv1 (Conv instead of QLinearConv)" in check.detail


@pytest.mark.parametrize("name", ["conv1.out.scale", "conv1.out.zero"])
def test_a_plan_with_another_grid_is_found(unsigned: Files, tmp_path: Path, name: str) -> None:
    engines = [
        BACKEND.build(unsigned.folder / "sparse.onnx", tmp_path, OPTIONS, name=stem, expose=names)
        for stem, names in (("deployed", ()), ("layers", exposed_tensors(unsigned.pairs, unsigned.sparse)))
    ]
    model = onnx.load(tmp_path / engines[0].plan)
    scaled(name, 1.01)(model) if name.endswith("scale") else shifted(name)(model)
    onnx.save(model, tmp_path / engines[0].plan)
    plans = read_graph(tmp_path / engines[0].plan), read_graph(tmp_path / engines[1].plan)
    check = check_kernels(engines[0], engines[1], unsigned.pairs, plans)
    assert (check.verdict, check.measured) == ("fail", 1.0)
    assert check.detail.endswith(f"other numbers than one built anew from the same file: {name}")
    older = engines[0].model_copy(update={"versions": {"onnxruntime": "1.0"}})
    assert check_kernels(older, engines[1], unsigned.pairs, plans).verdict == "inconclusive"


def one_weight(name: str) -> Change:
    def change(levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        index = np.unravel_index(np.abs(levels.astype(int)).argmax(), levels.shape)
        levels[index] = -levels[index]
        return levels

    return lambda model: set_constant(model, name, change)


def scaled(name: str, factor: float) -> Change:
    return lambda model: set_constant(model, name, lambda array: (array * np.float32(factor)).astype(array.dtype))


def shifted(name: str) -> Change:
    return lambda model: set_constant(model, name, lambda array: array + array.dtype.type(1))


def swapped(model: onnx.ModelProto) -> None:
    nodes = {node.name: node for node in model.graph.node}
    first, second = nodes["conv1.weight.dequantize"], nodes["conv2.weight.dequantize"]
    for place in range(3):
        first.input[place], second.input[place] = second.input[place], first.input[place]


def unmasked(model: onnx.ModelProto) -> None:
    dense = {tensor.name: tensor for tensor in int8_pair()[0].graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name.endswith((".weight", ".step")):
            tensor.CopyFrom(dense[tensor.name])


FAULTS: dict[str, tuple[Change, set[str]]] = {
    "one wrong weight": (one_weight("conv2.weight"), {"conv2"}),
    "a weight's scale 5 % larger": (scaled("conv2.step", 1.05), {"conv2"}),
    "swapped weights": (swapped, {"conv1", "conv2"}),
    "a bias left out": (scaled("conv3.bias", 0.0), {"conv3"}),
    "no mask": (unmasked, set(INT8_MASKED)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("grids", ["signed", "unsigned"])
def test_planted_faults_are_found_and_named(fault: str, grids: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    change, expected = FAULTS[fault]
    layers, weights = request.getfixturevalue(grids).compare(tmp_path, change)
    assert outside(layers) == expected
    assert weights.verdict == "fail" and all(name in weights.detail for name in expected)


def test_another_grid_of_an_output_is_found(unsigned: Files, tmp_path: Path) -> None:
    # what conv1 writes is read by the file's grid: both its writer and its reader are not what the file says
    layers, weights = unsigned.compare(tmp_path, scaled("conv1.out.scale", 1.05))
    assert outside(layers) >= {"conv1"}
    assert weights.verdict == "pass"  # which looks at weights and biases only


def test_another_zero_point_is_found(unsigned: Files, tmp_path: Path) -> None:
    layers, _ = unsigned.compare(tmp_path, shifted("conv1.out.zero"))
    assert outside(layers) >= {"conv1"}


def test_other_images_than_those_of_the_calibration_are_clamped_and_stay_within(signed: Files, tmp_path: Path) -> None:
    layers, _ = signed.compare(tmp_path, images=3 * int8_images(16))
    assert outside(layers) == set()
    quantization = [layer.bound_terms.quantization for layer in layers.values() if layer.bound_terms is not None]
    sound, _ = signed.compare(tmp_path)
    plain = [layer.bound_terms.quantization for layer in sound.values() if layer.bound_terms is not None]
    assert all(more > less for more, less in zip(quantization, plain, strict=True))


def test_samples_of_which_nothing_is_left_are_within(signed: Files, tmp_path: Path) -> None:
    # every weight and bias 0, in both files: outputs, deviations and their bounds are all 0
    def nothing(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.endswith((".weight", ".bias")):
                set_constant(model, tensor.name, np.zeros_like)

    for name in ("dense", "sparse"):
        model = onnx.load(signed.folder / f"{name}.onnx")
        nothing(model)
        onnx.save(model, tmp_path / f"{name}.onnx")
    dense, sparse = (read_graph(tmp_path / f"{name}.onnx") for name in ("dense", "sparse"))
    bounds = [
        pair.bound.model_copy(update={"difference_norm": 0.0, "dense_norm": 0.0, "bias_difference": 0.0})
        for pair in signed.pairs
    ]
    pairs = tuple(
        LayerPair(bound=bound, dense=unit_of(dense, one), sparse=unit_of(sparse, other))
        for bound in bounds
        for one, other in zip(weighted_layers(dense), weighted_layers(sparse), strict=True)
        if one.node.name == bound.node
    )
    layers, _ = Files(folder=tmp_path, sparse=sparse, pairs=pairs).compare(tmp_path)
    assert {(layer.verdict, layer.deviation, layer.deviation_bound) for layer in layers.values()} == {("pass", 0.0, 0.0)}
