from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import MaskSet, read_mask_set
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.learn.blocks import Subp
from masksparse_deploy.learn.dynamic import SparseTraining
from masksparse_deploy.learn.dynamic.sparse_training import TrainingMethod
from masksparse_deploy.learn.dynamic.weight_trainee import WeightTrainee
from masksparse_deploy.learn.eligibility import EligibleLayer, survey_layers
from masksparse_deploy.learn.learner import Learner
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.mask_rule import Keep, MaskRule, Weight
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.learning import OPTIONS, TRAIN, content
from tests.models.tiny_cnn import tiny_cnn

PATTERN = BlockPattern.parse("1x8@0.5")
BLOCKS = OPTIONS.model_copy(update={"pattern": str(PATTERN), "channel_block": 1})
METHODS: tuple[TrainingMethod, ...] = ("subp", "blocks")


def layers(pattern: BlockPattern = PATTERN) -> tuple[EligibleLayer, ...]:
    model = tiny_cnn()
    return survey_layers(model, probe_model(model, (3, 8, 8)), pattern=pattern).eligible


def train(
    checkpoint: Path, method: TrainingMethod, change: dict[str, object] | None = None, progress: Progress = silent
) -> Outcome:
    options = BLOCKS.model_copy(update=change or {})
    training = SparseTraining(options=options, method=method, checkpoint=checkpoint, progress=progress)
    return training.sparsify(tiny_cnn(), layers(BlockPattern.parse(options.pattern)), TRAIN)


@pytest.mark.parametrize("method", METHODS)
def test_new_weights_have_exactly_the_pattern(tmp_path: Path, method: TrainingMethod) -> None:
    outcome = train(tmp_path / "c", method)
    assert list(outcome.masks) == ["block.conv1.weight", "block.conv2.weight"]
    assert set(outcome.weights) == {name for name, _ in tiny_cnn().named_parameters()}
    for name, mask in outcome.masks.items():
        assert mask.pattern == PATTERN
        assert np.array_equal(outcome.weights[name] != 0, mask.keep)
    masks = MaskSet(
        layers=outcome.masks,
        source_sha256=state_fingerprint(tiny_cnn()),
        method=method,
        statistics=outcome.statistics,
        weights=outcome.weights,
    )
    masks.write(tmp_path / "masks.safetensors")
    assert read_mask_set(tmp_path / "masks.safetensors").digest == masks.digest


@pytest.mark.parametrize("text", ["1x8@0.5", "1x8~0.5"])
def test_fixed_blocks_are_those_of_the_largest_norms_to_the_end(tmp_path: Path, text: str) -> None:
    pattern = BlockPattern.parse(text)
    chosen = Magnitude(pattern=pattern).sparsify(tiny_cnn(), layers(pattern), TRAIN).masks
    outcome = train(tmp_path / "c", "blocks", {"pattern": text, "learning_rate": 0.2})
    assert {name: mask.digest for name, mask in outcome.masks.items()} == {name: m.digest for name, m in chosen.items()}
    for name, mask in chosen.items():
        norms = (
            np.abs(tiny_cnn().get_parameter(name).detach().numpy()).reshape(-1, pattern.n, mask.keep.shape[1], 9).sum((1, 3))
        )
        blocks = pattern.blocks(mask.keep)
        if pattern.uniform:
            assert all(norm[kept].min() > norm[~kept].max() for norm, kept in zip(norms, blocks, strict=True))
        else:
            assert norms[blocks].min() > norms[~blocks].max()


def test_soft_pruning_ends_with_other_blocks_than_it_began_with(tmp_path: Path) -> None:
    change = {"epochs": 12, "learning_rate": 0.2}
    fixed, soft = (train(tmp_path / method, method, change).masks for method in METHODS)
    assert any(not np.array_equal(fixed[name].keep, mask.keep) for name, mask in soft.items())


class Half(MaskRule):
    """A mask that stays, and dropped weights that fade fast."""

    pattern = PATTERN
    dropped_decay = 0.25

    def first(self, weight: Weight) -> Keep:
        return PATTERN.expand(PATTERN.keep_largest(np.abs(weight).reshape(-1, 8, weight.shape[1], 9).sum((1, 3))), weight.shape)

    def is_due(self, step: int, total_steps: int) -> bool:
        return False

    def choose(self, weight: Weight, keep: Keep, *, step: int, total_steps: int, layer: int) -> Keep:
        raise AssertionError("never due")


