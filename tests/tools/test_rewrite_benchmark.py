import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.config import ProfileOptions
from masksparse_deploy.core.errors import MachineError
from tools import imagenet_networks, rewrite_benchmark
from tools.imagenet_networks import with_blocks
from tools.rewrite_layers import LayerTime, _by_layer, profile_layers
from tools.rewrite_runtimes import RUNTIMES
from tools.rewrite_tables import layer_table, why

SHAPE = (1, 3, 16, 16)
PATTERN = "1x16@0.5/16"
LAYERS = ("layers.0", "layers.1")


def small_network(seed: int = 0) -> onnx.ModelProto:
    """A stem, a 3x3 layer and a strided 1x1 layer."""
    network = imagenet_networks._Network(seed)
    x = network.relu(network.convolve("image", "stem", (3, 32), 3), "stem")
    x = network.relu(network.convolve(x, "layers.0", (32, 32), 3), "layers.0")
    x = network.relu(network.convolve(x, "layers.1", (32, 64), 1, stride=2), "layers.1")
    return network.finish(x, 64, "small")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (imagenet_networks, rewrite_benchmark):
        monkeypatch.setattr(module, "INPUT_SHAPE", SHAPE)
    monkeypatch.setattr(rewrite_benchmark, "NETWORKS", {"small": small_network})
    monkeypatch.setattr(rewrite_benchmark, "PROFILED_INFERENCES", 2)


def fake_runtime(milliseconds: Mapping[str, float]) -> Any:
    """A runtime in which the files take as long as told, twice as long in every second round."""

    def timed(contents: Mapping[str, bytes], image: Any, threads: int, options: ProfileOptions, clock: Any) -> Any:
        slower = np.arange(options.rounds)[:, None] % 2 + 1
        times = {name: np.full((options.rounds, 3), milliseconds[name]) * slower for name in contents}
        return times, {name: np.ones((1, 2), np.float32) for name in contents}, "1.0"

    return timed


TIMES = {"dense": 3.0, "zeros": 3.0, "gathered": 1.5, "unread left out": 1.2, "chosen": 1.0}


def run(out: Path, *more: str) -> int:
    always = ["--out", str(out), "--networks", "small", "--patterns", PATTERN, "--rounds", "10", *more]
    return rewrite_benchmark.main(always)


def test_tables_and_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rewrite_benchmark, "RUNTIMES", {"onnxruntime": fake_runtime(TIMES)})
    assert run(tmp_path, "--threads", "1") == 0
    printed = capsys.readouterr().out
    figures = "4.50 ms | 1.00x | 2.00x | 2.50x | **3.00x** [3.00, 3.00] | 3.00 to 3.00 |"
    assert f"| small | 1x16@0.5/16 | 1 | onnxruntime 1.0 | {figures}" in printed
    assert "### small, 1x16@0.5/16, 1 thread" in printed
    assert (tmp_path / "report.md").read_text() == printed
    (result,) = json.loads((tmp_path / "report.json").read_bytes())
    assert [layer["layer"] for layer in result["layers"]] == list(LAYERS)
    assert result["clock"] == "wall time"
    monkeypatch.setattr(rewrite_benchmark, "rewrite", None)  # what was chosen is not chosen again
    monkeypatch.setattr(rewrite_benchmark, "RUNTIMES", {"onnxruntime": None})
    assert run(tmp_path, "--threads", "1") == 0
    assert capsys.readouterr().out == printed
    monkeypatch.setattr(rewrite_benchmark, "RUNTIMES", {"onnxruntime": fake_runtime({**TIMES, "chosen": 2.0})})
    assert run(tmp_path, "--threads", "1", "--again") == 0
    assert "**1.50x** [1.50, 1.50]" in capsys.readouterr().out


def test_processor_time_is_for_one_thread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, "--processor-time", "--threads", "1", "2")
    assert "--processor-time adds up what all threads compute: it needs --threads 1" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_compute_the_same(runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="pip install 'masksparse-deploy[openvino]'")
    sparse = with_blocks(small_network(), BlockPattern.parse(PATTERN))
    contents = {"zeros": sparse.SerializeToString(), "gathered": rewrite_benchmark._always(sparse).SerializeToString()}
    image = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    options = ProfileOptions(rounds=10, inferences_per_round=1, warmup=1)
    ticks = iter(range(10**6))
    times, outputs, version = RUNTIMES[runtime](contents, image, 1, options, lambda: float(next(ticks)))
    assert version.split(".")[0].isdigit()
    assert {name: values.tolist() for name, values in times.items()} == dict.fromkeys(contents, [[1000.0]] * 10)
    reference = outputs["zeros"]
    assert reference.std() > 0
    # Sums of at most 32 * 9 products of float32 in another order, in two layers, and a classifier of 64: the bound of
    # accumulated rounding, n * 2^-24 each, times the ratio of sums of magnitudes to the result, which is below 10 here.
    np.testing.assert_allclose(outputs["gathered"], reference, rtol=0, atol=416 * 2.0**-24 * 10 * np.abs(reference).max())


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        MachineError, match=r"openvino is needed for timing networks with OpenVINO .*masksparse-deploy\[openvino\]"
    ):
        RUNTIMES["openvino"]({}, np.zeros(SHAPE, np.float32), 1, ProfileOptions(), lambda: 0.0)


