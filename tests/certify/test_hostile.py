"""Operators used as exporters hardly do: each has a true bound, or none, and nothing stops without a word."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.certificate import DATA_FREE, HYBRID, MEASURED_NORMS, Certificate
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.samples import Samples

RANDOM = np.random.default_rng(5)
WEIGHT = RANDOM.standard_normal((4, 4, 3, 3)).astype(np.float32)
KEEP = RANDOM.random(WEIGHT.shape) < 0.5
IMAGES = RANDOM.standard_normal((5, 4, 6, 6)).astype(np.float32)
LAST = RANDOM.standard_normal((64, 3)).astype(np.float32)


def node(op: str, *inputs: str, output: str = "b", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], name=output, **attributes)


def certified(folder: Path, nodes: list[onnx.NodeProto], *, opset: int = 20, **constants: Any) -> Certificate:
    """The certificate of a masked convolution from x to a (4, 4, 4), `nodes` from a to b, and a last layer."""
    all_nodes = [
        node("Conv", "x", "w", output="a"),
        *nodes,
        node("Flatten", "b", output="flat"),
        node("MatMul", "flat", "last", output="y"),
    ]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4, 6, 6)),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 3)),
    ]
    paths = folder / "dense.onnx", folder / "sparse.onnx"
    for path, weight in zip(paths, (WEIGHT, WEIGHT * KEEP), strict=True):
        given = {"w": weight, "last": LAST, **constants}
        tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in given.items()]
        graph = helper.make_graph(all_nodes, "hostile", values[:1], values[1:], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        path.write_bytes(model.SerializeToString())
    return certify(*paths, Samples(IMAGES), CertifyOptions(sample_count=5, grid=8))


def status_of(certificate: Certificate) -> dict[str, str]:
    return {claim.name: claim.status for claim in certificate.claims}


def test_celu_that_grows_like_an_exponential_has_no_rule(tmp_path: Path) -> None:
    found = certified(tmp_path, [node("Celu", "a", alpha=-1.0)])
    assert found.unsupported == ("Celu with an alpha that is not above 0",)
    assert status_of(certified(tmp_path, [node("Celu", "a", alpha=2.0)]))[HYBRID] == "vacuous"


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_over_several_axes_at_once_has_no_rule(tmp_path: Path, op: str) -> None:
    reason = f"{op} of an operator set before 13 over several axes"
    assert certified(tmp_path, [node(op, "a")], opset=12).unsupported == (reason,)
    assert certified(tmp_path, [node(op, "a", axis=2)], opset=12).unsupported == (reason,)
    assert certified(tmp_path, [node(op, "a", axis=3)], opset=12).unsupported == ()


def test_broadcasting_by_attributes_has_no_rule(tmp_path: Path) -> None:
    scale = np.array([3.0, 0.1, 0.2, -5.0], np.float32)  # NumPy would take it along the last axis, which is as long
    found = certified(tmp_path, [node("Mul", "a", "s", broadcast=1, axis=1)], opset=6, s=scale)
    assert found.unsupported == ("Mul of an operator set before 7",)


def test_resize_with_other_inputs_has_no_rule(tmp_path: Path) -> None:
    nodes = [node("Resize", "a", "s", output="large"), node("MaxPool", "large", kernel_shape=[2, 2], strides=[2, 2])]
    found = certified(tmp_path, nodes, opset=10, s=np.array([1, 1, 2, 2], np.float32))
    assert found.unsupported == ("Resize of an operator set before 11",)


def test_normalization_without_epsilon_is_bounded_for_samples_only(tmp_path: Path) -> None:
    constants = {"scale": np.ones(4, np.float32), "shift": np.zeros(4, np.float32)}
    found = certified(tmp_path, [node("InstanceNormalization", "a", "scale", "shift", epsilon=0.0)], **constants)
    assert found.unsupported == ()
    assert status_of(found) == {**status_of(found), DATA_FREE: "inconclusive", MEASURED_NORMS: "vacuous", HYBRID: "vacuous"}
    (data_free,) = (claim for claim in found.claims if claim.name == DATA_FREE)
    assert data_free.detail == "There is no data-free rule for InstanceNormalization with epsilon 0."


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Sqrt", "a")],
        [node("MaxPool", "a", kernel_shape=[1, 1], strides=[2, 2], pads=[2, 2, 1, 1], output="b")],  # windows of padding only
    ],
    ids=["root", "empty windows"],
)
def test_a_network_without_numbers_is_refused(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    message = (
        rf"^{nodes[0].op_type} 'b' of the dense network gives NaN or infinite values for the images, so that no distance can "
        "be told; check the images and the model, and export it again$"
    )
    with pytest.raises(ArtifactError, match=message):
        certified(tmp_path, nodes)


def test_inputs_and_outputs_that_are_left_out_are_no_tensors(tmp_path: Path) -> None:
    pool = helper.make_node("MaxPool", ["a"], ["c", ""], name="pool", kernel_shape=[3, 3], pads=[1] * 4)
    clip = helper.make_node("Clip", ["c", "", "high"], ["b"], name="clip")
    assert certified(tmp_path, [pool, clip], high=np.array(1.0, np.float32)).unsupported == ()
