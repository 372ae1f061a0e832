"""Certificates of many networks: each is verified, and each operator's rule holds against what is measured."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from masksparse_deploy.checker import activations
from masksparse_deploy.checker.findings import Report
from masksparse_deploy.checker.recursion import data_free_bound
from masksparse_deploy.checker.samples import HYBRID, NORMS, RESIDUALS
from tests.certify.networks import KINDS, random_images, random_pair
from tests.certify.test_run import small_network
from tests.checker.cases import SAMPLE_COUNT, Models, check_content, make_case


def verify(models: Models, folder: Path) -> Report:
    case = make_case(folder, models, random_images(SAMPLE_COUNT + 1).astype(np.float64))
    report = check_content(case.content, case.sources(), folder, seal=False)
    assert isinstance(report, Report)
    return report


@pytest.mark.parametrize("change", ["mask", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_is_verified_with_every_kind_of_layer(tmp_path: Path, kind: str, change: str) -> None:
    report = verify(random_pair([kind], seed=3, change=change), tmp_path)
    assert report.answer == "verified", list(report.lines())


def test_bounds_are_above_what_is_measured_for_deep_random_networks(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for seed in range(12):
        kinds = [str(kind) for kind in generator.choice(KINDS, 4)]
        images = random_images(SAMPLE_COUNT, seed).astype(np.float64)
        case = make_case(tmp_path, random_pair(kinds, seed, change="everything"), images)
        sources = case.sources()
        run = sources.run(8, SAMPLE_COUNT)
        measured = np.linalg.norm(run.dense - run.sparse, axis=1)
        radius = float(np.linalg.norm(case.images.images.reshape(SAMPLE_COUNT, -1).astype(np.float64), axis=1).max())
        assert (run.bounds[HYBRID] <= run.bounds[RESIDUALS] * (1 + 1e-12)).all()
        assert (run.bounds[RESIDUALS] <= run.bounds[NORMS] * (1 + 1e-12)).all()
        assert (measured <= run.bounds[HYBRID] * (1 + 1e-12)).all(), kinds
        assert measured.max() <= data_free_bound(sources.setting(8), radius=radius), kinds


def without_rule() -> Models:
    dense, sparse = small_network("Relu")
    for model in (dense, sparse):
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Exp"
    return dense, sparse


def test_an_operator_without_a_rule_leaves_the_layers(tmp_path: Path) -> None:
    report = verify(without_rule(), tmp_path)
    assert report.answer == "verified", list(report.lines())
    verified = {finding.subject for finding in report.findings if finding.what == "detail"}
    assert "claim end-to-end, hybrid" in verified


def test_an_operator_that_only_the_certificate_has_a_rule_for_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(activations._SLOPES, "Relu")  # type: ignore[attr-defined]
    report = verify(small_network("Relu"), tmp_path)
    assert (report.answer, report.exit_code) == ("not verifiable", 1)
    reasons = {finding.what: finding.reason for finding in report.findings if finding.status == "not checked"}
    assert reasons["bound"] == reasons["unsupported"] == "no independent rule for Relu"
    assert not any(finding.status == "wrong" for finding in report.findings)


def test_a_batch_size_that_the_file_fixes(tmp_path: Path) -> None:
    models = small_network("Relu")
    for model in models:
        for value in (*model.graph.input, *model.graph.output):
            dim = value.type.tensor_type.shape.dim[0]
            dim.Clear()
            dim.dim_value = 4
        onnx.checker.check_model(model)
    report = verify(models, tmp_path)
    assert report.answer == "verified", list(report.lines())


def test_an_image_size_that_the_file_leaves_open_needs_the_images(tmp_path: Path) -> None:
    models = small_network("Relu")
    for model in models:
        for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
            dim.Clear()
    case = make_case(tmp_path, models, random_images(SAMPLE_COUNT).astype(np.float64))
    report = check_content(case.content, case.sources(with_images=False), tmp_path, seal=False)
    assert isinstance(report, Report)
    assert report.answer == "verified except what needs the images", list(report.lines())
    assert "figures" in {finding.what for finding in report.findings if finding.needs_images}
    full = check_content(case.content, case.sources(), tmp_path, seal=False)
    assert isinstance(full, Report)
    assert full.answer == "verified", list(full.lines())
