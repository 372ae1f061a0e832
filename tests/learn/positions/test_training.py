from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from masksparse_deploy.core.masks import MaskSet, read_mask_set
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.learn.batches import _AUGMENTATION, _NOISE, _ORDER
from masksparse_deploy.learn.blocks.subp import _REGROWTH
from masksparse_deploy.learn.dynamic import SparseTraining
from masksparse_deploy.learn.dynamic.dense import dense_trainee
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.evaluation import count_correct, substitutes
from masksparse_deploy.learn.learner import Learner
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.positions.apply import masked_positions
from masksparse_deploy.learn.positions.maps import _MAP, dropped_count, freezing_step, ramped_rate
from masksparse_deploy.learn.positions.plan import _HELD_OUT, plan_positions
from masksparse_deploy.learn.positions.trainee import PositionTrainee
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.requested import requested_pattern
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.learning import TRAIN, content
from tests.learn.positions.networks import LAYERS, OPTIONS, EveryKind, Flat, odd_images, seeded, train
from tests.models.tiny_cnn import tiny_cnn


@pytest.mark.parametrize("maps", ["propagated", "independent"])
@pytest.mark.parametrize("selection", ["held-out", "training-loss"])
def test_every_layer_ends_with_exactly_the_share_and_the_network_stays_bit_identical(
    tmp_path: Path, maps: str, selection: str
) -> None:
    model = tiny_cnn()
    before = state_fingerprint(model)
    outcome = train(tmp_path / "c", {"position_maps": maps, "position_selection": selection}, model=model)
    assert state_fingerprint(model) == before
    assert tuple(outcome.positions) == LAYERS
    # round(0.3 * 16) = 5
    assert [np.count_nonzero(~mask.keep) for mask in outcome.positions.values()] == [5, 5]
    shared = np.array_equal(*(mask.keep for mask in outcome.positions.values()))
    assert shared == (maps == "propagated")
    assert not outcome.masks
    assert set(outcome.weights) == {name for name, _ in model.named_parameters()}
    masks = MaskSet(
        layers={},
        source_sha256=before,
        method="positions",
        statistics=outcome.statistics,
        weights=outcome.weights,
        positions=outcome.positions,
    )
    masks.write(tmp_path / "masks.safetensors")
    assert read_mask_set(tmp_path / "masks.safetensors").digest == masks.digest


def test_images_of_any_size(tmp_path: Path) -> None:
    outcome = train(tmp_path / "c", {"include": ("*", "stem")}, model=seeded(EveryKind), samples=odd_images())
    assert {name: mask.keep.shape for name, mask in outcome.positions.items()} == {
        "stem": (7, 9),
        "plain": (7, 9),
        "strided": (4, 5),
    }
    # round(0.3 * 63) = 19, round(0.3 * 20) = 6
    assert [np.count_nonzero(~mask.keep) for mask in outcome.positions.values()] == [19, 19, 6]


def test_the_network_learns_to_do_without_the_positions(tmp_path: Path) -> None:
    model = seeded(Flat)
    change = {"epochs": 20, "learning_rate": 0.1, "augment": "none", "distillation": 0.0, "position_rate": 0.5}
    outcome = train(tmp_path / "c", change, model=model)
    trained = substitutes(model, {}, outcome.statistics, outcome.weights)
    with masked_positions(model, outcome.positions):
        before, after = (count_correct(model, TRAIN, state, batch_size=32) for state in ({}, trained))
    # Of 96 images of 10 classes, 84 are trained on.
    assert before < 70
    assert after > 90


def learner(change: Mapping[str, object], made: list[PositionTrainee]) -> Learner:
    options = OPTIONS.model_copy(update=change)
    plan = plan_positions(tiny_cnn(), TRAIN, options)

    def prepare(network: torch.nn.Module) -> PositionTrainee:
        made.append(plan.prepare(network, lambda inner: dense_trainee(inner, ())))
        return made[0]

    return Learner(tiny_cnn(), TRAIN, options, prepare, used=plan.used)


