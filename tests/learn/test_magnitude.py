import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.transposable.solve import Solver
from tests.learn.networks import labelled_by_network
from tests.models.tiny_cnn import tiny_cnn

T24 = NMPattern(n=2, m=4, transposable=True)


def masks_of(model: nn.Module, sparsifier: Magnitude) -> dict[str, LayerMask]:
    layers = survey_layers(model, probe_model(model, (3, 8, 8)), pattern=sparsifier.pattern).eligible
    return dict(sparsifier.sparsify(model, layers, labelled_by_network(4, 1)).masks)


def test_transposable_masks_keep_two_of_four_along_both_axes_and_less_magnitude_than_free_ones() -> None:
    model = tiny_cnn()
    free = masks_of(model, Magnitude(pattern=NMPattern(n=2, m=4)))
    masks = masks_of(model, Magnitude(pattern=T24))
    assert list(masks) == list(free) == ["block.conv1.weight", "block.conv2.weight", "block.shortcut.0.weight"]
    for name, mask in masks.items():
        assert str(mask.pattern) == "T2:4"
        tiles = mask.keep.reshape(mask.keep.shape[0] // 4, 4, mask.keep.shape[1] // 4, 4, -1)
        assert (tiles.sum(1) == 2).all()
        assert (tiles.sum(3) == 2).all()
        weight = np.abs(model.get_parameter(name).detach().numpy()).astype(np.float64)
        assert 0.5 * weight.sum() < (weight * mask.keep).sum() < (weight * free[name].keep).sum()
        # W transposed is 2:4 along its own second axis.
        turned = torch.tensor(mask.keep).transpose(0, 1).numpy()
        assert NMPattern(n=2, m=4).count_violations(turned, group_axis=1) == 0


@pytest.mark.parametrize("solver", ["greedy", "two-approximation", "entropy"])
def test_approximations_give_masks_that_are_transposable_and_keep_no_more(solver: Solver) -> None:
    model = tiny_cnn()
    exact, found = masks_of(model, Magnitude(pattern=T24)), masks_of(model, Magnitude(pattern=T24, solver=solver))
    for name, mask in found.items():
        weight = np.abs(model.get_parameter(name).detach().numpy()).astype(np.float64)
        # Sums of float32 weights in float64: equal masks have equal sums.
        assert (weight * mask.keep).sum() <= (weight * exact[name].keep).sum()
