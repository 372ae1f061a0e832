"""The whole refit on the CPU: new weights under the old masks, outputs checked, wrong engines refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from masksparse_deploy.bake.lint import lint
from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.refit import RefitReport
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import sha256_bytes
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.refit.check import relative_difference, rounding_tolerance
from masksparse_deploy.engine.refit.remask import masked_layers
from masksparse_deploy.engine.refit.run import refit
from masksparse_deploy.graph.reader import read_graph
from tests.engine.refit.networks import array_of, set_array, write_new, write_old
from tests.models.make_int8 import INT8_MASKED, int8_pair

MASKED = ("layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    OnnxRuntimeBackend().build(write_old(tmp_path), tmp_path, EngineOptions(batch=4), name="old", expose=("stem.out",))
    return tmp_path / "old.engine.json"


def run(engine: Path, new: Path, *, backend: Any = None, name: str = "new") -> RefitReport:
    folder = engine.parent
    return refit(engine, folder / "old.onnx", new, folder / "out", name=name, backend=backend)


def test_new_weights_under_the_old_masks(engine: Path, tmp_path: Path) -> None:
    report = run(engine, write_new(tmp_path))
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"new.onnx", "new.plan.onnx", "new.engine.json", "new.refit.json"}
    assert RefitReport.read(out / "new.refit.json") == report
    assert report.rebuilt
    assert tuple(layer.node for layer in report.layers) == MASKED
    assert all(layer.zeroed_count * 2 == layer.weight_count for layer in report.layers)
    for name in MASKED:
        old, given, written = (
            array_of(path, f"{name}.weight") for path in (tmp_path / "old.onnx", tmp_path / "new.onnx", out / "new.onnx")
        )
        np.testing.assert_array_equal(written, np.where(old != 0, given, 0))
    assert report.remasked_sha256 == sha256_bytes((out / "new.onnx").read_bytes())
    assert report.relative_error <= report.tolerance < 1e-4 < report.relative_change
    assert report.findings == ()
    checked = lint(out / "new.onnx")
    assert checked.ok
    assert sum(layer.state == "conforming" for layer in checked.layers) == len(MASKED)


def test_the_new_engine_knows_where_it_comes_from(engine: Path, tmp_path: Path) -> None:
    report = run(engine, write_new(tmp_path))
    old, new = EngineArtifact.read(engine), EngineArtifact.read(tmp_path / "out" / "new.engine.json")
    assert (report.old_plan_sha256, new.refitted_from_sha256) == (old.plan_sha256, old.plan_sha256)
    assert (report.plan_sha256, report.remasked_sha256) == (new.plan_sha256, new.source_sha256)
    assert (new.options, new.exposed) == (old.options, old.exposed)
    images = np.random.default_rng(1).standard_normal((3, 3, 8, 8), dtype=np.float32)
    with OnnxRuntimeBackend().open(tmp_path / "out" / "new.engine.json") as session:
        assert session.run(images)["logits"].shape == (3, 10)


class Spoiling:
    """A backend that changes a tensor behind the caller's back."""

    name, refit_rebuilds = "onnxruntime", True

    def __init__(self, spoil: Callable[[onnx.ModelProto], None]) -> None:
        self._backend, self._spoil = OnnxRuntimeBackend(), spoil

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def refit(self, metadata_path: Path, onnx_path: Path, folder: Path, **arguments: Any) -> EngineArtifact:
        model = onnx.load(onnx_path)
        self._spoil(model)
        onnx.save(model, folder / "spoiled.onnx")
        return self._backend.refit(metadata_path, folder / "spoiled.onnx", folder, **arguments)


@pytest.mark.parametrize("name", ["stem.weight", "layer2.conv1.weight", "fc.bias"])
def test_a_tensor_that_keeps_its_old_values_is_caught(engine: Path, tmp_path: Path, name: str) -> None:
    old = array_of(tmp_path / "old.onnx", name)
    with pytest.raises(ArtifactError, match=r"does not compute what .*new\.onnx says: .* Nothing was written"):
        run(engine, write_new(tmp_path), backend=Spoiling(lambda model: set_array(model, name, old)))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_single_wrong_weight_is_caught(engine: Path, tmp_path: Path) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        array = array_of(tmp_path / "new.onnx", "layer1.conv2.weight").copy()
        position = tuple(np.argwhere(array_of(tmp_path / "old.onnx", "layer1.conv2.weight") != 0)[0])
        array[array_of(tmp_path / "old.onnx", "layer1.conv2.weight") == 0] = 0
        array[position] += 0.01
        set_array(model, "layer1.conv2.weight", array)

    with pytest.raises(ArtifactError, match="does not compute"):
        run(engine, write_new(tmp_path), backend=Spoiling(spoil))


