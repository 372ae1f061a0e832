"""1xN masks: the bound of what was removed holds for any mask, and the checker agrees."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.graph.annotations import PATTERN
from tests.certify.masked import with_random_positions
from tests.certify.networks import random_images, random_pair
from tests.checker.cases import SAMPLE_COUNT, check_content, make_case


def with_blocks(model: onnx.ModelProto, pattern: BlockPattern, seed: int) -> onnx.ModelProto:
    """A copy whose convolutions keep random blocks, as many in every group as the pattern says."""
    copy, generator = onnx.ModelProto(), np.random.default_rng(seed)
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        kernel = numpy_helper.to_array(tensor)
        if kernel.ndim == 4 and kernel.shape[1] % 4 == 0:
            keep = pattern.expand(_blocks(kernel, pattern, generator), kernel.shape)
            assert pattern.count_violations(keep) == 0
            tensor.CopyFrom(numpy_helper.from_array(np.where(keep, kernel, np.float32(0)), tensor.name))
            for node in copy.graph.node:
                if tensor.name in node.input:
                    node.metadata_props.add(key=PATTERN, value=str(pattern))
    return copy


def _blocks(kernel: npt.NDArray[np.float32], pattern: BlockPattern, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    groups, channels = kernel.shape[0] // pattern.n, kernel.shape[1]
    ranks = generator.random((groups, channels)).argsort(axis=1).argsort(axis=1)
    return np.asarray(ranks < pattern.kept_channels(channels))


@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize("kinds", [["conv"], ["strided conv", "Relu"], ["residual"]], ids=" ".join)
def test_certificates_of_block_masks_hold_and_are_verified(tmp_path: Path, kinds: list[str], with_positions: bool) -> None:
    dense, _ = random_pair(kinds, 2, change="nothing")
    sparse = with_blocks(dense, BlockPattern.parse("1x2@0.5"), 3)
    if with_positions:
        sparse = with_random_positions(sparse, 4)
    images = random_images(SAMPLE_COUNT + 1).astype(np.float64)
    case = make_case(tmp_path, (dense, sparse), images)
    content = case.content
    assert all(layer["removed_norm"] == layer["difference_norm"] > 0 for layer in content["layers"])
    assert len(content["layers"]) == sum(node.op_type == "Conv" for node in dense.graph.node)
    # the largest bound of each claim is above the largest measured distance
    assert all(claim["bound"] >= claim["measured"] > 0 for claim in content["claims"])
    report = check_content(content, case.sources(), tmp_path, seal=False)
    assert [finding for finding in getattr(report, "findings", ["damaged"]) if finding.status != "verified"] == []
