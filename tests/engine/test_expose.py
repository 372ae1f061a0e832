"""Intermediate tensors returned without another kernel taking the place of the deployed one."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.source import read_source
from masksparse_deploy.graph.reader import read_graph
from tests.models.make_int8 import int8_images, int8_pair

BACKEND = OnnxRuntimeBackend()
OPTIONS = EngineOptions(batch=8, threads=1)
READ = ("images.dq", "stem.relu.dq", "conv1.out.dq", "conv2.relu.dq", "conv3.out.dq", "pooled.dq")
# What returns tensors and lays them out; all else computes.
_CARRIERS = ("DequantizeLinear", "Transpose")


def kernels(plan: Path, path: Path) -> Counter[tuple[str, ...]]:
    """What a session really runs, layouts chosen: operators with the names of layers and the types that they read."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.optimized_model_filepath = str(path)
    settings.log_severity_level = 4
    onnxruntime.InferenceSession(str(plan), settings, providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return Counter(
        (node.domain, node.op_type, *(str(types[name]) for name in node.input if name in types))
        for node in model.graph.node
        if node.op_type not in _CARRIERS
    )


@pytest.fixture(scope="module", params=[True, False], ids=["signed", "unsigned"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source, its plan, and one that returns what all layers read."""
    folder = tmp_path_factory.mktemp("int8")
    onnx.save(int8_pair(signed=request.param)[1], folder / "int8.onnx")
    BACKEND.build(folder / "int8.onnx", folder, OPTIONS, name="plain")
    BACKEND.build(folder / "int8.onnx", folder, OPTIONS, name="exposed", expose=READ)
    return folder


def test_the_kernels_are_those_of_the_deployed_engine(engine: Path) -> None:
    plain, exposed = (kernels(engine / f"{name}.plan.onnx", engine / "run.onnx") for name in ("plain", "exposed"))
    assert plain == exposed
    assert sum(count for kernel, count in plain.items() if kernel[1] == "QLinearConv") >= 1


@pytest.mark.parametrize("engine", [True], ids=["signed"], indirect=True)
def test_marked_in_the_source_they_would_be_others(engine: Path) -> None:
    (engine / "marked.onnx").write_bytes(read_source(engine / "int8.onnx", READ).with_exposed_outputs())
    BACKEND.build(engine / "marked.onnx", engine, OPTIONS, name="marked")
    plain, marked = (kernels(engine / f"{name}.plan.onnx", engine / "run.onnx") for name in ("plain", "marked"))
    assert plain != marked


def test_the_outputs_are_the_same_and_the_tensors_lie_on_the_grids_of_the_file(engine: Path) -> None:
    images, outputs = int8_images(8), []
    for name in ("plain", "exposed"):
        with BACKEND.open(engine / f"{name}.engine.json", threads=1) as session:
            outputs.append(session.run(images))
            assert session.output_names == (("logits",) if name == "plain" else ("logits", *READ))
    np.testing.assert_array_equal(outputs[0]["logits"], outputs[1]["logits"])
    constants = read_graph(engine / "int8.onnx").constants
    for name in READ:
        step = constants[name.replace(".dq", ".scale")].astype(np.float64)
        levels = outputs[1][name] / step
        # a product of integer and scale, rounded to float32: relative 2^-24, of 255 levels at most
        assert np.abs(levels - np.rint(levels)).max() < 1e-4
        assert len(np.unique(np.rint(levels))) > 50


def test_another_scale_in_the_plan_shows(tmp_path: Path) -> None:
    """The integers are read by the scale of the file: a kernel that writes others does not go unseen."""
    onnx.save(int8_pair(signed=False)[1], tmp_path / "int8.onnx")
    BACKEND.build(tmp_path / "int8.onnx", tmp_path, OPTIONS, name="layers", expose=("conv1.out.dq",))
    plan, changed = onnx.load(tmp_path / "layers.plan.onnx"), tmp_path / "changed.onnx"
    (tensor,) = (tensor for tensor in plan.graph.initializer if tensor.name == "conv1.out.scale")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), tensor.name))
    onnx.save(plan, changed)
    seen = []
    for path in (tmp_path / "layers.plan.onnx", changed):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (values,) = session.run(["conv1.out.dq"], {"images": int8_images(4)})
        seen.append(float(np.abs(values).max()))
    assert seen[1] == pytest.approx(seen[0] / 2, rel=0.02)  # half a step of at least 50 levels
