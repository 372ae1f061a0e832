from pathlib import Path

import onnx

from tests.models.make_int8 import int8_images, int8_pair
from tools import rounding_tightness


def test_layers_are_compared_and_timed(tmp_path: Path) -> None:
    for name, model in zip(("dense", "sparse"), int8_pair(signed=False), strict=True):
        onnx.save(model, tmp_path / f"{name}.onnx")
    name, kernels, within, largest, tightness, *_ = (
        rounding_tightness.row("INT8", tmp_path, int8_images()).strip("| ").split(" | ")
    )
    assert (name, kernels, within) == ("INT8", "2 int8, 1 int8 in fp32", "3 of 3")
    assert 0.98 < float(largest) <= 1 < float(tightness)
