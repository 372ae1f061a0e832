"""The whole chain on masks of 1xN blocks: rewritten, built from that, validated, certified, checked, and updated."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksparse_deploy.cli.main import run
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.graph.reader import read_graph, weighted_layers
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.run import run_chain
from masksparse_deploy.pipeline.stages import STAGES
from tests.pipeline.test_updating import moved, update
from tests.pipeline.test_weight_methods import job_of
from tests.project import make_project

PATTERN = "1x4@0.5"
MASK = {"method": "blocks", "pattern": PATTERN, "channel_block": 1, "epochs": 1}
# conv2 reads 16 channels and gives as many; both layers have as many output channels as blocks of four need
LAYERS = ("block.conv1", "block.conv2")


def block_project(folder: Path, **sections: dict[str, Any]) -> Path:
    return make_project(folder, mask=MASK, **{"rewrite": {"mode": "always", "rounds": 10}, **sections})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished run."""
    config = block_project(tmp_path_factory.mktemp("blocks"))
    run_chain(job_of(config))
    return config


def copied(finished: Path, folder: Path, **sections: dict[str, Any]) -> Job:
    """The same run in another folder, with other options."""
    shutil.copytree(finished.parent / "out", folder / "out")
    return job_of(block_project(folder, **sections))


def statuses(job: Job) -> dict[str, str]:
    return {result.stage: result.status for result in run_chain(job)}


@pytest.mark.slow
def test_the_engine_is_built_from_the_rewritten_file_and_validated_through_it(finished: Path) -> None:
    out = finished.parent / "out"
    rewrite = RewriteReport.read(out / "rewrite.json")
    assert rewrite.sparse_sha256 == sha256_file(out / "sparse.onnx")
    assert rewrite.rewritten_sha256 == sha256_file(out / "rewritten.onnx")
    assert {layer.form for layer in rewrite.layers} == {"gathered"}
    assert EngineArtifact.read(out / "sparse.engine.json").source_sha256 == rewrite.rewritten_sha256
    validation = ValidationReport.read(out / "validation.json")
    assert validation.verdict == "pass"
    verdicts = {check.name: check.verdict for check in validation.checks}
    assert verdicts["rewritten file"] == verdicts["weights of the sparse plan"] == "pass"
    assert {layer.runs_sparse for layer in validation.survival} == {True}
    # half of the weights of each masked layer are in the engine's file
    masks = read_mask_set(out / "masks.safetensors")
    assert {f"{layer}.weight" for layer in LAYERS} <= set(masks.layers)
    sizes = {layer.node.name: layer.weight.size for layer in weighted_layers(read_graph(out / "rewritten.onnx"))}
    kept = {layer.node: masks.layers[layer.weight_name].keep.sum() for layer in _baked(out)}
    assert {name: sizes[name] for name in kept} == kept
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What the rewrite of layers brought" in page and f"{PATTERN} in blocks of 4 output channels" in page


def _baked(out: Path) -> Any:
    from masksparse_deploy.core.artifacts.baking import BakeReport

    return BakeReport.read(out / "bake.json").layers


@pytest.mark.slow
def test_a_second_run_changes_nothing_and_damage_is_repaired(finished: Path, tmp_path: Path) -> None:
    job = copied(finished, tmp_path)
    assert [result.stage for result in run_chain(job)] == [stage.name for stage in STAGES]
    assert set(statuses(job).values()) == {"unchanged"}
    rewritten = job.out / "rewritten.onnx"
    whole = rewritten.read_bytes()
    rewritten.write_bytes(whole[:-1])
    # the digest of what is made again is the same, so that what follows stays
    assert [stage for stage, status in statuses(job).items() if status == "done"] in (["rewrite"], ["rewrite", "report"])
    assert rewritten.read_bytes() == whole


@pytest.mark.slow
def test_without_the_rewrite_the_sparse_file_is_deployed(finished: Path, tmp_path: Path) -> None:
    job = copied(finished, tmp_path, rewrite={"mode": "never"})
    done = [stage for stage, status in statuses(job).items() if status == "done"]
    assert done == ["rewrite", "build", "profile", "validate", "report"]
    assert not (job.out / "rewritten.onnx").exists()
    assert EngineArtifact.read(job.out / "sparse.engine.json").source_sha256 == sha256_file(job.out / "sparse.onnx")
    validation = ValidationReport.read(job.out / "validation.json")
    assert validation.verdict == "pass" and {layer.runs_sparse for layer in validation.survival} == {False}


@pytest.mark.slow
def test_the_certificate_is_about_the_sparse_file_and_other_code_confirms_it(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished.parent / "out"
    files = ["--dense", out / "dense.onnx", "--sparse", out / "sparse.onnx", "--data", finished.parent / "test.npz"]
    assert run(["certify", "--check", str(out / "certificate.json"), *map(str, files)]) == 0
    assert capsys.readouterr().out.endswith("0 wrong, 0 not checked; the certificate is verified\n")


@pytest.mark.slow
def test_the_commands_take_the_rewritten_file_one_by_one(finished: Path, tmp_path: Path) -> None:
    out = finished.parent / "out"
    names = ("dense", "sparse", "rewritten")
    files = {f"{name}-onnx": out / f"{name}.onnx" for name in names}
    engines = {f"{name}-engine": out / f"{name}.engine.json" for name in ("dense", "sparse")}
    others = {"certificate": out / "certificate.json", "data": finished.parent / "test.npz", "out": tmp_path / "v.json"}
    options = {**files, **engines, **others, "batch": 16, "threads": 1, "flip-rate": 1, "accuracy-drop-points": 100}
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    assert run(["validate", *words, "--rewrite-report", str(out / "rewrite.json")]) == 0
    checks = {check["name"]: check["verdict"] for check in json.loads((tmp_path / "v.json").read_text())["checks"]}
    assert checks["rewritten file"] == "pass"
    assert run(["validate", *words]) == 2


@pytest.mark.slow
def test_new_weights_go_under_the_same_blocks(finished: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    report = update(finished, moved(finished.parent, 0.02), new)
    old, masks = (read_mask_set(folder / "masks.safetensors") for folder in (finished.parent / "out", new))
    for name, mask in old.layers.items():
        np.testing.assert_array_equal(masks.layers[name].keep, mask.keep)
    assert {fit.pattern for fit in report.masks} == {PATTERN}
    # blocks of the largest magnitude, before and after
    assert all(0.9 < fit.norm <= 1 for fit in report.masks)
    assert RewriteReport.read(new / "rewrite.json").rewritten_sha256 == sha256_file(new / "rewritten.onnx")


def test_masks_of_n_of_m_are_not_timed(tmp_path: Path) -> None:
    config = make_project(tmp_path, mask={"method": "magnitude"})
    run_chain(job_of(config), until="rewrite")
    report = RewriteReport.read(tmp_path / "out" / "rewrite.json")
    assert (report.layers, report.rewritten_sha256, report.speedup) == ((), None, None)
    assert not (tmp_path / "out" / "rewritten.onnx").exists() and not (tmp_path / "out" / "rewrite_times.json").exists()
