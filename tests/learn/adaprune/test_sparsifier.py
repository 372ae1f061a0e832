import dataclasses
import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.core.masks import MaskSet, fingerprint
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.adaprune import AdaPrune, gram, sparsifier
from masksparse_deploy.learn.adaprune.closed_form import reconstruction_error
from masksparse_deploy.learn.adaprune.gram import gram_matrices
from masksparse_deploy.learn.adaprune.iterative import inputs_of
from masksparse_deploy.learn.augmentation import augment
from masksparse_deploy.learn.eligibility import EligibleLayer, survey_layers
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.reestimated import Reestimated
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.networks import labelled_by_network
from tests.models.tiny_cnn import tiny_cnn

PATTERN = NMPattern(n=2, m=4)
ADAPRUNE = AdaPrune(pattern=PATTERN, calibration_count=64, batch_size=16, augment="none", seed=0)
TRAIN = labelled_by_network(96, seed=1)


def survey(model: nn.Module) -> tuple[EligibleLayer, ...]:
    return survey_layers(model, probe_model(model, (3, 8, 8)), pattern=PATTERN).eligible


def run(adaprune: AdaPrune, model: nn.Module | None = None) -> Outcome:
    model = model or tiny_cnn()
    return adaprune.sparsify(model, survey(model), TRAIN)


def lost(outcome: Outcome) -> dict[str, float]:
    """The squared change of every layer's outputs on the calibration images, relative to the outputs."""
    model = tiny_cnn()
    grams = gram_matrices(model, survey(model), ADAPRUNE.images(TRAIN), batch_size=16)
    shares = {}
    for name, matrix in grams.items():
        weight = model.get_parameter(f"{name}.weight").detach().double().flatten(1)
        kept = torch.tensor(outcome.masks[f"{name}.weight"].keep).flatten(1)
        new = torch.from_numpy(outcome.weights[f"{name}.weight"]).double().flatten(1) if outcome.weights else weight * kept
        shares[name] = reconstruction_error(matrix, weight, new) / reconstruction_error(matrix, weight, 0 * weight)
    return shares


def test_kept_weights_are_fitted_and_nothing_else_changes() -> None:
    model = tiny_cnn()
    before = state_fingerprint(model)
    found = run(ADAPRUNE, model)
    assert state_fingerprint(model) == before
    magnitude = Magnitude(pattern=PATTERN).sparsify(model, survey(model), TRAIN)
    assert {name: mask.digest for name, mask in found.masks.items()} == {n: m.digest for n, m in magnitude.masks.items()}
    assert found.weights.keys() == found.masks.keys()
    assert found.statistics == {}
    for name, weight in found.weights.items():
        assert weight.dtype == np.float32
        assert not weight[~found.masks[name].keep].any()
    # Its checks hold for what was found.
    MaskSet(layers=found.masks, source_sha256="0" * 64, method="adaprune", weights=found.weights)


def test_every_layer_comes_closer_to_its_dense_outputs() -> None:
    model = tiny_cnn()
    dropped, fitted = lost(Magnitude(pattern=PATTERN).sparsify(model, survey(model), TRAIN)), lost(run(ADAPRUNE))
    assert len(fitted) == 3
    assert all(fitted[name] < 0.9 * dropped[name] for name in fitted)


def test_gradient_descent_comes_close_to_the_closed_form() -> None:
    closed = lost(run(dataclasses.replace(ADAPRUNE, ridge=1e-9)))
    iterative = lost(run(dataclasses.replace(ADAPRUNE, reconstruction="iterative", steps=400)))
    for name, share in closed.items():
        # Weights in float32 lose a little of the minimum: relative 2**-24 of an output each, squared.
        assert share <= iterative[name] + 1e-12
        assert iterative[name] < 1.2 * share


def test_a_pattern_that_drops_nothing_leaves_the_weights() -> None:
    model = tiny_cnn()
    for name, weight in run(dataclasses.replace(ADAPRUNE, pattern=NMPattern(n=4, m=4)), model).weights.items():
        np.testing.assert_array_equal(weight, model.get_parameter(name).detach().numpy())


@pytest.mark.parametrize("reconstruction", ["closed-form", "iterative"])
def test_the_same_seed_gives_the_same_bytes(reconstruction: str) -> None:
    def digest(seed: int) -> str:
        changes = {"reconstruction": reconstruction, "steps": 2, "augment": "shift-mirror", "seed": seed}
        return fingerprint(run(dataclasses.replace(ADAPRUNE, **changes)).weights)

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


