"""The whole chain with transposable masks, with fitted weights, and with weights trained under their masks."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.learning import LearnReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.engine.plans import read_plan
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.pipeline.config_file import read_config
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.run import run_chain
from masksparse_deploy.pipeline.stages import STAGES
from tests.models.transposable import move_within_a_row
from tests.project import make_project

METHODS = {
    "transposable": {"method": "transposable"},
    "adaprune": {"method": "adaprune", "pattern": "T2:4"},
    "sparse-training": {"method": "sparse-training", "pattern": "T2:4", "permute": True, "mask_steps": 4},
}


def job_of(config: Path) -> Job:
    options = read_config(config)
    return Job(config=options, folder=config.parent, out=Path(options.out), command="deploy", config_text=config.read_text())


@pytest.fixture(scope="module", params=list(METHODS))
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Job]:
    job = job_of(make_project(tmp_path_factory.mktemp("project"), mask=METHODS[request.param]))
    run_chain(job)
    return request.param, job


@pytest.mark.slow
def test_the_chain_ends_in_a_verdict_and_every_artifact_knows_the_pattern(deployed: tuple[str, Job]) -> None:
    method, job = deployed
    learned, masks = LearnReport.read(job.out / "learn.json"), read_mask_set(job.out / "masks.safetensors")
    assert learned.method.startswith(method)
    assert learned.pattern == "T2:4"
    assert bool(learned.changed_parameters) == bool(masks.weights) == (method != "transposable")
    baked = BakeReport.read(job.out / "bake.json")
    assert baked.weights_updated == bool(masks.weights)
    assert {layer.pattern for layer in baked.layers} == {"T2:4"}
    validation = ValidationReport.read(job.out / "validation.json")
    assert validation.verdict == "pass", [check for check in validation.checks if check.verdict != "pass"]
    assert {(layer.pattern, layer.lost_at) for layer in validation.survival} == {("T2:4", None)}
    # What the masks removed and what the weights moved by are both in the bounds.
    assert {layer.verdict for layer in validation.layers} == {"pass"}
    bounds = Certificate.read(job.out / "certificate.json").layers
    assert {layer.node for layer in baked.layers} <= {bound.node for bound in bounds}
    page = (job.out / "report.html").read_text(encoding="utf-8")
    assert "T2:4 along the input channels and along the output channels" in page
    assert ("Moved by" in page) == (method != "transposable")
    assert [result.status for result in run_chain(job)] == ["unchanged"] * len(STAGES)


@pytest.mark.slow
def test_the_dense_twin_is_the_trained_network_and_the_sparse_one_has_the_masks(deployed: tuple[str, Job]) -> None:
    _, job = deployed
    masks = read_mask_set(job.out / "masks.safetensors")
    dense, sparse = read_graph(job.out / "dense.onnx"), read_graph(job.out / "sparse.onnx")
    for name, mask in masks.layers.items():
        assert not sparse.constants[name][~mask.keep].any()
        assert np.count_nonzero(dense.constants[name]) == mask.keep.size
        factor = sparse.constants[name][mask.keep] / dense.constants[name][mask.keep]
        # Folded statistics make one factor for each output channel; weights of their own make as many as there are weights.
        assert (len(np.unique(np.round(factor, 3))) > len(mask.keep)) == bool(masks.weights)


@pytest.mark.slow
@pytest.mark.parametrize("deployed", ["transposable"], indirect=True)
def test_a_weight_moved_to_another_column_of_the_plan_fails_the_verdict(deployed: tuple[str, Job]) -> None:
    _, job = deployed
    metadata = job.out / "sparse.engine.json"
    artifact, plan = read_plan(metadata, backend="onnxruntime")
    model = onnx.load_model_from_string(plan)
    name = "block.conv2.weight"
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(move_within_a_row(numpy_helper.to_array(tensor)), name))
    onnx.save(model, job.out / artifact.plan)
    EngineArtifact.read(metadata).model_copy(update={"plan_sha256": sha256_file(job.out / artifact.plan)}).write(metadata)
    stage = next(stage for stage in STAGES if stage.name == "validate")
    stage.run(job, lambda *arguments: None)
    report = ValidationReport.read(job.out / "validation.json")
    assert report.verdict == "fail"
    (lost,) = (layer for layer in report.survival if layer.lost_at is not None)
    assert (lost.layer, lost.lost_at) == ("block.conv2", "engine")
    (check,) = (check for check in report.checks if check.name == "pattern of the sparse plan")
    assert "groups keep more than 2 of 4 weights along input or output channels" in check.detail
