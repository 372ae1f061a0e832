"""Engines of rewritten files are followed back to the sparse file, and what was changed on the way is found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.reader import read_graph, weighted_layers
from masksparse_deploy.rewrite.blocks.gather import gather_blocks
from tests.models.make_onnx import MASKED_LAYERS
from tests.validate.deployment import OPTIONS, WIDE_GATES, Deployment, deploy, failed, named, set_constant

LAYER = "layer1.conv2"


def rewrite_report(folder: Path, **changes: Any) -> RewriteReport:
    """What the rewrite stage records, for the two files as they are."""
    values: dict[str, Any] = {
        "sparse_sha256": sha256_file(folder / "sparse.onnx"),
        "rewritten_sha256": sha256_file(folder / "rewritten.onnx"),
        "backend": "onnxruntime",
        "device": "made for a test",
        "versions": {},
        "batch": 16,
        "threads": 1,
        "channel_block": 8,
        "layers": (),
        "speedup": None,
        "interval": None,
        "remarks": (),
    }
    return RewriteReport(**{**values, **changes})


def build(folder: Path, source: str) -> None:
    OnnxRuntimeBackend().build(folder / source, folder, OPTIONS, name="sparse")


def rewritten_deployment(folder: Path) -> Deployment:
    """A pair with 1xN masks, whose sparse engine is made of the rewritten file."""
    deployment = deploy(folder, pattern=parse_pattern("1x8@0.5"))
    model = ir.load(folder / "sparse.onnx")
    gather_blocks(model, MASKED_LAYERS)
    ir.save(model, folder / "rewritten.onnx")
    build(folder, "rewritten.onnx")
    return deployment


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return rewritten_deployment(tmp_path_factory.mktemp("rewritten"))


def validated(deployment: Deployment, **changes: Any) -> ValidationReport:
    arguments = {
        "rewrite": rewrite_report(deployment.folder),
        "rewritten_onnx": deployment.folder / "rewritten.onnx",
        **changes,
    }
    return deployment.validate(**arguments)


def test_an_engine_of_the_rewritten_file_passes_all_checks(deployment: Deployment) -> None:
    report = validated(deployment, gates=WIDE_GATES.model_copy(update={"sparse_layers": 4}))
    assert report.verdict == "pass"
    assert named(report, "rewritten file").detail.startswith("read back from both files: the rewritten one leaves out")
    # the plan is held against the file that it was built from, and holds half of the weights
    assert named(report, "weights of the sparse plan").verdict == "pass"
    graphs = (read_graph(deployment.folder / name) for name in ("sparse.onnx", "rewritten.onnx"))
    sizes = [{layer.node.name: layer.weight.size for layer in weighted_layers(graph)} for graph in graphs]
    assert all(sizes[0][name] == 2 * sizes[1][name] for name in MASKED_LAYERS)
    # all layers are compared on the tensors of the sparse file, which the rewritten one has too
    assert [layer.verdict for layer in report.layers] == ["pass"] * len(MASKED_LAYERS)
    for layer in report.survival:
        groups = 2 if layer.layer.startswith("layer1") else 4
        assert (layer.engine.state, layer.engine.group_count, layer.runs_sparse) == ("conforming", groups, True)


def test_the_sparse_file_deployed_as_it_is_needs_no_rewritten_one(tmp_path: Path) -> None:
    deployment = rewritten_deployment(tmp_path)
    build(tmp_path, "sparse.onnx")
    report = validated(deployment, rewrite=rewrite_report(tmp_path, rewritten_sha256=None), rewritten_onnx=None)
    assert report.verdict == "pass"
    assert "rewritten file" not in {check.name for check in report.checks}
    assert {layer.runs_sparse for layer in report.survival} == {False}


def swap_indices(model: onnx.ModelProto) -> None:
    def swap(indices: np.ndarray) -> np.ndarray:
        indices[[0, 1]] = indices[[1, 0]]
        return indices

    set_constant(model, f"{LAYER}/channels/indices", swap)


def change_weight(model: onnx.ModelProto) -> None:
    def nudge(weight: np.ndarray) -> np.ndarray:
        weight[0, 0, 0, 0] = np.nextafter(weight[0, 0, 0, 0], np.float32(9))
        return weight

    set_constant(model, f"{LAYER}.weight/groups", nudge)


@pytest.mark.parametrize("fault", [swap_indices, change_weight])
def test_a_rewritten_file_that_is_another_function_is_found(tmp_path: Path, fault: Callable[[onnx.ModelProto], None]) -> None:
    deployment = rewritten_deployment(tmp_path)
    model = onnx.load(tmp_path / "rewritten.onnx")
    fault(model)
    onnx.save(model, tmp_path / "rewritten.onnx")
    build(tmp_path, "rewritten.onnx")
    report = validated(deployment)
    assert report.verdict == "fail"
    assert "rewritten file" in failed(report)
    assert LAYER in named(report, "rewritten file").detail
    # engine and file agree: nothing but this check sees a change of one unit in the last place
    assert named(report, "weights of the sparse plan").verdict == "pass"
    assert (failed(report) == {"rewritten file"}) == (fault is change_weight)


def test_a_weight_changed_in_the_plan_is_found_against_the_rewritten_file(tmp_path: Path) -> None:
    deployment = rewritten_deployment(tmp_path)
    deployment.change_plan(change_weight)
    check = named(validated(deployment), "weights of the sparse plan")
    assert check.verdict == "fail"
    assert f"{LAYER}: 1 of " in check.detail and f"values of {LAYER}.weight/groups differ" in check.detail


def test_a_weight_in_a_block_that_the_pattern_has_no_place_for_is_found_in_the_plan(tmp_path: Path) -> None:
    """A group of the plan that reads one channel more than 1xN keeps, padded with zeros elsewhere."""
    deployment = rewritten_deployment(tmp_path)
    model = ir.load(tmp_path / "sparse.onnx")
    gather_blocks(model, MASKED_LAYERS, multiple=9)
    ir.save(model, tmp_path / "rewritten.onnx")
    build(tmp_path, "rewritten.onnx")

    def fill(weight: np.ndarray) -> np.ndarray:
        weight[0] = 1
        return weight

    report = validated(deployment)
    assert report.verdict == "pass" and report.survival[1].engine.violation_count == 0
    deployment.change_plan(lambda plan: set_constant(plan, f"{LAYER}.weight/groups", fill))
    (layer,) = [layer for layer in validated(deployment).survival if layer.layer == LAYER]
    assert (layer.engine.violation_count, layer.engine.group_count, layer.lost_at) == (1, 2, "engine")


def test_files_that_do_not_belong_together_are_refused(deployment: Deployment) -> None:
    folder = deployment.folder
    with pytest.raises(
        ArtifactError, match=r"the rewrite report is about another sparse ONNX file: recorded digest 0+, .*again"
    ):
        validated(deployment, rewrite=rewrite_report(folder, sparse_sha256="0" * 64))
    with pytest.raises(ArtifactError, match=r"rewritten.onnx is another file than 'masksparse rewrite' wrote: .*again"):
        validated(deployment, rewrite=rewrite_report(folder, rewritten_sha256="0" * 64))
    with pytest.raises(UsageError, match=r"names a rewritten file, and none was given: give rewritten\.onnx too"):
        validated(deployment, rewritten_onnx=None)
    with pytest.raises(UsageError, match=r"rewritten.onnx was given without the report of the rewrite: give rewrite.json too"):
        validated(deployment, rewrite=None)
    with pytest.raises(
        ArtifactError,
        match=r"the sparse engine was built from another sparse ONNX file: .*, or give rewritten\.onnx and rewrite\.json too",
    ):
        deployment.validate()


def test_an_engine_of_the_sparse_file_is_refused_where_a_rewritten_one_is_named(tmp_path: Path) -> None:
    deployment = rewritten_deployment(tmp_path)
    build(tmp_path, "sparse.onnx")
    with pytest.raises(
        ArtifactError, match=r"the sparse engine was built from another rewritten ONNX file: .*'masksparse build'"
    ):
        validated(deployment)
