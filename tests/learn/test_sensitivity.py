import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional

from masksparse_deploy.core.artifacts.selection import Measured
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn import sensitivity
from masksparse_deploy.learn.batch_norm import reestimate
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.sensitivity import Meter, mean_divergence
from tests.learn.networks import labelled_by_network
from tests.learn.selection_networks import other_code, uneven_net
from tests.models.tiny_cnn import example_images, tiny_cnn

LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-50, 50, width=32))
MASK = MaskOptions(batch_size=32, calibration_count=64)


def labelled(model: torch.nn.Module, count: int, seed: int) -> Samples:
    images = example_images(count, seed=seed)
    with torch.inference_mode():
        return Samples(images, model(torch.from_numpy(images)).argmax(1).numpy())


def make_meter(model: torch.nn.Module, checkpoint: Path, options: MaskOptions = MASK, train: Samples | None = None) -> Meter:
    judge = labelled(model, 64, 2)
    layers = survey_layers(model, probe_model(model, (3, 8, 8)), pattern=NMPattern.parse(options.pattern)).eligible
    return Meter(model, layers, train or labelled(model, 96, 1), judge, options, checkpoint=checkpoint)


def test_the_divergence_of_two_coins() -> None:
    dense, masked = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    # Float64, numbers of about 1, a few operations.
    assert mean_divergence(dense, masked) == pytest.approx(expected, rel=1e-14)


@given(dense=LOGITS, masked=LOGITS)
def test_the_divergence_is_that_of_torch(dense: np.ndarray, masked: np.ndarray) -> None:
    p, q = (functional.log_softmax(torch.from_numpy(a).double(), 1) for a in (dense, masked))
    expected = float(functional.kl_div(q, p, reduction="batchmean", log_target=True))
    # Terms are up to 100, five to an image; each is off by a few units of 2^-53.
    assert mean_divergence(dense, masked) == pytest.approx(max(0.0, expected), abs=1e-12)


@given(dense=LOGITS, shift=st.integers(-8, 8))
def test_the_divergence_does_not_see_a_shift_of_all_logits(dense: np.ndarray, shift: int) -> None:
    assert 0 <= mean_divergence(dense, dense.astype(np.float64) + shift) < 1e-12
    assert mean_divergence(dense, dense) == 0


def test_without_masks_nothing_is_measured(tmp_path: Path) -> None:
    for model in (uneven_net(), tiny_cnn(seed=1)):
        meter = make_meter(model, tmp_path / "kept")
        nothing = Measured(correct=64, drop_points=0, divergence=0, statistics_updated=False)
        assert meter.measure(()) == nothing
        assert (meter.dense_correct, meter.total) == (64, 64)


def test_a_layer_that_is_sparse_already_costs_nothing_and_a_fragile_one_much(tmp_path: Path) -> None:
    meter = make_meter(uneven_net(), tmp_path / "kept")
    free, mild, fragile = (meter.measure((name,)) for name in ("free", "mild", "fragile"))
    assert free.divergence == 0 and free.correct == 64
    assert 0 < mild.divergence < fragile.divergence / 10
    assert fragile.drop_points == pytest.approx(100 * (64 - fragile.correct) / 64)
    assert fragile.correct < mild.correct


def test_statistics_are_estimated_again_only_where_that_helps(tmp_path: Path) -> None:
    """The tiny network's own statistics are far from those of its images, until these are estimated from them."""
    layer = ("block.conv2",)
    frozen = MASK.model_copy(update={"batch_norm": False})
    astray, settled = tiny_cnn(seed=1), tiny_cnn(seed=1)
    statistics = reestimate(settled, {}, example_images(96, seed=1), batch_size=32)
    settled.load_state_dict({name: torch.from_numpy(array) for name, array in statistics.items()}, strict=False)

    kept = make_meter(astray, tmp_path / "a", frozen).measure(layer)
    assert not kept.statistics_updated
    # Estimated anew, they would take this network further away than the mask does.
    assert make_meter(astray, tmp_path / "b").measure(layer) == kept

    before, after = (make_meter(settled, tmp_path / name, mask).measure(layer) for name, mask in (("c", frozen), ("d", MASK)))
    assert after.statistics_updated
    assert after.divergence < before.divergence


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_meter(uneven_net(), tmp_path / "kept").measure(("mild", "free"))
    again = make_meter(uneven_net(), tmp_path / "kept")
    monkeypatch.setattr(sensitivity, "compute_logits", None)
    assert again.measure(("free", "mild")) == first
    with pytest.raises(TypeError, match="NoneType"):
        again.measure(("mild",))


def test_what_was_measured_in_other_circumstances_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    make_meter(uneven_net(), kept).measure(("mild",))
    other = other_code()
    other.load_state_dict(uneven_net().state_dict())
    meters = [
        make_meter(other.eval().requires_grad_(False), kept),
        make_meter(uneven_net(), kept, MASK.model_copy(update={"pattern": "1:4"})),
        make_meter(uneven_net(), kept, MASK.model_copy(update={"calibration_count": 65})),
        make_meter(uneven_net(), kept, MASK.model_copy(update={"augment": "shift"})),
        make_meter(uneven_net(), kept, train=labelled_by_network(96, 7)),
    ]
    kept.write_bytes(kept.read_bytes()[:100])
    meters.append(make_meter(uneven_net(), kept))
    monkeypatch.setattr(sensitivity, "compute_logits", None)
    for meter in meters:
        with pytest.raises(TypeError, match="NoneType"):
            meter.measure(("mild",))
