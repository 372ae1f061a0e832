from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from masksparse_deploy.bake.lint import lint_graph
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.graph.reader import parse_graph
from tools.imagenet_networks import INPUT_SHAPE, NETWORKS, mobilenet_v1, resnet18, with_blocks


# Parameters as torchvision counts them (Keras for MobileNetV1, trainable), less one for every channel of a batch norm: of its
# scale and shift only the bias is left when it is folded.
@pytest.mark.parametrize(
    ("name", "parameters", "channels_normalized"),
    [("resnet18", 11_689_512, 4_800), ("resnet50", 25_557_032, 26_560), ("mobilenet_v1", 4_231_976, 10_944)],
)
def test_the_networks_have_as_many_parameters_as_published(name: str, parameters: int, channels_normalized: int) -> None:
    model = NETWORKS[name](0)
    onnx.checker.check_model(model, full_check=True)
    assert sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) == parameters - channels_normalized


@pytest.mark.parametrize("make", [resnet18, mobilenet_v1])
def test_outputs_are_of_ordinary_size(make: Callable[[int], onnx.ModelProto]) -> None:
    session = onnxruntime.InferenceSession(make(0).SerializeToString(), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"image": np.random.default_rng(0).standard_normal(INPUT_SHAPE, dtype=np.float32)})
    assert 1e-2 < outputs.std() < 1e2


@pytest.mark.parametrize("text", ["1x32@0.75/16", "1x32~0.5"])
def test_blocks_are_drawn_and_declared(text: str) -> None:
    pattern = BlockPattern.parse(text)
    dense = resnet18(0)
    sparse = with_blocks(dense, pattern, seed=1)
    report = lint_graph(parse_graph(sparse.SerializeToString(), name="sparse.onnx"), name="sparse.onnx")
    assert sum(layer.state == "conforming" for layer in report.layers) == 16  # all but stem, three shortcuts and classifier
    # a weight that is drawn is zero itself once in some millions; a block is 1 / 8192 of the largest layer
    densities = [layer.density for layer in report.layers if layer.state == "conforming"]
    assert densities == pytest.approx([pattern.density] * 16, abs=1e-5)
    for before, after in zip(dense.graph.initializer, sparse.graph.initializer, strict=True):
        values = numpy_helper.to_array(after)
        assert (values == numpy_helper.to_array(before))[values != 0].all()
    assert with_blocks(dense, pattern, seed=1) == sparse
    assert with_blocks(dense, pattern, seed=2) != sparse


def test_depthwise_layers_and_the_stem_stay_dense() -> None:
    sparse = with_blocks(mobilenet_v1(0), BlockPattern.parse("1x32@0.5"))
    declared = {node.name for node in sparse.graph.node if node.metadata_props}
    assert declared == {f"layers.{index}.pointwise" for index in range(13)}
