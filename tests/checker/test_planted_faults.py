"""Faults planted in the certify stage give certificates that are consistent in themselves, and the checker finds them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.certify import activations, changes, layers, recursion
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.checker.findings import Report
from masksparse_deploy.checker.network import read_network
from masksparse_deploy.checker.pair import Pair, structural_difference
from tests.certify.test_run import small_network
from tests.checker.cases import Models, biased_pair, check_content, make_case, random_images


def found_wrong(folder: Path, models: Models, shape: tuple[int, ...] = (3, 8, 8)) -> set[tuple[str, str]]:
    case = make_case(folder, models, random_images(shape=shape))
    report = check_content(case.content, case.sources(), folder, seal=False)
    assert isinstance(report, Report)
    return {(finding.subject.partition(" ")[0], finding.what) for finding in report.findings if finding.status == "wrong"}


def test_norms_that_are_a_per_mille_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = NormCache.convolution

    def smaller(self: NormCache, *arguments: Any, **geometry: Any) -> Any:
        bound = true(self, *arguments, **geometry)
        return replace(bound, value=0.999 * bound.value)

    monkeypatch.setattr(NormCache, "convolution", smaller)
    assert ("layer", "difference_norm") in found_wrong(tmp_path, biased_pair())


def test_a_forgotten_difference_of_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_bias_difference", lambda dense, sparse, positions, channels: 0.0)
    assert found_wrong(tmp_path, biased_pair()) == {("layer", "bias_difference")}


def test_what_was_changed_counted_as_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import masksparse_deploy.certify.data_free as data_free

    monkeypatch.setattr(data_free, "change_factor", lambda *arguments: 0.9 * changes.change_factor(*arguments))
    assert found_wrong(tmp_path, biased_pair()) == {("claim", "bound")}


def test_a_slope_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(activations._SLOPES, "Sigmoid", lambda node, graph: 0.24)  # type: ignore[index]
    assert ("claim", "bound") in found_wrong(tmp_path, small_network("Sigmoid"), (4, 7, 7))


def test_no_allowance_for_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than the slack by far, and still a bound: nothing is wrong with that."""
    monkeypatch.setattr(recursion, "ROUNDING", 1.0)
    assert found_wrong(tmp_path, small_network("Relu"), (4, 7, 7)) == set()


def with_branches(value: float) -> onnx.ModelProto:
    """A network that adds `value` in one branch of an If."""

    def branch(name: str, number: float) -> Any:
        constant = numpy_helper.from_array(np.array([number], np.float32), "number")
        node = helper.make_node("Constant", [], [name], value=constant)
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1,))])

    condition = numpy_helper.from_array(np.array(True), "condition")
    nodes = [
        helper.make_node("If", ["condition"], ["number"], then_branch=branch("a", value), else_branch=branch("b", 1.0)),
        helper.make_node("Add", ["x", "number"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("batch", 4)) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "branches", values[:1], values[1:], [condition])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(("value", "differs"), [(2.0, False), (2.5, True)])
def test_weights_in_bodies_must_be_the_same(tmp_path: Path, value: float, differs: bool) -> None:
    """No layer bound covers them."""
    for name, number in (("dense", 2.0), ("sparse", value)):
        (tmp_path / f"{name}.onnx").write_bytes(with_branches(number).SerializeToString())
    pair = Pair(dense=read_network(tmp_path / "dense.onnx"), sparse=read_network(tmp_path / "sparse.onnx"))
    assert (structural_difference(pair) is not None) == differs
