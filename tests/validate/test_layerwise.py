"""Planted faults in the engine that the layers are read from, held against the sound files."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.validate.kernels import layer_kernels
from masksparse_deploy.validate.layers import exposed_tensors, layer_pairs
from masksparse_deploy.validate.layerwise import compare_layers
from tests.validate.deployment import OPTIONS, Deployment, deploy, set_constant

WEIGHT = "layer1.conv2.weight"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Deployment:
    return deploy(tmp_path_factory.mktemp("deployment"))


def _compare(template, folder, change, doubt=None):
    """Build the engine with exposed layers from a changed sparse file, compare it with the sound files."""
    dense, sparse = (read_graph(template.folder / f"{name}.onnx") for name in ("dense", "sparse"))
    pairs = layer_pairs(dense, sparse, template.certificate)
    model = onnx.load(template.folder / "sparse.onnx")
    change(model)
    onnx.save(model, folder / "changed.onnx")
    backend = OnnxRuntimeBackend()
    engine = backend.build(folder / "changed.onnx", folder, OPTIONS, name="layers", expose=exposed_tensors(pairs, sparse))
    with backend.open(folder / "layers.engine.json", threads=1) as session:
        kernels = layer_kernels(pairs, engine)
        if doubt is not None:
            kernels = {node: replace(kernel, doubt=doubt) for node, kernel in kernels.items()}
        layers = compare_layers(session, pairs, template.samples.images, input_name="images", kernels=kernels)
    return {layer.layer: layer for layer in layers}


def _outside(layers) -> set[str]:
    return {name for name, layer in layers.items() if layer.verdict == "fail"}


def test_sound(template, tmp_path):
    assert _outside(_compare(template, tmp_path, lambda model: None)) == set()


def test_one_wrong_weight(template, tmp_path):
    def change(array):
        array[3, np.abs(array[3, :, 1, 1]).argmax(), 1, 1] *= np.float32(1.001)
        return array

    assert _outside(_compare(template, tmp_path, lambda model: set_constant(model, WEIGHT, change))) == {"layer1.conv2"}


def test_swapped_layers(template, tmp_path):
    def swap(model):
        nodes = {node.name: node for node in model.graph.node}
        first, second = nodes["layer1.conv1"], nodes["layer1.conv2"]
        first.input[1], second.input[1] = second.input[1], first.input[1]

    assert _outside(_compare(template, tmp_path, swap)) == {"layer1.conv1", "layer1.conv2"}


def test_scaled_bias(template, tmp_path):
    layers = _compare(
        template, tmp_path, lambda model: set_constant(model, "layer1.conv2.bias", lambda bias: bias * np.float32(1.01))
    )
    assert _outside(layers) == {"layer1.conv2"}


def test_weights_rounded_to_half_precision(template, tmp_path):
    # 72 kept terms: rounding to FP16 moves an output by about 2^-12 sqrt(72), the bound allows 75 times 2^-24 for each term
    layers = _compare(
        template,
        tmp_path,
        lambda model: set_constant(model, WEIGHT, lambda array: array.astype(np.float16).astype(np.float32)),
    )
    assert _outside(layers) == {"layer1.conv2"}


def test_dense_weights(template, tmp_path):
    dense = {tensor.name: tensor for tensor in onnx.load(template.folder / "dense.onnx").graph.initializer}

    def change(model):
        for tensor in model.graph.initializer:
            tensor.CopyFrom(dense[tensor.name])

    layers = _compare(template, tmp_path, change)
    assert _outside(layers) == set(layers)
    # a dense engine does what the dense layer does: only the comparison with the sparse weights tells
    assert all(layer.deviation <= layer.deviation_bound for layer in layers.values())


def test_outside_a_bound_that_does_not_apply_is_inconclusive(template, tmp_path):
    layers = _compare(
        template,
        tmp_path,
        lambda model: set_constant(model, "layer1.conv2.bias", lambda bias: bias * np.float32(1.01)),
        doubt="winograd",
    )
    assert layers["layer1.conv2"].verdict == "inconclusive"
    assert layers["layer1.conv1"].verdict == "pass"


def test_values_that_are_not_finite(template, tmp_path):
    with pytest.raises(ArtifactError, match=r"NaN or infinite values at the layer layer1\.conv2"):
        _compare(
            template, tmp_path, lambda model: set_constant(model, "layer1.conv2.bias", lambda bias: bias * np.float32(np.inf))
        )
