"""The benchmark of rows, on a small network in place of ResNet-18."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.graph.positions import position_masks
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.rewrite.forms import rewritten
from tests.rewrite.rows.models import Network
from tools import rows_benchmark


def small() -> onnx.ModelProto:
    net = Network(batch=1)
    x = net.add("Relu", [net.convolve("x", "layers.0.0.conv1", (3, 8))], "layers.0.0.conv1.relu")
    x = net.convolve(x, "layers.0.0.conv2", (8, 8))
    return net.model(net.add("GlobalAveragePool", [x], "pool"))


def test_masks_leave_out_their_share_and_hold_the_bias() -> None:
    masked = rows_benchmark.with_positions(small(), 0.25)
    found = position_masks(parse_graph(masked.SerializeToString(), name="masked"))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in masked.graph.initializer}
    assert {positions.layer for positions in found.values()} == {"layers.0.0.conv1", "layers.0.0.conv2"}
    for positions in found.values():
        assert positions.keep.mean() == 0.75
        np.testing.assert_array_equal(positions.constant, constants[f"{positions.layer}.bias"])


def test_shortcuts_are_masked_if_asked_for_and_layers_of_one_size_alike() -> None:
    net = Network(batch=1)
    first = net.convolve("x", "first", (3, 8), strides=[2, 2])
    shortcut = net.convolve("x", "shortcut", (3, 8), kernel_shape=[1, 1], pads=None, strides=[2, 2])
    model = net.model(net.add("Add", [net.convolve(first, "second", (8, 8)), shortcut], "sum"))
    for shortcuts, layers in ((False, {"first", "second"}), (True, {"first", "second", "shortcut"})):
        masked = rows_benchmark.with_positions(model, 0.25, shortcuts=shortcuts)
        found = position_masks(parse_graph(masked.SerializeToString(), name="masked"))
        assert {positions.layer for positions in found.values()} == layers
        assert len({positions.keep.tobytes() for positions in found.values()}) == 1


def test_a_run_is_kept_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows_benchmark, "resnet18", small)
    # the stage itself has tests of its own, and takes longer
    masked = rows_benchmark.with_positions(small(), 0.5)
    form = rows_benchmark.FORMS["rows"]
    chosen = rewritten(masked, {"layers.0.0.conv2": form})
    monkeypatch.setattr(rows_benchmark, "_chosen", lambda sparse, threads, clock: chosen)
    arguments = ["--out", str(tmp_path), "--rates", "0.5", "--threads", "1", "--shortcuts", "dense", "--rounds", "4"]
    assert rows_benchmark.main(arguments) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert [line.split(" | ")[:4] for line in lines[2:5]] == [
        ["| 50%", "dense", "1", "chosen"],
        ["| 50%", "dense", "1", "rows"],
        ["| 50%", "dense", "1", "rows, constants left out"],
    ]
    assert "| layers.0.0.conv2 | " in text
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text.removesuffix("\n")
    kept = json.loads((tmp_path / "rate_0.5_threads_1_shortcuts_dense.json").read_text(encoding="utf-8"))
    # 2 layers of half of 64 positions, 9 taps, 3 and 8 channels to 8
    assert kept["products"]["rows"] == 32 * 9 * (3 + 8) * 8
    assert kept["products"]["dense"] == 2 * kept["products"]["rows"]
    assert kept["products"]["chosen"] == 9 * (64 * 3 + 32 * 8) * 8
    monkeypatch.setattr(rows_benchmark, "resnet18", None)  # nothing is computed again
    assert rows_benchmark.main(arguments) == 0
    assert capsys.readouterr().out == text


def test_processor_time_is_for_one_thread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rows_benchmark.main(["--out", str(tmp_path), "--threads", "2", "--processor-time"])
    assert "--processor-time counts one thread: it needs --threads 1" in capsys.readouterr().err