@pytest.mark.parametrize("reconstruction", ["closed-form", "iterative"])
def test_transposable_masks_are_fitted_alike(reconstruction: str) -> None:
    pattern = dataclasses.replace(PATTERN, transposable=True)
    found = run(dataclasses.replace(ADAPRUNE, pattern=pattern, reconstruction=reconstruction, steps=3))
    model = tiny_cnn()
    dropped = lost(Magnitude(pattern=pattern).sparsify(model, survey(model), TRAIN))
    assert all(pattern.count_violations(weight != 0, group_axis=1) == 0 for weight in found.weights.values())
    if reconstruction == "closed-form":
        assert all(share < dropped[name] for name, share in lost(found).items())


def test_passes_through_the_network_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    together = run(ADAPRUNE)
    monkeypatch.setattr(sparsifier, "_GRAM_BYTES", 1)
    assert fingerprint(run(ADAPRUNE).weights) == fingerprint(together.weights)


def test_batch_norm_is_estimated_on_the_same_images_after_it() -> None:
    model = tiny_cnn()
    adaprune = dataclasses.replace(ADAPRUNE, augment="shift-mirror")
    inner = Reestimated(inner=adaprune, calibration_count=64, batch_size=16, augment="shift-mirror", seed=0)
    found = inner.sparsify(model, survey(model), TRAIN)
    assert fingerprint(found.weights) == fingerprint(run(adaprune).weights)
    assert "block.bn1.running_mean" in found.statistics
    generator = np.random.default_rng(0)
    chosen = generator.permutation(len(TRAIN))[:64]
    expected = augment(torch.from_numpy(TRAIN.images[chosen]), "shift-mirror", generator)
    np.testing.assert_array_equal(adaprune.images(TRAIN), expected.numpy())


def live_bytes() -> int:
    """The storage of all tensors that Python knows."""
    storages = {}
    for value in gc.get_objects():
        if type(value) is torch.Tensor:
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(storages.values())


class Peak:
    """The most that is held at any call of progress."""

    def __init__(self) -> None:
        self.most_bytes = 0

    def __call__(self, description: str, done: int, total: int) -> None:
        self.most_bytes = max(self.most_bytes, live_bytes())


@pytest.fixture
def peak() -> Iterator[Peak]:
    """Beyond what was held before: the collector overlooks it meanwhile, which also saves looking at it at every call."""
    gc.collect()
    gc.freeze()
    yield Peak()
    gc.unfreeze()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gram, "_PATCH_VALUES", 2**10)
    yield


# Of 64 images, in float32: block.conv1 receives 8 x 8 x 8 values, block.conv2 16 x 4 x 4, the shortcut 8 x 8 x 8.
LARGEST_CACHE = 64 * 512 * 4
ALL_CACHES = LARGEST_CACHE + 64 * 256 * 4 + LARGEST_CACHE


@pytest.mark.usefixtures("small_parts")
def test_the_closed_form_keeps_no_activations(peak: Peak) -> None:
    run(dataclasses.replace(ADAPRUNE, batch_size=4, progress=peak))
    # Images (64 x 192 values), Gram matrices of 72, 144 and 8 inputs in float64, and a batch on its way.
    gram_bytes = 8 * (72**2 + 144**2 + 8**2)
    assert gram_bytes <= peak.most_bytes <= gram_bytes + 64 * 192 * 4 + LARGEST_CACHE // 4


def test_the_iterative_form_caches_one_layer_at_a_time(peak: Peak) -> None:
    run(dataclasses.replace(ADAPRUNE, batch_size=16, reconstruction="iterative", steps=1, progress=peak))
    assert LARGEST_CACHE <= peak.most_bytes <= 1.6 * LARGEST_CACHE < ALL_CACHES


def test_more_than_one_cache_would_be_noticed(monkeypatch: pytest.MonkeyPatch, peak: Peak) -> None:
    held = []

    def hoarding(*arguments: object, **named: object) -> list[torch.Tensor]:
        held.append(inputs_of(*arguments, **named))
        return held[-1]

    monkeypatch.setattr(sparsifier, "inputs_of", hoarding)
    run(dataclasses.replace(ADAPRUNE, batch_size=16, reconstruction="iterative", steps=1, progress=peak))
    assert peak.most_bytes > 1.6 * LARGEST_CACHE
