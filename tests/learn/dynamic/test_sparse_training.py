from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import MaskSet, read_mask_set
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.choose_mask import choose_mask
from masksparse_deploy.learn.dynamic import SparseTraining
from masksparse_deploy.learn.dynamic.weight_trainee import WeightTrainee
from masksparse_deploy.learn.evaluation import compute_logits, substitutes
from masksparse_deploy.learn.learner import Learner
from masksparse_deploy.learn.mask_rule import Following
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.learning import OPTIONS, TRAIN, content, layers, run
from tests.models.tiny_cnn import TinyCnn, tiny_cnn

METHOD = "sparse-training"
PATTERNS = ("2:4", "T2:4")


def train(folder: Path, change: dict[str, object] | None = None, progress: Progress | None = None) -> Outcome:
    shown = {} if progress is None else {"progress": progress}
    return run(folder, {"mask_steps": 4, **(change or {})}, method="sparse-training", **shown)


@pytest.mark.parametrize("text", PATTERNS)
def test_new_weights_have_exactly_the_pattern_and_the_network_stays_bit_identical(tmp_path: Path, text: str) -> None:
    model, pattern = tiny_cnn(), NMPattern.parse(text)
    before = state_fingerprint(model)
    outcome = run(tmp_path / "c", {"pattern": text, "mask_steps": 2}, method="sparse-training", model=model)
    assert state_fingerprint(model) == before
    assert set(outcome.masks) == {layer.weight_name for layer in layers(model, pattern)}
    # Everything trains: kernels, the classifier, batch-norm factors, biases.
    assert set(outcome.weights) == {name for name, _ in model.named_parameters()}
    for name, mask in outcome.masks.items():
        assert np.array_equal(outcome.weights[name] != 0, mask.keep)
        for axis in (1, 0) if pattern.transposable else (1,):
            assert (np.moveaxis(mask.keep, axis, -1).reshape(-1, 4).sum(1) == 2).all()
    masks = MaskSet(
        layers=outcome.masks,
        source_sha256=before,
        method=METHOD,
        statistics=outcome.statistics,
        weights=outcome.weights,
    )
    masks.write(tmp_path / "masks.safetensors")
    assert read_mask_set(tmp_path / "masks.safetensors").digest == masks.digest


def test_what_comes_out_answers_more_like_the_dense_network_than_masks_alone(tmp_path: Path) -> None:
    model = tiny_cnn()
    change = {"epochs": 20, "learning_rate": 0.1, "augment": "none", "distillation": 1.0, "batch_norm": False}
    outcome = train(tmp_path / "c", {**change, "pattern": "T2:4"})
    assert outcome.history[-1].loss < outcome.history[0].loss
    masked = substitutes(model, trainee(tiny_cnn(), "T2:4").masks(), {})
    trained = substitutes(model, outcome.masks, outcome.statistics, outcome.weights)
    dense, before, after = (compute_logits(model, TRAIN, state, batch_size=32) for state in ({}, masked, trained))
    assert np.abs(after - dense).mean() < 0.5 * np.abs(before - dense).mean()


def trainee(network: torch.nn.Module, text: str, mask_steps: int = 4) -> WeightTrainee:
    pattern = NMPattern.parse(text)
    rule = Following(pattern=pattern, chosen_by=lambda w: choose_mask(w, pattern, "exact"), mask_steps=mask_steps)
    return WeightTrainee(network, layers(tiny_cnn(), pattern), rule)


def test_masks_change_every_so_many_steps_and_then_follow_the_weights() -> None:
    made: list[WeightTrainee] = []

    def prepare(network: torch.nn.Module) -> WeightTrainee:
        made.append(trainee(network, "T2:4"))
        return made[0]

    options = OPTIONS.model_copy(update={"epochs": 4, "learning_rate": 0.2})
    learner = Learner(tiny_cnn(), TRAIN, options, prepare)
    before, changed = digests(learner), []
    for step in range(learner.total_steps):
        weights = {name: found[0].detach().numpy().copy() for name, found in made[0].learned().items()}
        learner.run_step()
        learner.check()
        after = digests(learner)
        if step % 4 == 0:
            for name, mask in learner.masks().items():
                assert np.array_equal(mask.keep, choose_mask(np.abs(weights[name]), mask.pattern, "exact"))
        if after != before:
            changed.append(step)
        before = after
    assert changed == [4, 8]


def digests(learner: Learner) -> dict[str, str]:
    return {name: mask.digest for name, mask in learner.masks().items()}


