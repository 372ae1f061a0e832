"""Baking ONNX files of any origin: what is refused."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from masksparse_deploy.bake.from_file import bake_file
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, MasksparseError, OutputError, UsageError
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.masks import AxisPermutation, MaskSet
from tests.bake.baking import bake
from tests.bake.file_models import (
    mask_of,
    mask_set,
    rich_masks,
    rich_model,
    save_external,
    values,
)
from tests.models.positions import random_positions


def test_masks_that_match_nothing_or_half(tmp_path: Path) -> None:
    stray = mask_of("layer9.weight", values(8, 8), 1)
    with pytest.raises(ArtifactError, match=r"1 of 1 masks find no weight of their name in .*in\.onnx \(layer9\.weight\)"):
        bake(rich_model(), mask_set(stray), tmp_path)
    with pytest.raises(ArtifactError, match="1 of 3 masks find no weight"):
        bake(rich_model(), mask_set(*rich_masks().layers.values(), stray), tmp_path)
    assert not (tmp_path / "out").exists()


def test_masks_of_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has shape \(4, 12\), but the weight in the ONNX graph has \(4, 8\)"):
        bake(rich_model(), mask_set(mask_of("fc.weight", values(4, 12), 1)), tmp_path)


def test_masks_that_need_the_pytorch_model(tmp_path: Path) -> None:
    layers = rich_masks().layers
    order = AxisPermutation(name="conv.weight", axis=1, order=np.arange(8))
    for masks, what in (
        (MaskSet(layers=layers, source_sha256="0" * 64, method="m", permutations=(order,)), "permutations"),
        (MaskSet(layers=layers, source_sha256="0" * 64, method="m", statistics={"a": values(2)}), "batch-norm statistics"),
        (MaskSet(layers=layers, source_sha256="0" * 64, method="m", weights={"a": values(2)}), "new weights"),
        (
            MaskSet(layers=layers, source_sha256="0" * 64, method="m", statistics={"a": values(2)}, weights={"b": values(2)}),
            "batch-norm statistics and new weights",
        ),
        (
            MaskSet(layers=layers, source_sha256="0" * 64, method="m", positions=random_positions({"conv": (4, 4)})),
            "masks of positions",
        ),
    ):
        with pytest.raises(UsageError, match=f"brings {what} of the PyTorch model.*--factory and --weights"):
            bake(rich_model(), masks, tmp_path)


def test_the_input_is_not_overwritten(tmp_path: Path) -> None:
    onnx.save(rich_model(), tmp_path / "dense.onnx")
    before = sha256_file(tmp_path / "dense.onnx")
    with pytest.raises(UsageError, match=r"dense\.onnx would be overwritten by what is made from it; choose another"):
        bake_file(tmp_path / "dense.onnx", rich_masks(), BakeOptions(), out=tmp_path)
    assert sha256_file(tmp_path / "dense.onnx") == before
    onnx.save(rich_model(), tmp_path / "net.onnx")
    bake_file(tmp_path / "net.onnx", rich_masks(), BakeOptions(), out=tmp_path)  # beside the input is fine


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(OutputError, match="out cannot be written"):
        bake(rich_model(), rich_masks(), tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        bake(rich_model(), rich_masks(), tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_damaged_files(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(rich_model().SerializeToString()[:kept])
    with pytest.raises(MasksparseError, match=r"in\.onnx"):
        bake_file(path, rich_masks(), BakeOptions(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "short", "outside"])
def test_damaged_data_files(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "in" / "net.onnx"
    save_external(rich_model(), path, {"conv.weight": "../conv.bin" if damage == "outside" else "conv.bin"})
    if damage == "missing":
        (path.parent / "conv.bin").unlink()
    elif damage == "short":
        os.truncate(path.parent / "conv.bin", 100)
    with pytest.raises(MasksparseError, match=r"conv\.(bin|weight)"):
        bake_file(path, rich_masks(), BakeOptions(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
