"""A new order of channels is folded into the weights: the ONNX file of the reordered network computes what it did."""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.core.masks import AxisPermutation
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.permutation.apply import permute
from masksparse_deploy.learn.permutation.find import find_permutations
from masksparse_deploy.learn.probe import probe_model
from samples.digits.model import digits_net
from samples.own_loop.run import small_network
from tests.models.cifar_resnet import resnet20
from tests.models.narrow_cnn import narrow_cnn
from tests.requirements import REPOSITORY

PATTERN = NMPattern(n=2, m=4)
Shape = tuple[int, int, int]


def digits() -> nn.Module:
    model = digits_net()
    model.load_state_dict(load_file(REPOSITORY / "samples/digits/model.safetensors"))
    return model


def random_resnet20() -> nn.Module:
    torch.manual_seed(0)
    return resnet20()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "digits": (digits, (1, 8, 8)),
    "own loop": (small_network, (3, 16, 16)),
    "narrow": (narrow_cnn, (3, 8, 8)),
    "resnet20": (random_resnet20, (3, 8, 8)),
}


def found_order(model: nn.Module, shape: Shape) -> tuple[AxisPermutation, ...]:
    layers = survey_layers(model, probe_model(model, shape), pattern=PATTERN, pad_channels=True).eligible
    permutations = find_permutations(model, layers, shape, PATTERN, seed=0)
    assert permutations
    return permutations


def outputs(data: bytes, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """What the file computes, in float64."""
    (result,) = evaluate(parse_graph(data, name="exported"), images).values()
    return result


def agrees(expected: npt.NDArray[np.floating], found: npt.NDArray[np.floating], roundoff: float) -> bool:
    """Whether outputs are the same but for the order of sums.

    In another order a sum of n terms differs by at most n * roundoff of the sum of magnitudes; the longest here has 64 * 9
    terms. Layer after layer these differences add up: 30 layers are more than any network here has, and 4 is room for
    magnitudes that cancel.
    """
    allowed = 30 * 4 * 576 * roundoff * np.abs(expected).max()
    return bool((np.abs(found - expected) <= allowed).all())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "resnet20" else name for name in NETWORKS]
)
def test_the_file_of_the_reordered_network_computes_the_same(name: str) -> None:
    make, shape = NETWORKS[name]
    model = make().eval()
    original = export_onnx(model, shape, opset=20)
    reordered = export_onnx(permute(model, found_order(model, shape)), shape, opset=20)
    assert original != reordered
    images = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    # Every weight is the same number at another place, so in float64 nothing but the order of sums is left.
    expected = outputs(original, images)
    assert agrees(expected, outputs(reordered, images), 2.0**-53)
    session = onnxruntime.InferenceSession(reordered, providers=["CPUExecutionProvider"])
    assert agrees(expected, session.run(None, {"images": images})[0], 2.0**-24)


def test_an_order_that_puts_two_channels_elsewhere_is_seen() -> None:
    make, shape = NETWORKS["narrow"]
    model = make()
    permutations = found_order(model, shape)
    reader = next(permutation for permutation in permutations if permutation.axis == 1)
    order = reader.order.copy()
    order[[0, -1]] = order[[-1, 0]]
    wrong = [dataclasses.replace(reader, order=order) if one is reader else one for one in permutations]
    images = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    expected = outputs(export_onnx(model, shape, opset=20), images)
    broken = outputs(export_onnx(permute(model, wrong), shape, opset=20), images)
    assert not agrees(expected, broken, 2.0**-53)
    assert not agrees(expected, broken, 2.0**-24)