def test_layers_are_profiled_where_they_are() -> None:
    sparse = with_blocks(small_network(), BlockPattern.parse(PATTERN))
    image = np.zeros(SHAPE, np.float32)
    found = profile_layers(rewrite_benchmark._always(sparse).SerializeToString(), LAYERS, image, threads=1, inferences=2)
    assert all(time.conv_ms > 0 and time.gather_ms > 0 for time in found.values())
    dense = profile_layers(sparse.SerializeToString(), LAYERS, image, threads=1, inferences=2)
    assert all(time.conv_ms > 0 and time.gather_ms == 0 for time in dense.values())


def test_times_go_to_the_layers_that_cause_them() -> None:
    nodes = [
        helper.make_node("Conv", ["image"], ["a"], name="stem"),
        helper.make_node("ReorderOutput", ["a"], ["b"], name="out", domain="com.microsoft.nchwc"),
        helper.make_node("Gather", ["b"], ["c"], name="one/channels"),
        helper.make_node("ReorderInput", ["c"], ["d"], name="in", domain="com.microsoft.nchwc"),
        helper.make_node("Conv", ["d"], ["e"], name="one.relu.out_nchwc"),
        helper.make_node("Gather", ["b"], ["f"], name="one_more/part0/channels"),
        helper.make_node("Conv", ["f"], ["g"], name="one_more/part0"),
        helper.make_node("Concat", ["g"], ["h"], name="one_more"),
        helper.make_node("Add", ["e", "h"], ["i"], name="one_more.add"),
    ]
    times = dict(zip((node.name for node in nodes), (64.0, 32.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 128.0), strict=True))
    assert _by_layer(times, nodes, ["one", "one_more"]) == {
        "one": LayerTime(conv_ms=2, gather_ms=8, reorder_ms=4 + 16),
        "one_more": LayerTime(conv_ms=0.5, gather_ms=1, reorder_ms=16, join_ms=0.25),
    }


LAYER = {
    "layer": "a",
    "weight": [64, 32, 1, 1],
    "output": [1, 64, 14, 14],
    "form": "gathered",
    "reason": "faster",
    "density": 0.5,
    "computed_density": 0.5,
    "dense_ms": 2.0,
    "conv_ms": 1.0,
    "gather_ms": 0.0,
    "reorder_ms": 0.0,
    "join_ms": 0.0,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "nearly ideal"),
        ({"gather_ms": 0.25, "reorder_ms": 0.75}, "reordering around the gather 38%, gathering 12%"),
        ({"conv_ms": 1.2, "join_ms": 0.05}, "arithmetic slower than the dense layer's 16%, joining parts 4%"),
        ({"density": 0.4, "join_ms": 0.25}, "computes 50% to keep 40%, joining parts 20%"),
        ({"form": "dense", "reason": "not faster: 0.90x alone"}, "not faster: 0.90x alone"),
    ],
)
def test_why_a_layer_is_not_ideal(changes: dict[str, Any], expected: str) -> None:
    assert why({**LAYER, **changes}) == expected


def test_layers_alike_are_one_row() -> None:
    other = {**LAYER, "layer": "b", "output": [1, 64, 7, 7]}
    layers = [LAYER, other, {**LAYER, "layer": "c", "conv_ms": 3.0}]
    rows = layer_table({"network": "n", "pattern": "p", "threads": 2, "layers": layers}).splitlines()
    assert rows[0] == "### n, p, 2 threads"
    assert rows[4] == (
        "| a and 1 alike | 1x1, 32 to 64 | 14x14 | gathered | 2.000 ms | 2.000 ms | 1.00x | 2.00x | arithmetic slower than the "
        "dense layer's 50% |"
    )
    assert rows[5].startswith("| b | 1x1, 32 to 64 | 7x7 |")
