"""What other tools leave of the annotations, as docs/annotations.md says."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.shape_inference
import onnx.utils
import onnx.version_converter
import onnx_ir as ir
import onnxruntime
import pytest

from masksparse_deploy.bake.lint import lint
from masksparse_deploy.graph.annotations import PREFIX
from tests.models.make_onnx import residual_pair

Tool = Callable[[Path, Path], None]


def infer_shapes(source: Path, target: Path) -> None:
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(source)), target)


def save_with_a_data_file(source: Path, target: Path) -> None:
    onnx.save_model(onnx.load(source), target, save_as_external_data=True, location="data", size_threshold=0)


def through_onnx_ir(source: Path, target: Path) -> None:
    ir.save(ir.load(source), target)


def extract_model(source: Path, target: Path) -> None:
    onnx.utils.extract_model(source, target, ["images"], ["logits"])


def convert_version(source: Path, target: Path) -> None:
    onnx.save(onnx.version_converter.convert_version(onnx.load(source), 21), target)


def optimise_with_onnx_runtime(source: Path, target: Path) -> None:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def annotated(parts: Sequence[Any]) -> int:
    return sum(any(entry.key.startswith(PREFIX) for entry in part.metadata_props) for part in parts)


@pytest.mark.parametrize(
    ("tool", "model", "nodes", "weights"),
    [
        (infer_shapes, True, True, True),
        (save_with_a_data_file, True, True, True),
        (through_onnx_ir, True, True, True),
        (extract_model, False, True, True),
        (convert_version, True, False, False),
        (optimise_with_onnx_runtime, True, True, False),
    ],
)
def test_what_is_kept(tool: Tool, model: bool, nodes: bool, weights: bool, tmp_path: Path) -> None:
    _, sparse = residual_pair()
    onnx.save(sparse, tmp_path / "sparse.onnx")
    layers = annotated(sparse.graph.node)
    tool(tmp_path / "sparse.onnx", tmp_path / "after.onnx")
    after = onnx.load(tmp_path / "after.onnx")
    assert bool(annotated([after])) is model
    assert annotated(after.graph.node) == (layers if nodes else 0)
    assert annotated(after.graph.initializer) == (layers if weights else 0)
    report = lint(tmp_path / "after.onnx")
    assert report.ok
    assert sum(layer.state == "conforming" for layer in report.layers) == sum(
        layer.state == "conforming" for layer in lint(tmp_path / "sparse.onnx").layers
    )
    told = any("lost their annotations" in line for line in (*report.findings, *report.remarks))
    assert told is (not nodes and not weights)
