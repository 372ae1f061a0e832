"""Exporting: the same function, the same bytes, nothing about the machine."""

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.reader import parse_graph
from tests.models.tiny_cnn import EXAMPLE_SHAPE, TinyCnn, example_images, tiny_cnn


@pytest.fixture(scope="module")
def model() -> TinyCnn:
    return tiny_cnn()


@pytest.fixture(scope="module")
def exported(model: TinyCnn) -> bytes:
    return export_onnx(model, EXAMPLE_SHAPE, opset=20)


def test_the_exported_graph(exported: bytes) -> None:
    graph = parse_graph(exported, name="dense")
    assert graph.inputs == {"images": (None, *EXAMPLE_SHAPE)}
    assert graph.outputs == ("logits",)
    assert graph.opsets[""] == 20
    assert {"conv.weight", "block.conv1.weight", "block.conv2.weight", "fc.weight"} <= set(graph.constants)
    assert "BatchNormalization" not in {node.op for node in graph.nodes}
    assert onnx.load_model_from_string(exported).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_function_is_kept(model: TinyCnn, exported: bytes) -> None:
    images = example_images(5)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    (found,) = onnxruntime.InferenceSession(exported).run(None, {"images": images})
    # Folding and summation order change float32 results by a few units in the last place of values near one; sums are at
    # most 144 terms long, so 144 * 2^-24, about 1e-5, holds with a wide margin over the four layers.
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_exporting_again_gives_the_same_bytes(model: TinyCnn, exported: bytes) -> None:
    assert export_onnx(model, EXAMPLE_SHAPE, opset=20) == exported


def test_nothing_about_the_machine_is_left(exported: bytes) -> None:
    for word in (b"stack_trace", b"site-packages", b".py", b"pkg.torch", b"+cpu", b"+cu"):
        assert word not in exported
    proto = onnx.load_model_from_string(exported)
    assert not proto.metadata_props
    assert not any(part.metadata_props or part.doc_string for part in (*proto.graph.node, *proto.graph.value_info))
    assert all(node.name for node in proto.graph.node)


def test_another_opset_is_that_opset(model: TinyCnn) -> None:
    assert parse_graph(export_onnx(model, EXAMPLE_SHAPE, opset=18), name="dense").opsets[""] == 18


def test_an_opset_that_the_exporter_replaces_is_an_error(model: TinyCnn) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter says that it takes another one, which is what the error is about
        with pytest.raises(UsageError, match=r"bake\.opset: asked for 13, but the exporter of this PyTorch wrote 18"):
            export_onnx(model, EXAMPLE_SHAPE, opset=13)


def test_quiet_and_the_mode_is_restored(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_cnn().train()
    model.bn.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, EXAMPLE_SHAPE, opset=20)
    assert model.training and model.block.bn1.training and not model.bn.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean((2, 3)), x.amax((2, 3))


@pytest.mark.filterwarnings("ignore::UserWarning")  # the exporter remarks that one name was given for two outputs
def test_networks_that_cannot_be_baked() -> None:
    with pytest.raises(UsageError, match=r"the network has 2 outputs \(logits, .+\); wrap it so that"):
        export_onnx(TwoOutputs(), EXAMPLE_SHAPE, opset=20)
    with pytest.raises(UsageError, match=r"ONNX for images of shape \(4, 8, 8\) \(.*channels"):
        export_onnx(tiny_cnn(), (4, 8, 8), opset=20)
