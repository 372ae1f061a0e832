from pathlib import Path

import numpy as np
import pytest
import torch

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.evaluation import compute_logits
from masksparse_deploy.learn.loss import masking_loss
from masksparse_deploy.learn.positions.choice import HeldOut, TrainingLoss, best_by_halving
from masksparse_deploy.learn.positions.held_out import HeldOutLoss
from masksparse_deploy.learn.positions.maps import PositionMaps
from masksparse_deploy.learn.positions.plan import plan_positions
from masksparse_deploy.learn.positions.trainee import put_hooks
from tests.learn.learning import TRAIN
from tests.learn.positions.networks import OPTIONS, Flat, seeded, train
from tests.models.tiny_cnn import tiny_cnn

MAPS = PositionMaps(sizes={"conv": (8, 8)}, image_size=(8, 8), propagated=True, seed=0)


def settled(losses: np.ndarray) -> tuple[int, list[tuple[int, range]]]:
    """The choice among rows of losses, one for every batch, and what was computed for it."""
    asked: list[tuple[int, range]] = []

    def loss(number: int, batches: range) -> float:
        asked.append((number, batches))
        return float(losses[number, batches].mean())

    return best_by_halving(range(len(losses)), loss, losses.shape[1]), asked


def test_halving_takes_the_best_and_computes_no_batch_twice() -> None:
    generator = np.random.default_rng(0)
    for batch_count in (1, 2, 5, 8):
        # One is better by more than batches differ, so that it leads in every round.
        losses = generator.random((32, batch_count))
        best = int(generator.integers(32))
        losses[best] -= 1
        found, asked = settled(losses)
        assert found == best
        computed = [(number, batch) for number, batches in asked for batch in batches]
        assert len(computed) == len(set(computed))
        assert {batch for number, batch in computed if number == best} == set(range(batch_count))
    # Of 32 maps with 8 batches: 32 x 1 + 16 x 1 + 8 x 2 + 4 x 4.
    assert len(computed) == 80


def test_halving_looks_at_all_batches_so_far() -> None:
    # The first is best on the first batch, and worst on both.
    losses = np.array([[0.0, 9.0], [1.0, 1.0], [2.0, 3.0], [3.0, 0.0]])
    assert settled(losses)[0] == 1


def test_of_equal_maps_the_first_is_taken() -> None:
    assert settled(np.zeros((8, 4)))[0] == 0


def test_the_training_loss_takes_the_step_of_the_lowest() -> None:
    choice = TrainingLoss()
    assert choice.settle(0, 5) == 0
    for step, loss in enumerate([3.0, 1.0, float("nan"), 2.0]):
        choice.seen(step, torch.tensor(loss, requires_grad=True))
    continued = TrainingLoss()
    continued.restore(choice.state())
    assert choice.settle(9, 10) == continued.settle(9, 10) == 1
    # A loss that kept its graph would keep all activations of its step in memory.
    assert not choice.state()["best"].requires_grad


def held_out(network: torch.nn.Module, **change: object) -> HeldOutLoss:
    options = OPTIONS.model_copy(update={"position_rate": 0.5, **change})
    logits = compute_logits(seeded(Flat), TRAIN, batch_size=32) if options.distillation else None
    return HeldOutLoss(
        network=network, hooks=put_hooks(network, MAPS), maps=MAPS, samples=TRAIN, dense_logits=logits, options=options
    )


@pytest.mark.parametrize("distillation", [0.0, 0.5, 1.0])
def test_the_loss_held_out_is_that_of_training_with_statistics_of_the_batch(distillation: float) -> None:
    network = seeded(Flat)
    loss = held_out(network, distillation=distillation)
    network.norm.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = loss(7, range(1, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    # Whatever share training is at, maps are compared at the final one: 32 of 64 positions.
    assert np.array_equal(loss.hooks["conv"]._keep.numpy(), MAPS.keep(7, 0.5)["conv"])
    expected = []
    with torch.no_grad():
        for part in (slice(32, 64), slice(64, 96)):
            images, labels = torch.from_numpy(TRAIN.images[part]), torch.from_numpy(TRAIN.labels[part])
            dense = seeded(Flat)(images)
            expected.append(float(masking_loss(network(images), labels, dense, distillation=distillation, temperature=2.0)))
    # float32 sums in another memory format.
    assert found == pytest.approx(np.mean(expected), rel=1e-5)
    assert loss(8, range(1, 3)) != pytest.approx(found, rel=1e-3)


def test_processes_settle_on_one_map_though_their_losses_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of GPUs may, in the last digit; what all processes have in common is their mean."""
    loss = held_out(seeded(Flat), distillation=0.0)
    alone = loss(7, range(2))
    # Of another process, whose loss is larger by one.
    monkeypatch.setattr("masksparse_deploy.learn.positions.held_out.reduce", lambda tensor, reduction: tensor + 0.5)
    assert loss(7, range(2)) == pytest.approx(alone + 0.5, rel=1e-12)


def test_held_out_selection_really_takes_the_best() -> None:
    network = seeded(Flat)
    with torch.no_grad():
        # Answers far from each other, by what is dropped.
        network.fc.weight *= 30
    loss = held_out(network, distillation=0.0)
    every = {number: loss(number, range(3)) for number in range(100, 132)}
    chosen = HeldOut(loss=loss, batch_count=3).settle(90, 100)
    # Halving may lose the very best on its first batches; planted winners are found above.
    assert every[chosen] <= np.quantile(list(every.values()), 0.1)
    # A worse choice would be seen: the candidates differ.
    assert max(every.values()) > 1.02 * min(every.values())


def test_images_held_out_are_not_trained_on(tmp_path: Path) -> None:
    plan = plan_positions(tiny_cnn(), TRAIN, OPTIONS)
    assert len(plan.held_out) == 12
    assert sorted([*plan.used, *plan.held_out]) == list(range(96))
    # Other images where nobody trains change the choice at most, not the losses before it.
    images = TRAIN.images.copy()
    images[plan.held_out] = 0
    late = {"position_ramp_end": 0.9}
    same, changed = train(tmp_path / "a", late), train(tmp_path / "b", late, samples=Samples(images, TRAIN.labels))
    assert same.history[:2] == changed.history[:2]
    everything = plan_positions(tiny_cnn(), TRAIN, OPTIONS.model_copy(update={"position_selection": "training-loss"}))
    assert len(everything.used) == 96


def test_too_few_images_to_hold_out() -> None:
    few = Samples(TRAIN.images[:15], TRAIN.labels[:15])
    message = (
        "data.train has 15 images, and with mask.position_selection held-out an eighth of them, at least 2, are held out to "
        "choose among maps; use more images, or mask.position_selection: training-loss"
    )
    with pytest.raises(UsageError) as caught:
        plan_positions(tiny_cnn(), few, OPTIONS)
    assert str(caught.value) == message
