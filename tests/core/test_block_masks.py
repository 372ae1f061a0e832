import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask, MaskSet, read_mask_set

SHAPE = (8, 6, 3, 3)


def keep_of(text: str) -> npt.NDArray[np.bool_]:
    pattern = BlockPattern.parse(text)
    return pattern.expand(pattern.keep_largest(np.random.default_rng(0).random((SHAPE[0] // pattern.n, SHAPE[1]))), SHAPE)


def mask(text: str, keep: npt.NDArray[np.bool_] | None = None, axis: int = 1) -> LayerMask:
    pattern = BlockPattern.parse(text)
    return LayerMask(weight_name="w", keep=keep_of(text) if keep is None else keep, group_axis=axis, pattern=pattern)


@pytest.mark.parametrize("text", ["1x4@0.5", "1x4~0.34", "1x2@0.3/4"])
def test_a_mask_set_of_blocks_survives_the_disk(tmp_path: Path, text: str) -> None:
    written = MaskSet(layers={"w": mask(text)}, source_sha256="0" * 64, method="subp")
    written.write(tmp_path / "m.safetensors")
    read = read_mask_set(tmp_path / "m.safetensors")
    assert read.digest == written.digest
    assert read.layers["w"].pattern == BlockPattern.parse(text)
    assert not read.layers["w"].is_partial


def test_a_block_that_is_kept_in_part_is_found() -> None:
    keep = keep_of("1x4@0.5")
    row, column = np.argwhere(keep[:, :, 0, 0])[0]
    keep[row, column, 1, 1] = False
    with pytest.raises(
        ArtifactError, match=r"mask of w: 1 kernels are dropped, in whole or part, from blocks of 1x4@0\.5 that"
    ):
        mask("1x4@0.5", keep)


def test_another_n_is_found() -> None:
    """Blocks of 2 are no blocks of 4, and of 8 channels there are no blocks of 3."""
    with pytest.raises(ArtifactError, match=r"mask of w: \d+ kernels are dropped, in whole or part, from blocks of 1x4@0.5"):
        mask("1x4@0.5", keep_of("1x2@0.5"))
    with pytest.raises(
        ArtifactError, match=re.escape("shape (8, 6, 3, 3) and group axis 1 do not fit 1x3@0.5, whose blocks are")
    ):
        mask("1x3@0.5", np.ones(SHAPE, np.bool_))
    with pytest.raises(
        ArtifactError, match=re.escape("group axis 0 do not fit 1x4@0.5, whose blocks are 4 consecutive output")
    ):
        mask("1x4@0.5", axis=0)


def test_another_count_is_found() -> None:
    keep = keep_of("1x4@0.5")
    keep[:4] = True
    with pytest.raises(ArtifactError, match="1 of 2 groups of 4 output channels do not keep exactly 3 of 6 input channels, as"):
        mask("1x4@0.5", keep)
    with pytest.raises(ArtifactError, match=r"mask of w: it keeps 9 of 12 blocks, not 6, as 1x4~0\.5 says"):
        mask("1x4~0.5", keep)


def test_uniform_masks_of_the_same_density_only_pass_where_they_are_uniform() -> None:
    keep = np.zeros(SHAPE, np.bool_)
    keep[:4, :4], keep[4:, :2] = True, True
    assert mask("1x4~0.5", keep).keep.mean() == 0.5
    with pytest.raises(ArtifactError, match="2 of 2 groups of 4 output channels do not keep exactly 3 of 6"):
        mask("1x4@0.5", keep)


def test_blocks_are_not_padded() -> None:
    with pytest.raises(ArtifactError, match=r"mask of w: a 1x4@0\.5 mask is not padded, as it has no groups to fill"):
        mask("1x4@0.5").padded((8, 8, 3, 3))
