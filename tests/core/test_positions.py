"""Masks of positions as values, and in the file of a mask set."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load, save

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import MaskSet, read_mask_set
from masksparse_deploy.core.positions import PositionMask
from tests.core.test_masks import layer_mask

KEEP = np.array([[True, False, True], [False, True, True]])


def position_mask(layer: str = "conv1", keep: npt.NDArray[Any] = KEEP) -> PositionMask:
    return PositionMask(layer=layer, keep=keep)


def mask_set(**changes: Any) -> MaskSet:
    """A set with masks of weights and of positions."""
    values: dict[str, Any] = {
        "layers": {"a.weight": layer_mask("a.weight")},
        "source_sha256": "0" * 64,
        "method": "sparse-training",
        "positions": {name: position_mask(name) for name in ("conv1", "blocks.0.conv2")},
    }
    return MaskSet(**{**values, **changes})


def test_density_counts_what_is_computed() -> None:
    assert position_mask().density == pytest.approx(4 / 6)


def test_keep_is_a_read_only_copy() -> None:
    source = KEEP.copy()
    mask = position_mask(keep=source)
    source[:] = True
    assert not mask.keep.all()
    with pytest.raises(ValueError, match="read-only"):
        mask.keep[0, 0] = False


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (KEEP.astype(np.float32), r"float32 \(2, 3\), not bool \(height, width\)"),
        (KEEP[None], r"bool \(1, 2, 3\), not bool \(height, width\)"),
        (np.zeros((2, 3), dtype=np.bool_), r"it keeps no position of \(2, 3\)"),
    ],
)
def test_a_mask_that_is_none_is_refused(keep: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=f"position mask of conv1: {message}"):
        position_mask(keep=keep)


def test_the_digest_tells_layer_shape_and_content() -> None:
    digests = {
        position_mask().digest,
        position_mask("conv2").digest,
        position_mask(keep=KEEP.reshape(3, 2)).digest,
        position_mask(keep=~KEEP).digest,
    }
    assert len(digests) == 4
    assert position_mask(keep=KEEP.copy(order="F")).digest == position_mask().digest


def test_a_mask_set_with_positions_survives_the_disk(tmp_path: Path) -> None:
    written = mask_set()
    written.write(tmp_path / "m.safetensors")
    read = read_mask_set(tmp_path / "m.safetensors")

    assert read.digest == written.digest
    assert read.to_bytes() == written.to_bytes()
    assert sorted(read.positions) == ["blocks.0.conv2", "conv1"]
    for name, mask in read.positions.items():
        assert mask.layer == name
        np.testing.assert_array_equal(mask.keep, KEEP)


def test_the_identity_of_a_set_sees_its_positions() -> None:
    one = mask_set(positions={"conv1": position_mask()})
    other = mask_set(positions={"conv1": position_mask(keep=~KEEP)})
    assert len({mask_set().digest, mask_set(positions={}).digest, one.digest, other.digest}) == 4
    backwards = dict(reversed(list(mask_set().positions.items())))
    assert mask_set(positions=backwards).digest == mask_set().digest


def test_padding_keeps_the_positions() -> None:
    masks = mask_set()
    mask = masks.layers["a.weight"]
    padded = masks.padded({"a.weight": mask.padded((8, 8, 3, 3))})
    assert padded.positions == masks.positions
    assert padded.digest == masks.digest


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({"conv1": position_mask("conv2")}, "position mask of conv1: it says that it is of conv2"),
        ({"conv1": position_mask(keep=np.ones((2, 3), dtype=np.bool_))}, r"it drops none of \(2, 3\) positions; leave it out"),
    ],
)
def test_a_set_refuses_masks_that_make_no_sense(positions: dict[str, PositionMask], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        mask_set(positions=positions)


def test_a_changed_position_in_the_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    data = mask_set().to_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tensors = load(data)
    tensors["positions/conv1"] = ~KEEP
    path.write_bytes(save(tensors, metadata=metadata))
    with pytest.raises(ArtifactError, match="changed after it was written"):
        read_mask_set(path)

    tensors["positions/conv1"] = KEEP.astype(np.float32)
    path.write_bytes(save(tensors, metadata=metadata))
    with pytest.raises(ArtifactError, match=r"damaged \(position mask of conv1: float32"):
        read_mask_set(path)


def test_sets_are_frozen() -> None:
    with pytest.raises(TypeError):
        mask_set().positions["other"] = position_mask()  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        mask_set().positions = {}  # type: ignore[misc]
