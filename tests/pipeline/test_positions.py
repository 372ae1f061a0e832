"""The whole chain with output positions left out, with 2:4 masks in FP16 and with 1xN blocks; alone: tests/test_samples.py."""

from pathlib import Path

import numpy as np
import pytest

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.learning import LearnReport
from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.graph.positions import position_masks
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.run import run_chain
from masksparse_deploy.pipeline.stages import STAGES
from masksparse_deploy.validate.positions import CHECK_NAME
from tests.pipeline.test_weight_methods import job_of
from tests.project import make_project

# The stem of the tiny network reads the image and keeps all positions; its 4 x 4 images lose round(0.4 * 16) = 6.
LAYERS = ("block.conv1", "block.conv2")
PROJECTS = {
    "2:4": {"mask": {"method": "sparse-training", "mask_steps": 4}, "bake": {"precision": "fp16"}},
    "1x8@0.5": {"mask": {"method": "blocks", "pattern": "1x8@0.5", "channel_block": 1}, "rewrite": {"mode": "always"}},
}


@pytest.fixture(scope="module", params=list(PROJECTS))
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Job]:
    sections = {name: dict(values) for name, values in PROJECTS[request.param].items()}
    sections["mask"]["position_rate"] = 0.4
    job = job_of(make_project(tmp_path_factory.mktemp("project"), **sections))
    run_chain(job)
    return request.param, job


@pytest.mark.slow
def test_the_chain_ends_in_a_verdict_and_every_artifact_knows_the_positions(deployed: tuple[str, Job]) -> None:
    pattern, job = deployed
    masks = read_mask_set(job.out / "masks.safetensors")
    assert tuple(masks.positions) == LAYERS  # sorted, whatever order the file has
    assert {np.count_nonzero(~mask.keep) for mask in masks.positions.values()} == {6}
    assert {str(mask.pattern) for mask in masks.layers.values()} == {pattern}
    learned = LearnReport.read(job.out / "learn.json")
    assert [(row.name, row.density) for row in learned.positions] == [(layer, 10 / 16) for layer in LAYERS]
    baked = BakeReport.read(job.out / "bake.json")
    assert [(row.layer, row.kept_count, row.position_count) for row in baked.positions] == [(name, 10, 16) for name in LAYERS]
    assert {layer.pattern for layer in baked.layers} == {pattern}
    found = position_masks(read_graph(job.out / "sparse.onnx"))
    assert [masked.layer for masked in found.values()] == list(LAYERS)
    assert position_masks(read_graph(job.out / "dense.onnx")) == {}
    bounds = {bound.node for bound in Certificate.read(job.out / "certificate.json").layers}
    assert {masked.conv.name for masked in found.values()} <= bounds
    validation = ValidationReport.read(job.out / "validation.json")
    assert validation.verdict == "pass", [check for check in validation.checks if check.verdict != "pass"]
    assert named(validation, CHECK_NAME) == "pass"
    page = (job.out / "report.html").read_text(encoding="utf-8")
    assert "2 convolutions compute 20 of 32 output positions" in page
    assert [result.status for result in run_chain(job)] == ["unchanged"] * len(STAGES)


@pytest.mark.slow
def test_the_rewrite_tells_of_every_layer(deployed: tuple[str, Job]) -> None:
    _, job = deployed
    report = RewriteReport.read(job.out / "rewrite.json")
    convolutions = {masked.conv.name for masked in position_masks(read_graph(job.out / "sparse.onnx")).values()}
    assert convolutions <= {layer.node for layer in report.layers}
    assert all(layer.reason for layer in report.layers)


def test_a_method_that_keeps_the_weights_is_refused(tmp_path: Path) -> None:
    job = job_of(make_project(tmp_path, mask={"method": "scores", "position_rate": 0.4}))
    with pytest.raises(UsageError, match="leaves output positions out, for which the weights must train"):
        run_chain(job)


def named(report: ValidationReport, name: str) -> str:
    (check,) = (check for check in report.checks if check.name == name)
    return check.verdict
