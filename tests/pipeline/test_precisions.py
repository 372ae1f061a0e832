"""The whole chain in reduced precision."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.validate.kernels import layer_kernels
from masksparse_deploy.validate.layers import exposed_tensors, layer_pairs
from masksparse_deploy.validate.layerwise import compare_layers
from tests.models.tiny_cnn import example_images
from tests.project import make_project, masksparse

OPTIONS = EngineOptions(batch=16, threads=1)


def run_chain(folder: Path, precision: str) -> tuple[int, Path]:
    """Exit code and output folder of the chain with magnitude masks."""
    config = make_project(folder, mask={"method": "magnitude"}, bake={"precision": precision, "calibration_count": 64})
    result = masksparse("deploy", config)
    assert result.returncode in (0, 1), result.stderr + result.stdout
    return result.returncode, folder / "out"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    code, out = run_chain(tmp_path_factory.mktemp("fp16"), "fp16")
    assert code == 0
    return out


def checks_of(out: Path) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads((out / "validation.json").read_text())["checks"]}


def test_fp16_passes_within_its_rounding_bounds(half: Path) -> None:
    assert json.loads((half / "validation.json").read_text())["verdict"] == "pass"
    layers = json.loads((half / "validation.json").read_text())["layers"]
    assert layers and all(0 < layer["rounding_ratio"] <= 1 for layer in layers)
    report = BakeReport.read(half / "bake.json")
    assert report.precision == "fp16"
    assert {row.weight for row in report.ranges} >= {layer.initializer for layer in report.layers}
    assert all(row.output_largest is not None for row in report.ranges if row.weight)
    assert report.calibration_sha256 is not None


def test_what_fp16_costs_is_told_from_the_networks_before_it(half: Path) -> None:
    report = json.loads((half / "validation.json").read_text())["attribution"]
    assert report["reference"] == "the dense network before it was converted to the precision of the file"
    # weights are off by up to 2^-11 of themselves, which adds up to no more than that many times the layers
    assert 2.0**-16 < report["output"]["quantization"] < 5 * 2.0**-11
    assert report["output"]["mask"] > 0.05
    for name in ("dense", "sparse"):
        assert sha256_file(half / f"{name}.fp32.onnx") == getattr(BakeReport.read(half / "bake.json"), f"{name}_fp32_sha256")


def test_a_wrong_weight_in_an_fp16_engine_leaves_the_bound(half: Path, tmp_path: Path) -> None:
    dense, sparse = (read_graph(half / f"{name}.onnx") for name in ("dense", "sparse"))
    pairs = layer_pairs(dense, sparse, Certificate.read(half / "certificate.json"))
    model = onnx.load(half / "sparse.onnx")
    wrong = pairs[1].sparse.layer
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == wrong.stored_name)
    weight = numpy_helper.to_array(tensor).copy()
    weight.reshape(-1)[np.abs(weight).argmax()] *= np.float16(1.1)
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    backend = OnnxRuntimeBackend()
    engine = backend.build(tmp_path / "wrong.onnx", tmp_path, OPTIONS, name="layers", expose=exposed_tensors(pairs, sparse))
    with backend.open(tmp_path / "layers.engine.json", threads=1) as session:
        layers = compare_layers(session, pairs, example_images(16), input_name="images", kernels=layer_kernels(pairs, engine))
    # Not a failure: the kernel's name does not tell whether it keeps its sums in FP32.
    assert {layer.node for layer in layers if layer.verdict != "pass"} == {wrong.node.name}


def test_int8_passes_within_its_bounds(tmp_path: Path) -> None:
    code, out = run_chain(tmp_path, "int8")
    assert code == 0
    report = json.loads((out / "validation.json").read_text())
    assert report["verdict"] == "pass"
    assert "within their proved bounds" in checks_of(out)["layers outside their bounds"]["detail"]
    # half a step of the grid is nearly reached by some of the outputs; no kernel is further away than it may be
    assert report["layers"] and all(0.9 < layer["rounding_ratio"] <= 1 for layer in report["layers"])
    lint = masksparse("lint", out / "sparse.onnx", "--json")
    assert lint.returncode == 0, lint.stdout
    masked = {layer.initializer for layer in BakeReport.read(out / "bake.json").layers}
    states = {layer["weight"]: layer["state"] for layer in json.loads(lint.stdout)["layers"]}
    assert masked and {states[name] for name in masked} == {"conforming"}


def test_bf16_asks_for_the_operator_set_that_has_it(tmp_path: Path) -> None:
    config = make_project(tmp_path, mask={"method": "magnitude"}, bake={"precision": "bf16"})
    result = masksparse("deploy", config)
    assert result.returncode == 2
    assert "22" in result.stderr
    assert not (tmp_path / "out" / "sparse.onnx").exists()