@pytest.mark.parametrize("selection", ["held-out", "training-loss"])
def test_a_fresh_map_in_every_step_of_the_ramp_and_one_from_its_end_on(selection: str) -> None:
    made: list[PositionTrainee] = []
    change = {"position_selection": selection, "position_rate": 0.5, "position_ramp_end": 0.9}
    run = learner({"epochs": 10, **change}, made)
    total, digests, dropped = run.total_steps, [], []
    for _ in range(total):
        run.run_step()
        keep = made[0]._keep["block.conv1"]
        digests.append(keep.tobytes())
        dropped.append(np.count_nonzero(~keep))
    assert dropped == [dropped_count((4, 4), ramped_rate(step, total, 0.5, 0.9)) for step in range(total)]
    assert dropped[: total // 10] == [0] * (total // 10)
    freeze = freezing_step(total, 0.9)
    assert len(set(digests[freeze:])) == 1
    assert dropped[freeze:] == [8] * (total - freeze)
    # Between the ends steps have maps of their own; while few are dropped two may coincide.
    assert len(set(digests[total // 2 : freeze])) == freeze - total // 2


def test_statistics_in_training_have_the_zeros_in_them() -> None:
    made: list[PositionTrainee] = []
    # A single step, which has the final masks.
    run = learner({"max_steps": 1, "batch_size": 84, "augment": "none", "distillation": 0.0}, made)
    run.run_step()
    outcome, model = run.outcome(), tiny_cnn()
    used = plan_positions(tiny_cnn(), TRAIN, OPTIONS).used
    model.bn.train()
    with torch.no_grad():
        stem = torch.relu(model.bn(model.conv(torch.from_numpy(TRAIN.images[used]))))
        output = model.block.conv1(stem) * torch.tensor(outcome.positions["block.conv1"].keep)
        expected = 0.9 * model.block.bn1.running_mean + 0.1 * output.mean((0, 2, 3))
    # Sums of a thousand float32 values of size 1.
    assert outcome.statistics["block.bn1.running_mean"] == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("selection", ["held-out", "training-loss"])
@pytest.mark.parametrize("last_step", [2, 4, 6, 7])
def test_interrupted_training_ends_with_the_same_bytes(tmp_path: Path, selection: str, last_step: int) -> None:
    # Of 8 or 12 steps, the map is settled after half of them.
    change = {"position_selection": selection, "checkpoint_steps": 1, "epochs": 4, "position_ramp_end": 0.5}

    def interrupt(description: str, done: int, total: int) -> None:
        if done == last_step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", change, progress=interrupt)
    seen: list[int] = []
    continued = train(tmp_path / "cut", change, progress=lambda text, done, total: seen.append(done))
    assert seen[0] == last_step
    assert content(continued) == content(train(tmp_path / "whole", change))
    # What is done is there at once.
    assert content(train(tmp_path / "whole", change)) == content(continued)


@pytest.mark.parametrize(
    "change", [{"autocast": "bfloat16"}, {"batch_norm": False}, {"distillation": 1.0}, {"batch_size": 16, "accumulate": 2}]
)
def test_options(tmp_path: Path, change: dict[str, object]) -> None:
    outcome = train(tmp_path / "c", change)
    assert len(outcome.history) == 3
    assert bool(outcome.statistics) == change.get("batch_norm", True)


def compose(checkpoint: Path, change: Mapping[str, object], progress: Progress = silent) -> Outcome:
    options = OPTIONS.model_copy(update={"mask_steps": 2, **change})
    pattern = requested_pattern(options)
    layers = survey_layers(tiny_cnn(), probe_model(tiny_cnn(), (3, 8, 8)), pattern=pattern).eligible
    training = SparseTraining(options=options, method=options.method, checkpoint=checkpoint, progress=progress)
    return training.sparsify(tiny_cnn(), layers, TRAIN)


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("sparse-training", "2:4"),
        ("sparse-training", "T2:4"),
        ("subp", "1x4@0.5"),
        ("blocks", "1x8@0.5"),
        ("blocks", "1x4~0.5"),
    ],
)
def test_masks_of_weights_and_of_positions_hold_together(tmp_path: Path, method: str, pattern: str) -> None:
    change = {"method": method, "pattern": pattern, "channel_block": 1}
    outcome = compose(tmp_path / "c", change)
    assert tuple(outcome.positions) == LAYERS
    assert [np.count_nonzero(~mask.keep) for mask in outcome.positions.values()] == [5, 5]
    assert {"block.conv1.weight", "block.conv2.weight"} <= set(outcome.masks)
    for name, mask in outcome.masks.items():
        assert mask.keep.any()
        assert not mask.keep.all()
        assert not outcome.weights[name][~mask.keep].any()
    assert outcome.statistics


def test_no_two_sources_of_randomness_share_their_numbers() -> None:
    """Seeds are told apart by their first words: blocks that are drawn back must not follow the maps of the same steps."""
    words = (_ORDER, _AUGMENTATION, _NOISE, _MAP, _HELD_OUT, _REGROWTH)
    assert len(set(words)) == len(words)


def test_interrupted_training_under_both_kinds_ends_with_the_same_bytes(tmp_path: Path) -> None:
    change = {"method": "subp", "pattern": "1x4@0.5", "channel_block": 1, "checkpoint_steps": 1}

    def interrupt(description: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compose(tmp_path / "cut", change, interrupt)
    continued = compose(tmp_path / "cut", change)
    assert content(continued) == content(compose(tmp_path / "whole", change))