def test_the_old_weights_again_cannot_be_told_apart(engine: Path, tmp_path: Path) -> None:
    report = run(engine, tmp_path / "old.onnx")
    assert report.changed_tensors == ()
    assert "the check cannot tell them from the old ones" in report.findings[0]
    assert sum(layer.zeroed_count for layer in report.layers) == 0


def test_an_int8_file(tmp_path: Path) -> None:
    """New integers and new scales; the zeros of quantized weights stay the masks."""
    _, model = int8_pair()
    onnx.save(model, tmp_path / "old.onnx")
    OnnxRuntimeBackend().build(tmp_path / "old.onnx", tmp_path, EngineOptions(batch=4), name="old")
    generator = np.random.default_rng(5)
    scales = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear" and "weight" in node.input[0]}
    for tensor in list(model.graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.int8 and array.ndim > 1:
            set_array(model, tensor.name, generator.integers(1, 128, array.shape).astype(np.int8))
        elif tensor.name in scales:
            set_array(model, tensor.name, (array * 1.1).astype(np.float32))
    onnx.save(model, tmp_path / "new.onnx")
    report = run(tmp_path / "old.engine.json", tmp_path / "new.onnx")
    assert {layer.node for layer in report.layers} == set(INT8_MASKED)
    assert all(layer.zeroed_count * 2 == layer.weight_count for layer in report.layers)
    assert report.relative_error <= report.tolerance < report.relative_change
    assert report.tolerance > 1e-2  # rounding to 8 bits


def test_what_does_not_belong_together_is_refused(engine: Path, tmp_path: Path) -> None:
    new = write_new(tmp_path)
    with pytest.raises(ArtifactError, match=r"was built from a file of digest .* give the file that it was built from"):
        refit(engine, new, new, tmp_path / "out", name="new")
    with pytest.raises(UsageError, match=r"would replace .*old\.engine\.json"):
        refit(engine, tmp_path / "old.onnx", new, tmp_path, name="old")
    bias = write_new(tmp_path, lambda model: set_array(model, "fc.bias", np.zeros((1, 10), np.float32)))
    with pytest.raises(UsageError, match=r"is not the network of .*old\.onnx"):
        run(engine, bias)
    assert not (tmp_path / "out").exists()


def test_a_file_without_annotations_tells_its_masks_by_its_zeros(tmp_path: Path) -> None:
    model = onnx.load(write_old(tmp_path))
    for proto in (model, *model.graph.node, *model.graph.initializer):
        del proto.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    assert tuple(layer.node.name for layer in masked_layers(read_graph(tmp_path / "bare.onnx"))) == MASKED


def test_weights_that_overflow_are_told(engine: Path, tmp_path: Path) -> None:
    huge = write_new(tmp_path, lambda model: set_array(model, "fc.bias", np.full(10, np.inf, np.float32)))
    with pytest.raises(ArtifactError, match="not finite"):
        run(engine, huge)


def test_the_measure() -> None:
    def measure(outputs: list[float], reference: list[float]) -> float:
        return relative_difference({"a": np.array(outputs), "exposed": np.ones(9)}, {"a": np.array(reference)})

    assert measure([3, 4], [3, 4]) == 0
    assert measure([0, 0], [3, 4]) == 1
    assert measure([0, 0], [0, 0]) == 0
    assert measure([1, 1], [0, 0]) == np.inf
    with pytest.raises(ArtifactError, match=r"output a is \(2,\), that of its file \(3,\)"):
        measure([1, 1], [0, 0, 0])
    with pytest.raises(ArtifactError, match="output a is missing"):
        relative_difference({}, {"a": np.zeros(2)})


def test_sums_in_half_precision_widen_the_tolerance(tmp_path: Path) -> None:
    graph = read_graph(write_old(tmp_path))
    kernel = "sm80_xmma_fprop_implicit_gemm_f16f16_f16{}_{}_nhwckrsc_nhwc_tilesize128x64x64"
    layer = {"name": "l", "onnx_nodes": MASKED, "is_sparse": None, "reason": ""}
    half, single = (
        rounding_tolerance(graph, (EngineLayer.model_validate({**layer, "tactic": kernel.format(sums, sums)}),))
        for sums in ("f16", "f32")
    )
    assert single == rounding_tolerance(graph, ()) < 1e-4 < half


def test_leave_to_use_tf32_widens_the_tolerance(tmp_path: Path) -> None:
    graph = read_graph(write_old(tmp_path))
    # 2^-11 in each of seven layers, four times the root of the sum of squares
    assert rounding_tolerance(graph, (), tf32=True) == pytest.approx(4 * 7**0.5 * 2.0**-11, rel=1e-3)
