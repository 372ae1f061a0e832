import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.masks import fingerprint
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.augmentation import Augmentation, augment
from masksparse_deploy.learn.batch_norm import reestimate, running_statistics
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.reestimated import Reestimated
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.networks import labelled_by_network, shallow_net
from tests.models.tiny_cnn import example_images, tiny_cnn

PATTERN = NMPattern(n=2, m=4)


def test_the_statistics_are_those_of_the_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    model[0].num_batches_tracked.fill_(1000)  # training leaves such a count, which is no part of the new average
    images = example_images(64) * np.float32(2) + np.float32(1)
    found = reestimate(model, {}, images, batch_size=16)
    batches = images.reshape(4, 16, 3, 8, 8).astype(np.float64)
    # Float32 sums over 1,024 values a channel: relative error below 1024 * 2**-24 = 6e-5, in practice far less.
    np.testing.assert_allclose(found["0.running_mean"], batches.mean((0, 1, 3, 4)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["0.running_var"], batches.var((1, 3, 4), ddof=1).mean(0), rtol=1e-4)


def test_masked_weights_are_used_and_the_network_stays_as_it_was() -> None:
    model = tiny_cnn()
    before, modes, momenta = state_fingerprint(model), [m.training for m in model.modules()], model.bn.momentum
    images = example_images(32)
    zero = {"block.conv1.weight": torch.zeros_like(model.block.conv1.weight)}
    found = reestimate(model, zero, images, batch_size=16)
    assert set(found) == set(running_statistics(model))
    assert not found["block.bn1.running_mean"].any()
    assert not found["block.bn1.running_var"].any()
    assert reestimate(model, {}, images, batch_size=16)["block.bn1.running_var"].all()
    assert state_fingerprint(model) == before
    assert [m.training for m in model.modules()] == modes
    assert model.bn.momentum == momenta


def test_images_that_do_not_fill_a_batch_are_left_out() -> None:
    model, images = tiny_cnn(), example_images(40)
    full = reestimate(model, {}, images[:32], batch_size=16)
    ragged = reestimate(model, {}, images, batch_size=16)
    assert all(np.array_equal(full[name], ragged[name]) for name in full)
    assert reestimate(model, {}, images, batch_size=100)["bn.running_var"].all()


def test_without_batch_norm_there_is_nothing_to_estimate() -> None:
    assert reestimate(shallow_net(), {}, example_images(4), batch_size=4) == {}


def test_the_baseline_calibrates_the_masked_network_on_images_that_the_seed_draws() -> None:
    model, train = tiny_cnn(), labelled_by_network(96, seed=1)
    layers = survey_layers(model, probe_model(model, (3, 8, 8)), pattern=PATTERN).eligible

    def outcome(seed: int, how: Augmentation = "shift") -> Outcome:
        inner = Magnitude(pattern=PATTERN)
        method = Reestimated(inner=inner, calibration_count=32, batch_size=16, augment=how, seed=seed)
        return method.sparsify(model, layers, train)

    found = outcome(1)
    masked = {name: model.get_parameter(name) * torch.tensor(mask.keep) for name, mask in found.masks.items()}
    generator = np.random.default_rng(1)
    chosen = generator.permutation(96)[:32]
    shifted = augment(torch.from_numpy(train.images[chosen]), "shift", generator).numpy()
    expected = reestimate(model, masked, shifted, batch_size=16)
    assert fingerprint(found.statistics) == fingerprint(expected)
    assert fingerprint(outcome(1, "none").statistics) != fingerprint(expected)
    assert fingerprint(outcome(2).statistics) != fingerprint(expected)
