import re

import pytest
import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.learn.fresh_weights import draw_fresh_weights
from masksparse_deploy.learn.model import state_fingerprint
from tests.models.tiny_cnn import TinyCnn, tiny_cnn


class Scaled(nn.Module):
    """A parameter of its own, which nothing draws."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.factor = nn.Parameter(torch.ones(2))


def drawn(seed: int) -> TinyCnn:
    model = tiny_cnn()
    draw_fresh_weights(model, seed)
    return model


def test_everything_is_drawn_anew_as_when_the_network_was_made() -> None:
    # Of seed 0 the network itself was made.
    before, after = tiny_cnn(), drawn(7)
    for name, parameter in after.named_parameters():
        if parameter.ndim > 1:
            assert (parameter != before.get_parameter(name)).all(), name
            # He's uniform distribution for a leaky slope of sqrt(5), as layers of torch have it: within 1 / sqrt(fan in).
            assert float(parameter.detach().abs().max()) <= parameter[0].numel() ** -0.5, name
    for module in after.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            assert (module.weight == 1).all() and (module.running_mean == 0).all() and (module.running_var == 1).all()


def test_the_seed_decides_and_the_callers_random_numbers_stay() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fingerprints = [state_fingerprint(drawn(seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_what_nothing_draws_is_refused() -> None:
    network = nn.Sequential(Scaled())
    before = state_fingerprint(network)
    message = "mask.initialization scratch: 0 (Scaled) holds the parameter factor and has no method reset_parameters() that"
    with pytest.raises(UsageError, match=re.escape(message)):
        draw_fresh_weights(network, 0)
    assert state_fingerprint(network) == before
