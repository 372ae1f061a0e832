"""What an engine's artifact tells of its kernels, and what the gate says of layers that no bound decides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.config import Gates
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.validate.arithmetic import ARITHMETICS, Kernel
from masksparse_deploy.validate.gates import layerwise_gate
from masksparse_deploy.validate.kernels import doubts, layer_kernels
from masksparse_deploy.validate.layers import LayerPair, exposed_tensors, layer_pairs
from masksparse_deploy.validate.layerwise import compare_layers
from tests.models.make_onnx import MASKED_LAYERS
from tests.validate.deployment import Deployment, deploy

TF32 = "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc"
FIRST = MASKED_LAYERS[0]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return deploy(tmp_path_factory.mktemp("deployment"), count=8)


@pytest.fixture(scope="module")
def pairs(deployment: Deployment) -> tuple[LayerPair, ...]:
    dense, sparse = (read_graph(deployment.folder / f"{name}.onnx") for name in ("dense", "sparse"))
    return layer_pairs(dense, sparse, deployment.certificate)


def engine_with(deployment: Deployment, tactic: str, **options: bool) -> EngineArtifact:
    """The deployed engine as if it named this kernel for the first layer."""
    artifact = EngineArtifact.read(deployment.folder / "sparse.engine.json")
    layer = EngineLayer(name="kernel", onnx_nodes=(FIRST,), tactic=tactic, is_sparse=False, reason="")
    return artifact.model_copy(update={"layers": (layer,), "options": {**artifact.options, **options}})


class Emulated:
    """A session that gives the float64 values of a file, rounded to float32, and adds to one tensor."""

    def __init__(self, path: Path, names: tuple[str, ...], changes: Mapping[str, float]) -> None:
        self._graph, self._names, self._changes = read_graph(path), names, changes

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        return (None, 3, 8, 8)

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._names

    def run(self, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        values = evaluate(self._graph, images, self._names)
        return {name: (array * (1 + self._changes.get(name, 0.0))).astype(np.float32) for name, array in values.items()}

    def prepare(self, images: npt.NDArray[np.float32]) -> Any:
        raise AssertionError("layers are compared, not timed")


def compared(deployment: Deployment, pairs: tuple[LayerPair, ...], kernels: Mapping[str, Kernel], change: float = 0.0):
    names = exposed_tensors(pairs, read_graph(deployment.folder / "sparse.onnx"))
    session = Emulated(deployment.folder / "sparse.onnx", names, {pairs[-1].sparse.output: change})
    return compare_layers(session, pairs, deployment.samples.images, input_name="images", kernels=kernels)


@pytest.mark.parametrize(
    ("tactic", "options", "expected"),
    [("Conv", {}, "fp32"), (TF32, {}, "tf32"), ("", {"tf32": True}, "tf32"), ("", {"tf32": False}, "fp32")],
)
def test_the_arithmetic_is_what_the_engine_says(
    deployment: Deployment, pairs: tuple[LayerPair, ...], tactic: str, options: dict[str, bool], expected: str
) -> None:
    kernel = layer_kernels(pairs, engine_with(deployment, tactic, **options))[FIRST]
    assert kernel.arithmetic is not None
    assert (kernel.arithmetic.name, kernel.doubt) == (expected, None)


def test_what_tf32_may_round_is_a_fault_in_fp32(deployment: Deployment, pairs: tuple[LayerPair, ...]) -> None:
    last = pairs[-1].bound.node
    verdicts = {}
    for name in ("fp32", "tf32"):
        kernels = {pair.bound.node: Kernel(tactic="", arithmetic=ARITHMETICS[name]) for pair in pairs}
        # 2^-11 of every output: half of what TF32 takes from one operand, thousands of units of FP32
        layers = {layer.node: layer.verdict for layer in compared(deployment, pairs, kernels, 2.0**-11)}
        verdicts[name] = layers.pop(last)
        assert set(layers.values()) == {"pass"}
    assert verdicts == {"fp32": "fail", "tf32": "pass"}


def test_more_than_tf32_may_round_fails(deployment: Deployment, pairs: tuple[LayerPair, ...]) -> None:
    kernels = {pair.bound.node: Kernel(tactic="", arithmetic=ARITHMETICS["tf32"]) for pair in pairs}
    layers = compared(deployment, pairs, kernels, 0.1)
    assert [layer.node for layer in layers if layer.verdict == "fail"] == [pairs[-1].bound.node]


def test_sums_that_may_be_infinite_decide_nothing(deployment: Deployment, pairs: tuple[LayerPair, ...]) -> None:
    small = {**vars(ARITHMETICS["fp16 sums"]), "largest_sum": 1.0}
    kernels = {pair.bound.node: Kernel(tactic="h884", arithmetic=type(ARITHMETICS["fp32"])(**small)) for pair in pairs}
    layers = compared(deployment, pairs, kernels)
    assert {layer.verdict for layer in layers} == {"inconclusive"}
    check = layerwise_gate(layers, doubts(layers, kernels), Gates())
    assert check.verdict == "inconclusive"
    assert f"{FIRST}: its sums in fp16 sums may be larger than the format holds" in check.detail


def test_without_a_bound_nothing_is_decided(deployment: Deployment, pairs: tuple[LayerPair, ...]) -> None:
    kernels = {pair.bound.node: Kernel(tactic="", arithmetic=None, doubt="no bound here") for pair in pairs}
    layers = compared(deployment, pairs, kernels)
    assert {layer.verdict for layer in layers} == {"inconclusive"}
    assert doubts(layers, kernels) == dict.fromkeys(kernels, "no bound here")
