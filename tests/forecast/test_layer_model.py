"""The small network that a kind of convolution is timed in."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from masksparse_deploy.core.artifacts.forecast import ConvolutionKind
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.engine.source import precision_of, read_source
from masksparse_deploy.engine.tensorrt_build import build_plan
from masksparse_deploy.engine.tensorrt_log import kept_messages
from masksparse_deploy.forecast.kinds import take_census
from masksparse_deploy.forecast.layer_model import LAYER, layer_model
from masksparse_deploy.graph.layers import weighted_layers
from masksparse_deploy.graph.reader import parse_graph
from tests.engine.fake_tensorrt import install
from tests.engine.test_tensorrt_build import OnTheProcessor
from tests.requirements import requires

KIND = ConvolutionKind(
    kernel=(3, 3),
    strides=(2, 2),
    dilations=(1, 1),
    pads=(1, 1, 1, 1),
    in_channels=8,
    out_channels=12,
    height=7,
    width=6,
    precision="fp16",
)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_its_layer_is_of_the_kind_that_it_was_made_for(precision: str) -> None:
    kind = KIND.model_copy(update={"precision": precision})
    graph = parse_graph(layer_model(kind).SerializeToString(), name="kind")
    assert precision_of(graph) == precision
    found = take_census(graph)
    # the cheap convolution in front has four input channels, too
    assert {tuple(layer.node.name for layer in layers) for layers in found.kinds.values()} == {("first",), (LAYER,)}
    assert next(made for made, layers in found.kinds.items() if layers[0].node.name == LAYER) == kind


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_only_the_layer_has_weights_for_a_sparse_tactic(precision: str) -> None:
    graph = parse_graph(layer_model(KIND.model_copy(update={"precision": precision})).SerializeToString(), name="kind")
    pattern = NMPattern(n=2, m=4)
    violations = {
        layer.node.name: pattern.count_violations(layer.weight != 0, group_axis=1) for layer in weighted_layers(graph)
    }
    assert violations[LAYER] == 0 and violations["first"] > 0
    (layer,) = (layer for layer in weighted_layers(graph) if layer.node.name == LAYER)
    assert np.count_nonzero(layer.weight) > 0.45 * layer.weight.size


@pytest.mark.parametrize(("precision", "batch"), [("fp16", "batch"), ("int8", 2)])
def test_a_runtime_takes_it_and_its_values_stay_in_range(precision: str, batch: int | str) -> None:
    model = layer_model(KIND.model_copy(update={"precision": precision}), batch)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    dtype = np.float16 if precision == "fp16" else np.float32
    images = np.random.default_rng(0).standard_normal((2, 4, 7, 6)).astype(dtype)
    (values,) = session.run(["y"], {"x": images})
    assert values.shape == (2, 12, 1, 1)
    # neither vanished nor overflowed: standard normal inputs through weights of variance about 1 / fan-in
    assert 0.05 < float(np.abs(values).mean()) < 4


def test_the_same_kind_gives_the_same_bytes() -> None:
    assert layer_model(KIND).SerializeToString(deterministic=True) == layer_model(KIND).SerializeToString(deterministic=True)


def test_weights_are_of_the_kind_s_shape() -> None:
    weights = {tensor.name: numpy_helper.to_array(tensor).shape for tensor in layer_model(KIND).graph.initializer}
    assert weights[f"{LAYER}.weight"] == (12, 8, 3, 3)


@pytest.mark.filterwarnings("ignore:Use :DeprecationWarning")  # TensorRT for RTX warns of calls that do nothing there
@requires(tensorrt_rtx=True)
@pytest.mark.parametrize(("precision", "batch"), [("fp16", 2), ("int8", "batch")])
def test_nvidias_own_builder_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, batch: int | str
) -> None:
    module = OnTheProcessor(pytest.importorskip("tensorrt_rtx"))
    install(monkeypatch, module)
    path = tmp_path / "kind.onnx"
    onnx.save(layer_model(KIND.model_copy(update={"precision": precision}), batch), path)
    options = EngineOptions(backend="tensorrt", batch=2, sparse_tactics=False)
    with kept_messages(module) as (logger, messages):
        built = build_plan(module, logger, messages, read_source(path), options, name="kind")
    assert len(built.plan) > 1000 and messages.errors == []
