"""Bounds of convolutions as ONNX files hold them: one to three dimensions, transposed ones, every kind of padding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.certify.layers import known_shapes, layer_bound
from masksparse_deploy.certify.norms.geometry import norm_geometry
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.graph.layers import weighted_layers
from masksparse_deploy.graph.reader import parse_graph

Array = npt.NDArray[Any]


def one_layer(op: str, weight: Array, size: Sequence[int], **attributes: Any) -> onnx.ModelProto:
    channels = weight.shape[0] if op == "ConvTranspose" else weight.shape[1] * attributes.get("group", 1)
    node = helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def exact_norm(model: onnx.ModelProto) -> float:
    """The norm of the operator written out as a matrix, from what ONNX Runtime computes for every input element by itself."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    basis = np.eye(int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape)
    matrix = np.stack([session.run(None, {"x": x})[0].ravel() for x in basis])
    return float(np.linalg.norm(matrix, 2))


CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ("Conv", (4, 3, 5), (9,), {"pads": [2, 1], "strides": [2]}),
    "2-D": ("Conv", (4, 2, 3, 2), (6, 5), {"pads": [1, 0, 2, 1], "dilations": [2, 1], "group": 2}),
    "2-D, same size": ("Conv", (3, 3, 4, 3), (5, 6), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "2-D, valid": ("Conv", (3, 3, 3, 3), (5, 6), {"auto_pad": "VALID"}),
    "3-D": ("Conv", (3, 2, 2, 3, 2), (3, 4, 3), {"pads": [1, 1, 0, 1, 1, 1], "strides": [1, 2, 1]}),
    "transposed 1-D": ("ConvTranspose", (3, 2, 4), (5,), {"strides": [2], "pads": [1, 1], "output_padding": [1]}),
    "transposed 2-D": ("ConvTranspose", (4, 2, 3, 3), (4, 3), {"strides": [2, 1], "group": 2, "dilations": [1, 2]}),
    "transposed 3-D": ("ConvTranspose", (2, 2, 2, 2, 2), (2, 3, 2), {"strides": [2, 1, 2]}),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_of_every_dimension_are_bounded_and_tightly(name: str) -> None:
    op, shape, size, attributes = CASES[name]
    weight = np.abs(np.random.default_rng(0).standard_normal(shape)) + 0.1
    keep = np.random.default_rng(1).random(shape) < 0.5
    dense, sparse = (one_layer(op, array, size, **attributes) for array in (weight, np.where(keep, weight, 0)))
    removed = one_layer(op, np.where(keep, 0, weight), size, **attributes)
    graphs = [parse_graph(model.SerializeToString(), name="layer.onnx") for model in (dense, sparse)]
    ((dense_layer,), (sparse_layer,)) = (weighted_layers(graph) for graph in graphs)
    shapes = known_shapes(graphs[0])
    found = layer_bound(dense_layer, sparse_layer, "layer.weight", shapes, NormCache(grid=16))
    bounds = (found.dense_norm, found.sparse_norm, found.difference_norm)
    for model, bound in zip((dense, sparse, removed), bounds, strict=True):
        exact = exact_norm(model)
        # 1e-6: ONNX Runtime computes in float32; twice the norm is far above what small inputs lose at their border
        assert exact * (1 - 1e-6) <= bound <= 2 * exact, name
    assert found.output_positions == np.prod(shapes["y"][1:])


def test_the_padded_size_is_what_the_kernel_slides_over() -> None:
    def padded(op: str, size: Sequence[int], taps: Sequence[int], **attributes: Any) -> tuple[int, ...]:
        shape = (1, 1, *taps)
        (layer,) = weighted_layers(parse_graph(one_layer(op, np.ones(shape), size, **attributes).SerializeToString(), name="x"))
        return norm_geometry(layer.node, size=size, taps=taps).padded_size

    assert padded("Conv", (5, 6), (3, 3), pads=[1, 2, 3, 4]) == (9, 12)
    assert padded("Conv", (5, 6), (3, 3), auto_pad="SAME_LOWER", strides=[2, 2]) == (7, 7)
    assert padded("Conv", (5, 6), (1, 1), auto_pad="SAME_LOWER", strides=[2, 2]) == (5, 6)
    assert padded("Conv", (5,), (3,), auto_pad="VALID") == (5,)
    assert padded("ConvTranspose", (5,), (3,), strides=[2], pads=[1, 1], dilations=[2]) == (13,)


def test_a_transposed_convolution_is_certified_by_layer(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3))
    masked = weight * np.tile([1, 0, 0, 1], 27).reshape(weight.shape)
    paths = tmp_path / "dense.onnx", tmp_path / "sparse.onnx"
    for path, array in zip(paths, (weight, masked), strict=True):
        path.write_bytes(one_layer("ConvTranspose", array, (4, 4), strides=[2, 2]).SerializeToString())
    samples = Samples(np.ones((3, 4, 4, 4), dtype=np.float32), np.zeros(3, dtype=np.int64))
    certificate = certify(*paths, samples, CertifyOptions(sample_count=2, grid=8))
    (layer,) = certificate.layers
    assert layer.difference_norm >= exact_norm(one_layer("ConvTranspose", weight - masked, (4, 4), strides=[2, 2])) * (1 - 1e-6)
    assert certificate.claims[0].status == "useful"
