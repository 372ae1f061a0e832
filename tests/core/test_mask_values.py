"""Mask sets with new weights and statistics: what they hold, and what they refuse."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask, MaskSet, read_mask_set
from masksparse_deploy.core.patterns import NMPattern

PATTERN = NMPattern(n=1, m=2, transposable=True)
KEEP = np.tile(np.eye(2, dtype=np.bool_), (2, 2))
MASK = LayerMask(weight_name="fc.weight", keep=KEEP, group_axis=1, pattern=PATTERN)


def mask_set(weight: np.ndarray | None = None, variance: np.ndarray | None = None) -> MaskSet:
    return MaskSet(
        layers={"fc.weight": MASK},
        source_sha256="0" * 64,
        method="adaprune",
        statistics={} if variance is None else {"bn.running_var": variance},
        weights={} if weight is None else {"fc.weight": weight, "fc.bias": np.ones(4, np.float32)},
    )


def changed(place: tuple[int, int], value: float) -> np.ndarray:
    weight = KEEP.astype(np.float32)
    weight[place] = value
    return weight


def test_new_weights_survive_the_disk_and_count_in_the_digest(tmp_path: Path) -> None:
    written = mask_set(changed((0, 0), -3.5))
    written.write(tmp_path / "m.safetensors")
    read = read_mask_set(tmp_path / "m.safetensors")
    assert read.weights.keys() == {"fc.weight", "fc.bias"}
    np.testing.assert_array_equal(read.weights["fc.weight"], changed((0, 0), -3.5))
    assert not read.weights["fc.weight"].flags.writeable
    assert len({mask_set().digest, mask_set(changed((0, 0), -3.5)).digest, mask_set(changed((0, 0), 3.5)).digest}) == 3
    assert read.layers["fc.weight"].pattern == PATTERN


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones((4, 2), np.float32), "new weight of fc.weight: its shape is (4, 2), that of its mask (4, 4)"),
        (changed((0, 1), 0.5), "new weight of fc.weight: 1 values that the mask drops are not 0"),
        (changed((0, 0), np.nan), "new weight fc.weight: 1 of 16 values are NaN or infinite"),
        (changed((3, 3), -np.inf), "new weight fc.weight: 1 of 16 values are NaN or infinite"),
        (KEEP.astype(np.float64), "new weight fc.weight: its values are float64, not float32"),
        (KEEP.astype(np.int8), "new weight fc.weight: its values are int8, not float32"),
    ],
)
def test_weights_that_no_layer_can_take_are_refused(weight: np.ndarray, message: str) -> None:
    with pytest.raises(ArtifactError, match=f"^{re.escape(message)}$"):
        mask_set(weight)


def test_statistics_are_finite_and_float32() -> None:
    with pytest.raises(ArtifactError, match=r"^batch-norm statistic bn\.running_var: 1 of 2 values are NaN or infinite$"):
        mask_set(variance=np.array([1, np.nan], np.float32))
    with pytest.raises(ArtifactError, match=r"^batch-norm statistic bn\.running_var: its values are float16, not float32$"):
        mask_set(variance=np.ones(2, np.float16))


def test_a_file_with_such_weights_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    mask_set(changed((0, 0), 2.0)).write(path)
    content = path.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    path.write_bytes(save({**load(content), "weights/fc.weight": changed((0, 0), np.inf)}, metadata=metadata))
    with pytest.raises(ArtifactError, match=r"is damaged \(new weight fc\.weight: 1 of 16 values are NaN or infinite\)"):
        read_mask_set(path)