@pytest.mark.parametrize(("batch_size", "accumulate"), [(96, 1), (48, 2)])
def test_the_first_step_is_the_hand_written_one(batch_size: int, accumulate: int) -> None:
    """W gets the gradient of what was multiplied, and lambda (1 - keep) W once a step, however many batches it has."""
    made: list[WeightTrainee] = []

    def prepare(network: nn.Module) -> WeightTrainee:
        made.append(WeightTrainee(network, layers(), Half()))
        return made[0]

    change = {
        "batch_size": batch_size,
        "accumulate": accumulate,
        "epochs": 10,
        "distillation": 0.0,
        "augment": "none",
        "batch_norm": False,
        "learning_rate": 0.01,
    }
    Learner(tiny_cnn(), TRAIN, BLOCKS.model_copy(update=change), prepare).run_step()

    model = tiny_cnn()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    keep = {name: torch.tensor(mask.keep) for name, mask in made[0].masks().items()}
    multiplied = {name: (w * keep[name] if name in keep else w).requires_grad_() for name, w in weights.items()}
    logits = functional_call(model, multiplied, (torch.from_numpy(TRAIN.images),))
    loss = functional.cross_entropy(logits, torch.from_numpy(TRAIN.labels))
    gradients = dict(zip(multiplied, torch.autograd.grad(loss, list(multiplied.values())), strict=True))
    # One-cycle starts at a 25th of the peak, and at the momentum 0.95.
    rate, momentum = 0.01 / 25, 0.95
    for name in keep:
        weight, dropped = weights[name], (~keep[name]).float()
        gradient = gradients[name] + (1e-4 + 0.25 * dropped) * weight
        expected = weight - rate * (1 + momentum) * gradient
        found = made[0].learned()[name][0].detach()
        # Gradients of size one and below, summed in another order, times a rate below 1e-3, and a unit of the weights, 6e-8.
        assert torch.allclose(found, expected, rtol=0, atol=1e-7), name
        without = weight - rate * (1 + momentum) * (gradients[name] + 1e-4 * weight)
        # The decay is seen: it is far above what rounding may do, and on dropped weights alone.
        assert float((found - without)[~keep[name]].abs().max()) > 1e-5, name
        assert torch.allclose(found[keep[name]], without[keep[name]], rtol=0, atol=1e-7), name


def test_the_decay_of_soft_pruning_is_the_published_one() -> None:
    rule = SparseTraining(options=BLOCKS, method="subp", checkpoint=Path("c"))._rule()
    assert isinstance(rule, Subp)
    assert rule.dropped_decay == 2e-4
    assert SparseTraining(options=BLOCKS, method="blocks", checkpoint=Path("c"))._rule().dropped_decay == 0


@pytest.mark.parametrize("initialization", ["pretrained", "scratch"])
@pytest.mark.parametrize(("last_step", "first_step"), [(8, 7), (2, 1)])
def test_interrupted_training_ends_with_the_same_bytes(
    tmp_path: Path, initialization: str, last_step: int, first_step: int
) -> None:
    change = {"initialization": initialization, "checkpoint_steps": 2 if last_step == 8 else 1000, "epochs": 4}

    def interrupt(description: str, done: int, total: int) -> None:
        if done == last_step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", "subp", change, interrupt)
    seen: list[int] = []
    continued = train(tmp_path / "cut", "subp", change, lambda text, done, total: seen.append(done))
    assert seen == list(range(first_step, 13))
    assert content(continued) == content(train(tmp_path / "whole", "subp", change))


@pytest.mark.parametrize("change", [{"seed": 1}, {"criterion": "l1"}, {"schedule_end": 0.5}, {"initialization": "scratch"}])
def test_what_changes_the_outcome(tmp_path: Path, change: dict[str, object]) -> None:
    assert content(train(tmp_path / "a", "subp")) != content(train(tmp_path / "b", "subp", change))


def test_from_scratch_nothing_of_the_trained_network_is_left(tmp_path: Path) -> None:
    # Of seed 0 the network itself was made.
    change = {"initialization": "scratch", "epochs": 20, "distillation": 0.0, "seed": 7}
    outcome = train(tmp_path / "c", "subp", change)
    assert outcome.history[-1].loss < 0.8 * outcome.history[0].loss
    # Parameters that end where they begin, as factors of one, are in the outcome all the same.
    model = tiny_cnn()
    assert set(outcome.weights) == {name for name, _ in model.named_parameters()}
    for name, array in outcome.weights.items():
        trained = model.get_parameter(name).detach().numpy()
        if trained.ndim > 1:
            assert abs(np.corrcoef(array.ravel(), trained.ravel())[0, 1]) < 0.5, name


def test_from_scratch_statistics_must_follow(tmp_path: Path) -> None:
    options = BLOCKS.model_copy(update={"initialization": "scratch", "batch_norm": False})
    training = SparseTraining(options=options, method="subp", checkpoint=tmp_path / "c")
    with pytest.raises(UsageError, match=r"mask\.initialization scratch trains new weights, .*; set mask\.batch_norm: true"):
        training.check(tiny_cnn(), layers(), TRAIN)


def test_defaults_are_those_of_the_note() -> None:
    options = MaskOptions()
    assert (options.criterion, options.initialization, options.schedule_start, options.schedule_end) == (
        "bpar",
        "pretrained",
        0.0,
        0.75,
    )
