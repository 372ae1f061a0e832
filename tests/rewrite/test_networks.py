"""The last word is the networks': with or without channels that nobody reads, and nothing that was timed is forgotten."""

from pathlib import Path

import onnx
import pytest

from masksparse_deploy.core.artifacts.rewriting import FewerOutputs
from masksparse_deploy.core.config import RewriteOptions
from masksparse_deploy.graph.annotations import HELD_CHANNELS
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.rewrite import run as stage
from masksparse_deploy.rewrite.run import rewrite
from masksparse_deploy.rewrite.verify import differences
from tests.rewrite.blocks.test_unread import chain
from tests.rewrite.machine import FakeBackend, convolutions, is_small
from tests.rewrite.models import assert_same_function, residual_blocks
from tests.rewrite.test_run import ENGINE, HALF, by_name, grouped_is, rewrite_with


def by_weights(price_of_fewer_ms: float, model: onnx.ModelProto) -> float:
    """A microsecond for every weight; and a price of computing fewer channels."""
    weights = sum(onnx.numpy_helper.to_array(tensor).size for tensor in model.graph.initializer if len(tensor.dims) == 4)
    has_fewer = any(entry.key == HELD_CHANNELS for node in model.graph.node for entry in node.metadata_props)
    return 1e-6 * weights + 1e-3 * price_of_fewer_ms * has_fewer


@pytest.fixture
def block_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "channel_block", lambda: 2)


@pytest.mark.usefixtures("block_of_two")
@pytest.mark.parametrize("mode", ["measured", "always"])
def test_what_nobody_reads_is_left_out_where_the_network_is_faster(tmp_path: Path, mode: str) -> None:
    before = chain([[0, 2], [5, 7]])
    report, _ = rewrite_with(lambda model: by_weights(0, model), tmp_path, before, mode=mode)
    assert report.fewer_outputs == (FewerOutputs(node="conv1", output_channels=8, computed_channels=4),)
    layers = by_name(report)
    # two of four input channels, half of the output channels
    assert (layers["conv1"].density, layers["conv1"].computed_density) == (0.5, 0.25)
    assert layers["conv1"].reason.endswith("; 4 output channels are left out that nobody reads")
    assert layers["conv2"].computed_density == 0.25 and "left out" not in layers["conv2"].reason
    weights = 9 * (8 * 4 + 6 * 8), 9 * (4 * 2 + 6 * 2)
    assert report.speedup == pytest.approx(weights[0] / weights[1])
    written = tmp_path / "out" / "rewritten.onnx"
    assert differences(read_graph(tmp_path / "sparse.onnx"), read_graph(written)) == ()
    assert_same_function(before, onnx.load(written))


@pytest.mark.usefixtures("block_of_two")
def test_all_channels_are_computed_where_that_is_faster(tmp_path: Path) -> None:
    report, _ = rewrite_with(lambda model: by_weights(0.3, model), tmp_path, chain([[0, 2], [5, 7]]))
    assert report.fewer_outputs == () and {layer.form for layer in report.layers} == {"gathered"}
    assert by_name(report)["conv1"].computed_density == 0.5


def test_a_network_that_was_disturbed_once_is_timed_again(tmp_path: Path) -> None:
    """The first time that all layers are gathered the machine does something else."""
    backend: FakeBackend

    def latency_s(model: onnx.ModelProto) -> float:
        built = sum(not is_small(other) for other in backend.built)
        disturbed = not is_small(model) and max(convolutions(model).values()) > 1 and built <= 2
        return grouped_is(0.2)(model) + (20e-3 if disturbed else 0.0)

    backend = FakeBackend(latency_s)
    onnx.save(residual_blocks(HALF), tmp_path / "sparse.onnx")
    report = rewrite(tmp_path / "sparse.onnx", RewriteOptions(), ENGINE, out=tmp_path, backend=backend, clock=backend.clock)
    assert {layer.form for layer in report.layers} == {"gathered"}
    assert report.speedup == pytest.approx(4 / 1.6)
