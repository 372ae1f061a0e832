"""Sums of tensors in rows: positions that are masked in all of them stay masked, and are not multiplied in what follows."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.rewrite.rows.grouping import WHOLE_WINDOWS
from tests.rewrite.rows.models import Network, findings, in_rows
from tests.rewrite.rows.test_transform import Array, assert_same


def masked_sum(keeps: Sequence[Array | None], last: Array, batch: int | str = 1) -> onnx.ModelProto:
    """Convolutions of one image with these masks, whose sum a masked convolution reads behind a Relu."""
    net = Network(batch=batch)
    x = net.add("Relu", [net.convolve("x", "stem", (3, 8))], "relu")
    total = net.convolve(x, "branch0", (8, 8), keeps[0])
    for index, keep in enumerate(keeps[1:], 1):
        total = net.add("Add", [total, net.convolve(x, f"branch{index}", (8, 8), keep)], f"add{index}")
    return net.model(net.convolve(net.add("Relu", [total], "sum.relu"), "last", (8, 4), last))


def masks(count: int, **options: float) -> list[Array]:
    net = Network(seed=3)
    return [net.mask(8, **options) for _ in range(count)]


def branches(model: onnx.ModelProto) -> list[str]:
    return [node.name.removesuffix(".positions") for node in model.graph.node if node.op_type == "Where"]


def multiplied(model: onnx.ModelProto) -> int:
    """Positions that windows of the last convolution read and multiply."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    gathers = [node for node in model.graph.node if node.op_type == "Gather" and node.name.startswith("last.")]
    return sum(stored[node.input[1]].size for node in gathers if "gather" in node.name)


def reached(own: Array, keep: Array) -> int:
    """Positions of `own` that 3x3 windows at kept positions read."""
    padded = np.pad(own, 1)
    return sum(int(padded[y : y + 8, x : x + 8][keep].sum()) for y in range(3) for x in range(3))


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_a_sum_of_layers_masked_alike_is_masked_so(batch: int | str) -> None:
    (keep,) = masks(1)
    model = masked_sum([keep, keep], keep, batch)
    rewritten = assert_same(model, branches(model), batch if isinstance(batch, int) else 3)
    assert multiplied(rewritten) == reached(keep, keep)


@pytest.mark.parametrize("count", [2, 3])
def test_only_what_is_masked_in_all_summands_is_left_out(count: int) -> None:
    keeps = masks(count, density=0.4)
    model = masked_sum(keeps, keeps[0])
    rewritten = assert_same(model, branches(model), 1)
    assert multiplied(rewritten) == reached(np.logical_or.reduce(keeps), keeps[0])
    assert reached(keeps[0], keeps[0]) < multiplied(rewritten) < reached(np.ones((8, 8), np.bool_), keeps[0])


def test_a_summand_without_a_mask_leaves_none() -> None:
    (keep,) = masks(1)
    model = masked_sum([keep, None], keep)
    rewritten = assert_same(model, branches(model), 1)
    assert multiplied(rewritten) == reached(np.ones((8, 8), np.bool_), keep)


def test_masks_that_complete_each_other_leave_none() -> None:
    (keep,) = masks(1)
    model = masked_sum([keep, ~keep], keep)
    rewritten = assert_same(model, branches(model), 1)
    assert multiplied(rewritten) == reached(np.ones((8, 8), np.bool_), keep)


@pytest.mark.parametrize("row", ["constant", "zeros", "kept"])
def test_a_summand_brought_into_another_order_wrongly_is_found(row: str) -> None:
    """Whole windows read constants and zeros too."""
    keeps = masks(2, density=0.4)
    model = masked_sum(keeps, keeps[0])
    rewritten = in_rows(model, branches(model), WHOLE_WINDOWS)
    assert findings(model, rewritten) == ()
    node = next(node for node in rewritten.graph.node if node.op_type == "Gather" and "spread" in node.name)
    stored = next(tensor for tensor in rewritten.graph.initializer if tensor.name == node.input[1])
    indices = np.array(numpy_helper.to_array(stored))
    place = {"constant": -2, "zeros": -1, "kept": 0}[row]
    indices[place] = indices[1]
    stored.CopyFrom(numpy_helper.from_array(indices, stored.name))
    assert findings(model, rewritten) != ()
