"""Certificates of files in reduced precision: about the numbers that the layers multiply by, in exact arithmetic."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from masksparse_deploy.bake.precision.floats import ConvertFloats
from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.certify.elementwise import enlarge
from masksparse_deploy.certify.lipschitz import lipschitz_rule, variable_tensors
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.rule import NoRuleError
from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.graph.reader import parse_graph, read_graph, weighted_layers
from tests.bake.file_models import model_of
from tests.bake.precision.quantized_models import in_opset
from tests.models.make_onnx import MASKED_LAYERS, residual_pair

Precision = Literal["fp16", "bf16", "int8"]
IMAGES = np.random.default_rng(0).standard_normal((40, 3, 8, 8), dtype=np.float32)


def lowered(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    if precision == "int8":
        return quantize(model, IMAGES)
    assert precision in ("fp16", "bf16")
    converted = ir.from_proto(in_opset(model, 22))  # the first with BF16 convolutions
    ConvertFloats(precision)(converted)
    return ir.to_proto(converted)


def certified(folder: Path, precision: Precision) -> tuple[Certificate, Path, Path]:
    paths = folder / "dense.onnx", folder / "sparse.onnx"
    for path, model in zip(paths, residual_pair(), strict=True):
        onnx.save(lowered(model, precision), path)
    samples = Samples(IMAGES, np.zeros(len(IMAGES), dtype=np.int64))
    return certify(*paths, samples, CertifyOptions(sample_count=12, grid=8)), *paths


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_files_of_16_bits_are_bounded_to_the_end(tmp_path: Path, precision: Precision) -> None:
    certificate, *_ = certified(tmp_path, precision)
    assert [layer.node for layer in certificate.layers] == list(MASKED_LAYERS)
    assert certificate.unsupported == ()
    for claim in certificate.claims:
        assert claim.bound is not None and claim.measured is not None and claim.bound >= claim.measured > 0
        assert any("exact real arithmetic" in assumption for assumption in claim.assumptions)


def test_weights_that_are_nan_in_bf16_are_refused(tmp_path: Path) -> None:
    dense, sparse = (lowered(model, "bf16") for model in residual_pair())
    (tensor,) = (tensor for tensor in sparse.graph.initializer if tensor.name == "fc.weight")
    tensor.raw_data = b"\xc0\x7f" + tensor.raw_data[2:]
    paths = tmp_path / "dense.onnx", tmp_path / "sparse.onnx"
    for path, model in zip(paths, (dense, sparse), strict=True):
        onnx.save(model, path)
    with pytest.raises(ArtifactError, match=r"fc\.weight' holds NaN"):
        certify(*paths, Samples(IMAGES, np.zeros(len(IMAGES), dtype=np.int64)), CertifyOptions(sample_count=2, grid=8))


def test_int8_files_are_bounded_by_layer_only(tmp_path: Path) -> None:
    certificate, dense_path, sparse_path = certified(tmp_path, "int8")
    assert "QuantizeLinear" in certificate.unsupported
    layerwise, *end_to_end = certificate.claims
    assert layerwise.bound is not None
    assert [(claim.status, claim.bound) for claim in end_to_end] == [("inconclusive", None)] * 4
    # A norm of the difference is at least that of one output's weights, dequantized
    dense, sparse = (
        {layer.node.name: layer for layer in weighted_layers(read_graph(path))} for path in (dense_path, sparse_path)
    )
    for layer in certificate.layers:
        difference = dense[layer.node].weight.astype(np.float64) - sparse[layer.node].weight
        rows = np.linalg.norm(difference.reshape(len(difference), -1), axis=1)
        assert layer.difference_norm >= rows.max() * (1 - 1e-12) > 0
        # and at most the Frobenius norm times the root of the number of taps
        taps = np.prod(difference.shape[2:])
        assert layer.difference_norm <= np.sqrt(taps) * np.linalg.norm(difference) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("to", "factor"),
    [
        (TensorProto.FLOAT16, 1.0),
        (TensorProto.BFLOAT16, 1.0),
        (TensorProto.DOUBLE, 1.0),
        (TensorProto.INT32, None),
        (TensorProto.BOOL, None),
        (TensorProto.FLOAT8E4M3FN, None),
    ],
)
def test_casts_between_floats_move_nothing_and_others_have_no_rule(to: int, factor: float | None) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], name="cast", to=to),
        helper.make_node("Cast", ["c"], ["y"], name="back", to=TensorProto.FLOAT),
    ]
    graph = parse_graph(model_of(nodes, {}, x=["batch", 4], y=["batch", 4]).SerializeToString(), name="casts")
    shapes = {"x": (4,), "c": (4,), "y": (4,)}
    arguments = (graph, variable_tensors(graph), shapes, NormCache(grid=8))
    if factor is None:
        with pytest.raises(NoRuleError):
            lipschitz_rule(graph.nodes[0], *arguments)
        return
    assert lipschitz_rule(graph.nodes[0], *arguments).factors == (factor,)
    distances = np.array([[0.0, 1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(enlarge(graph.nodes[0], graph, {"x": distances}, (1, 4), None), distances)
