"""Certificates of many networks: each is verified, and each operator's rule holds against what is measured."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from masksparse_deploy.checker import activations
from masksparse_deploy.checker.findings import Report
from masksparse_deploy.checker.network import attributes_of
from masksparse_deploy.checker.operators import apply
from masksparse_deploy.checker.recursion import data_free_bound
from masksparse_deploy.checker.samples import HYBRID, NORMS, RESIDUALS
from masksparse_deploy.graph.model import Node
from masksparse_deploy.graph.nodes import apply_node
from tests.certify.networks import KINDS, MORE_KINDS, random_images, random_pair
from tests.certify.test_run import small_network
from tests.checker.cases import SAMPLE_COUNT, Models, check_content, make_case

# Layers that the certify stage bounds, and the checker does not: it says so.
WITHOUT_INDEPENDENT_RULE = (
    *("gelu by tanh", "softplus", "nearest", "linear", "split"),
    *("layer normalization", "instance normalization", "ceil average pool"),
)


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


@pytest.mark.parametrize("change", ["mask", "everything"])
@pytest.mark.parametrize("kind", MORE_KINDS)
def test_other_kinds_are_verified_or_named(tmp_path: Path, kind: str, change: str) -> None:
    report = verify(random_pair([kind], seed=3, change=change), tmp_path)
    assert not any(finding.status == "wrong" for finding in report.findings), list(report.lines())
    expected = "not verifiable" if kind in WITHOUT_INDEPENDENT_RULE else "verified"
    assert report.answer == expected, list(report.lines())
    for finding in report.findings:
        if kind in WITHOUT_INDEPENDENT_RULE and finding.what == "unsupported":
            assert finding.reason.startswith("no independent rule for ")


SLOPES = {
    **{op: {} for op in ("Abs", "Celu", "Erf", "Gelu", "HardSwish", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus")},
    **{"Softsign": {}, "Tanh": {}, "Elu": {"alpha": 1.5}, "LeakyRelu": {"alpha": -1.7}},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
}


@pytest.mark.parametrize("op", SLOPES)
def test_an_activation_is_computed_in_float64(op: str) -> None:
    """Else tight bounds of sound certificates would be called too small."""
    proto = onnx.helper.make_node(op, ["x"], ["y"], **SLOPES[op])
    node = Node(name="", op=op, domain="", inputs=("x",), outputs=("y",), attributes=attributes_of(proto), metadata={})
    x = np.linspace(-7, 7, 1001)
    np.testing.assert_allclose(apply(proto, [x], opset=20), apply_node(node, [x], batch=None), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pools_with_automatic_padding(op: str, auto_pad: str) -> None:
    """With the stride above the window, nothing is padded at all."""
    x = np.random.default_rng(0).standard_normal((2, 3, 7, 6))
    for kernel, strides in (([3, 3], [1, 2]), ([2, 4], [3, 1]), ([1, 2], [2, 3])):
        proto = onnx.helper.make_node(op, ["x"], ["y"], auto_pad=auto_pad, kernel_shape=kernel, strides=strides)
        node = Node(name="", op=op, domain="", inputs=("x",), outputs=("y",), attributes=attributes_of(proto), metadata={})
        np.testing.assert_allclose(apply(proto, [x], opset=20), apply_node(node, [x], batch=None), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("op", SLOPES)
def test_a_slope_is_the_largest_and_hardly_more(op: str) -> None:
    node = onnx.helper.make_node(op, ["x"], ["y"], **SLOPES[op])
    x = np.linspace(-12, 12, 240_001)
    steepest = float(np.abs(np.diff(apply(node, [x], opset=20)) / np.diff(x)).max())
    slope = activations.slope_of(node, {})
    assert slope is not None
    # quotients of float64 numbers that are 1e-4 apart are off by 1e-11, and 1e-4 is what the constants are rounded up by
    assert steepest - 1e-9 <= slope <= steepest + 1.1e-4


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (1.0, 3.0), (0.5, -2.0)])
def test_the_slope_of_a_hard_gate(alpha: float, beta: float) -> None:
    x = np.linspace(-30, 30, 600_001)
    steepest = float(np.abs(np.diff(x * np.clip(alpha * x + beta, 0, 1)) / np.diff(x)).max())
    assert steepest - 1e-9 <= activations.hard_gate_slope(alpha, beta) <= steepest * (1 + 1e-3)


def test_bounds_are_above_what_is_measured_for_deep_random_networks(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for seed in range(20):
        kinds = [str(kind) for kind in generator.choice(sorted({*KINDS, *MORE_KINDS} - {*WITHOUT_INDEPENDENT_RULE}), 4)]
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
