"""Which layers become rows is decided by networks: both ends of a chain cost a transposition, not every layer in it."""

from functools import partial
from pathlib import Path
from typing import Literal

import onnx
import pytest

from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.config import EngineOptions, RewriteOptions
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.rewrite import forms
from masksparse_deploy.rewrite.rows.grouping import GroupCosts
from masksparse_deploy.rewrite.run import rewrite
from masksparse_deploy.rewrite.sites import find_sites
from masksparse_deploy.rewrite.surroundings import surrounded
from tests.rewrite.machine import FakeBackend
from tests.rewrite.rows.models import findings, residual_network


def rewrite_where(transposition_ms: float, folder: Path) -> RewriteReport:
    """On a machine where a convolution takes 1 ms, a matrix product 0.5 ms and a transposition so long."""
    prices = {"Conv": 1.0, "Gemm": 0.5, "Transpose": transposition_ms}

    def latency_s(model: onnx.ModelProto) -> float:
        return 1e-3 * sum(prices.get(node.op_type, 0.0) for node in model.graph.node)

    backend = FakeBackend(latency_s)
    onnx.save(residual_network(), folder / "sparse.onnx")
    return rewrite(
        folder / "sparse.onnx",
        RewriteOptions(rounds=10),
        EngineOptions(batch=1, threads=1),
        out=folder / "out",
        backend=backend,
        clock=backend.clock,
    )


def test_layers_that_lose_alone_are_taken_where_the_network_gains(tmp_path: Path) -> None:
    report = rewrite_where(0.6, tmp_path)
    # alone 1.0 + 0.5 + 2 * 0.6 ms in place of 2 ms
    assert [layer.times[1].median_ms for layer in report.layers] == pytest.approx([2.7] * 4)
    assert {layer.form for layer in report.layers} == {"rows"}
    # six convolutions and the classifier; then the stem, five products, the classifier and two transpositions
    assert report.speedup == pytest.approx(6.5 / (1 + 5 * 0.5 + 0.5 + 2 * 0.6))
    assert "the network is faster with it" in report.layers[0].reason
    assert findings(onnx.load(tmp_path / "sparse.onnx"), onnx.load(tmp_path / "out" / "rewritten.onnx")) == ()


def test_no_file_is_written_where_no_layer_pays(tmp_path: Path) -> None:
    report = rewrite_where(2.0, tmp_path)
    assert {layer.form for layer in report.layers} == {"dense"}
    assert all(layer.reason.startswith("not faster: 0.36x ") for layer in report.layers)
    assert report.rewritten_sha256 is None
    assert not (tmp_path / "out" / "rewritten.onnx").exists()


@pytest.mark.parametrize(("backend_name", "is_added"), [("onnxruntime", True), ("tensorrt", False)])
@pytest.mark.parametrize("mode", ["measured", "always"])
def test_products_are_added_only_where_the_runtime_does_so(
    backend_name: str, is_added: bool, mode: Literal["measured", "always"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT 8.6 would put them in place of what is there, without a word."""
    monkeypatch.setattr(forms, "GroupCosts", partial(GroupCosts, rows_of_weights=0, operators=0, gathered=0, added=0))
    backend = FakeBackend(lambda model: 1e-3 * sum(node.op_type in ("Conv", "Where") for node in model.graph.node) + 1e-4)
    backend.name = backend_name
    onnx.save(residual_network(), tmp_path / "sparse.onnx")
    options = RewriteOptions(rounds=10, mode=mode)
    sources = tmp_path / "sparse.onnx", options, EngineOptions(batch=1, threads=1)
    report = rewrite(*sources, out=tmp_path / "out", backend=backend, clock=backend.clock)
    assert {layer.form for layer in report.layers} == {"rows"}
    timed = [node.op_type for model in backend.built for node in model.graph.node]
    written = [node.op_type for node in onnx.load(tmp_path / "out" / "rewritten.onnx").graph.node]
    assert ("ScatterND" in timed + written) == is_added


def test_layers_that_do_the_same_are_timed_as_one() -> None:
    """The models that stand for two layers of one size, channels and mask differ in the values of weights alone."""
    graph = parse_graph(residual_network().SerializeToString(), name="sparse")
    sites = {site.name: site for site in find_sites(graph)}
    first, second = (surrounded(graph, sites[name], (8, 8, 8)) for name in ("a.conv1", "a.conv2"))
    assert first.SerializeToString() != second.SerializeToString()
    for model in (first, second):
        del model.graph.initializer[:]
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
