"""Files and certificates made so that something false would be verified."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.checker.findings import Report
from masksparse_deploy.checker.recursion import data_free_bound
from tests.checker.cases import GRID, SAMPLE_COUNT, Case, Models, check_content, make_case

RANDOM = np.random.default_rng(3)
MASKED = RANDOM.standard_normal((4, 4, 3, 3)).astype(np.float32)
KEEP = RANDOM.random(MASKED.shape) < 0.5
IMAGES = RANDOM.standard_normal((SAMPLE_COUNT, 4, 6, 6))


def models(nodes: list[onnx.NodeProto], constants: dict[str, Any], sparse: dict[str, Any]) -> Models:
    """A dense network from x to y, and its twin with other constants."""
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4, 6, 6)),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4)),
    ]
    made = []
    for given in (constants, {**constants, **sparse}):
        tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in given.items()]
        graph = helper.make_graph(nodes, "forged", values[:1], values[1:], tensors)
        made.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    return made[0], made[1]


def pooled(name: str) -> list[onnx.NodeProto]:
    return [helper.make_node("GlobalAveragePool", [name], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["y"])]


def convolutions(*names: str) -> Models:
    """Three convolutions of these names: a masked one, one that makes everything small, and one that makes it large again."""
    weights = ("masked", "small", "large")
    tensors = ["x", "first", "second", "third"]
    nodes = [
        helper.make_node("Conv", [tensors[index], weights[index]], [tensors[index + 1]], name=name)
        for index, name in enumerate(names)
    ]
    small, large = (np.float32(factor) * MASKED[:, :, :1, :1] for factor in (0.01, 100))
    constants = {"masked": MASKED, "small": small, "large": large}
    return models([*nodes, *pooled("third")], constants, {"masked": MASKED * KEEP})


def check(case: Case, folder: Path, *, with_images: bool = True) -> Report:
    report = check_content(case.content, case.sources(with_images=with_images), folder)
    assert isinstance(report, Report)
    return report


def test_nodes_of_one_name_have_norms_of_their_own(tmp_path: Path) -> None:
    case = make_case(tmp_path, convolutions("first", "same", "same"), IMAGES)
    report = check(case, tmp_path)
    assert report.answer == "verified", list(report.lines())
    sources = case.sources()
    run = sources.run(GRID, SAMPLE_COUNT)
    distances = np.linalg.norm(run.dense - run.sparse, axis=1)
    assert all((bounds >= distances).all() for bounds in run.bounds.values())
    radius = float(np.linalg.norm(IMAGES.reshape(SAMPLE_COUNT, -1), axis=1).max())
    assert data_free_bound(sources.setting(GRID), radius=radius) >= distances.max()


def test_masked_layers_of_one_name_are_no_list(tmp_path: Path) -> None:
    case = make_case(tmp_path, convolutions("first", "second", "third"), IMAGES)
    for path, name in ((case.dense, "large"), (case.sparse, "large")):
        model = onnx.load(path)
        for node in model.graph.node[:3]:
            node.name = "same"
        if path == case.sparse:
            tensor = next(entry for entry in model.graph.initializer if entry.name == name)
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), name))
        onnx.save(model, path)
    reasons = [finding.reason for finding in check(case, tmp_path).findings if finding.subject == "layers"]
    assert reasons == ["two layers have the same name"]


@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize("place", range(5))
def test_no_claim_is_verified_that_was_disproved_by_measuring(tmp_path: Path, place: int, with_images: bool) -> None:
    case = make_case(tmp_path, convolutions("first", "second", "third"), IMAGES)
    content = case.content
    claim = content["claims"][place]
    claim["bound"] = 0.9 * claim["measured"]
    report = check_content(content, case.sources(with_images=with_images), tmp_path)
    assert isinstance(report, Report)
    reasons = [finding.reason for finding in report.findings if finding.subject == f"claim {claim['name']}"]
    assert "less than what was measured" in reasons


def with_body(weight: np.ndarray[Any, Any]) -> Models:
    """A masked convolution, behind which an If reads a weight of the main graph that may differ, too."""
    shape = ("batch", 4, 4, 4)
    bodies = [
        helper.make_graph([helper.make_node(op, inputs, [name])], name, [], [helper.make_tensor_value_info(name, 1, shape)])
        for op, inputs, name in (("Conv", ["first", "inner"], "then"), ("Identity", ["first"], "else"))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "masked"], ["first"], name="first"),
        helper.make_node("If", ["condition"], ["chosen"], name="if", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    constants = {"masked": MASKED, "inner": MASKED[:, :, :1, :1], "condition": np.array(True)}
    return models([*nodes, *pooled("chosen")], constants, {"masked": MASKED * KEEP, "inner": weight})


def test_an_operator_with_a_body_has_no_rule(tmp_path: Path) -> None:
    case = make_case(tmp_path, with_body(MASKED[:, :, :1, :1]), IMAGES)
    assert case.content["unsupported"] == ["If"]
    report = check(case, tmp_path)
    assert report.answer == "verified", list(report.lines())


def test_a_weight_that_differs_and_is_read_in_a_body_is_not_passed_over(tmp_path: Path) -> None:
    """It is in no list of layers, and no bound covers it."""
    case = make_case(tmp_path, with_body(MASKED[:, :, :1, :1]), IMAGES)
    case.sparse.write_bytes(with_body(MASKED[:, :, 1:2, 1:2])[1].SerializeToString())
    reasons = [finding.reason for finding in check(case, tmp_path).findings if finding.what == "files"]
    assert reasons == [
        "they do not belong together: the weight 'inner', which a body of an If, Loop or Scan reads, has other values: no "
        "bound covers it"
    ]


def test_a_sum_of_several_tensors_has_a_rule(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "masked"], ["first"], name="first", pads=[1] * 4),
        helper.make_node("Sum", ["first", "x", "first", "offset"], ["sum"], name="sum"),
    ]
    constants = {"masked": MASKED, "offset": np.ones((4, 1, 1), np.float32)}
    sparse = {"masked": MASKED * KEEP, "offset": np.full((4, 1, 1), 0.9, np.float32)}
    case = make_case(tmp_path, models([*nodes, *pooled("sum")], constants, sparse), IMAGES)
    report = check(case, tmp_path)
    assert report.answer == "verified", list(report.lines())