@pytest.mark.parametrize("text", PATTERNS)
def test_the_first_step_is_the_hand_written_one(text: str) -> None:
    """Dense arithmetic on masked weights, and the gradient of what was multiplied given to all of the weight."""
    made: list[WeightTrainee] = []

    def prepare(network: torch.nn.Module) -> WeightTrainee:
        made.append(trainee(network, text))
        return made[0]

    change = {"batch_size": 96, "epochs": 10, "distillation": 0.0, "augment": "none"}
    Learner(tiny_cnn(), TRAIN, OPTIONS.model_copy(update=change), prepare).run_step()

    model = tiny_cnn()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    keep = {name: torch.tensor(mask.keep) for name, mask in trainee(tiny_cnn(), text).masks().items()}
    multiplied = {name: (w * keep[name] if name in keep else w).requires_grad_() for name, w in weights.items()}
    logits = functional_call(model, multiplied, (torch.from_numpy(TRAIN.images),))
    loss = functional.cross_entropy(logits, torch.from_numpy(TRAIN.labels))
    gradients = dict(zip(multiplied, torch.autograd.grad(loss, list(multiplied.values())), strict=True))
    # One-cycle starts at a 25th of the peak, and at the momentum 0.95.
    rate, momentum = 0.01 / 25, 0.95
    for name, weight in weights.items():
        gradient = gradients[name] + (1e-4 * weight if weight.ndim > 1 else 0)
        expected = weight - rate * (1 + momentum) * gradient
        found = made[0].learned()[name][0].detach()
        # Gradients of size one and below, summed in another order, times a rate below 1e-3, and a unit of the weights, 6e-8.
        assert torch.allclose(found, expected.detach(), rtol=0, atol=1e-7), name
        if name in keep:
            # What is dropped moved by more than that, so that a gradient masked by mistake would be seen.
            assert float((found - weight)[~keep[name]].abs().max()) > 1e-5, name


def test_a_dropped_weight_comes_back_when_its_gradient_says_so() -> None:
    network = tiny_cnn()
    taught = trainee(network, "2:4", mask_steps=1)
    name = "block.conv2.weight"
    weight, keep = taught.learned()[name][0], taught.masks()[name].keep
    place = tuple(np.argwhere(~keep)[0])
    with torch.no_grad():
        weight[place] = 10.0
    assert not taught.masks()[name].keep[place]
    taught.begin_step(1, 10, seed=0)
    assert taught.masks()[name].keep[place]


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize(("last_step", "first_step", "change"), [(8, 7, {"checkpoint_steps": 2}), (5, 4, {}), (2, 1, {})])
def test_interrupted_training_ends_with_the_same_bytes(
    tmp_path: Path, text: str, last_step: int, first_step: int, change: dict[str, object]
) -> None:
    change = {**change, "pattern": text}

    def interrupt(description: str, done: int, total: int) -> None:
        if done == last_step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", change, interrupt)
    seen: list[int] = []
    continued = train(tmp_path / "cut", change, lambda text, done, total: seen.append(done))
    assert seen == list(range(first_step, 10))
    assert content(continued) == content(train(tmp_path / "whole", change))


def test_steps_between_masks_belong_to_the_run(tmp_path: Path) -> None:
    def interrupt(description: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "c", {"mask_steps": 2}, interrupt)
    seen: list[int] = []
    train(tmp_path / "c", {"mask_steps": 3}, lambda text, done, total: seen.append(done))
    assert seen[0] == 1


@pytest.mark.parametrize(
    "change", [{"autocast": "bfloat16"}, {"batch_norm": False}, {"distillation": 1.0}, {"batch_size": 16, "accumulate": 2}]
)
def test_options(tmp_path: Path, change: dict[str, object]) -> None:
    outcome = train(tmp_path / "c", change)
    assert len(outcome.history) == 3
    assert bool(outcome.statistics) == change.get("batch_norm", True)


def test_from_scratch_is_the_same_with_fresh_weights(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        fresh = TinyCnn().eval()
    change = {"epochs": 20, "distillation": 0.0, "learning_rate": 0.1, "pattern": "T2:4"}
    outcome = run(tmp_path / "c", change, method="sparse-training", model=fresh)
    assert outcome.history[-1].loss < 0.8 * outcome.history[0].loss


def test_training_that_diverges_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the loss became (nan|inf) in step \d; try a mask.learning_rate below 10000000000.0"):
        train(tmp_path / "c", {"learning_rate": 1e10, "epochs": 20})


def test_what_training_would_refuse_is_refused_before(tmp_path: Path) -> None:
    training = SparseTraining(options=OPTIONS, checkpoint=tmp_path / "c")
    model = tiny_cnn()
    training.check(model, layers(model), TRAIN)
    with pytest.raises(UsageError, match=r"data.train has no labels"):
        training.check(model, layers(model), Samples(TRAIN.images))
