from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.checkpoint import read_checkpoint, write_checkpoint
from masksparse_deploy.learn.eligibility import EligibleLayer, survey_layers
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.scores import Scores, initial_scores, select_largest
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.networks import RootNet, labelled_by_network, shallow_net
from tests.models.tiny_cnn import TinyCnn, tiny_cnn

PATTERN = NMPattern(n=2, m=4)
OPTIONS = MaskOptions(epochs=3, batch_size=32, augment="shift-mirror")


@st.composite
def scored_groups(draw: st.DrawFn) -> tuple[NMPattern, np.ndarray]:
    m = draw(st.sampled_from([2, 4, 8]))
    pattern = NMPattern(n=draw(st.integers(1, m)), m=m)
    kernel = draw(st.sampled_from([(), (1, 1), (3, 2)]))
    shape = (draw(st.integers(1, 3)), m * draw(st.integers(1, 3)), *kernel)
    # Few distinct values, so that ties are common.
    return pattern, draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0])))


@given(scored_groups())
@settings(max_examples=60, deadline=None)
def test_selection_is_that_of_the_pattern_ties_included(case: tuple[NMPattern, np.ndarray]) -> None:
    pattern, scores = case
    selected = select_largest(torch.from_numpy(scores), pattern).numpy()
    assert np.array_equal(selected.astype(bool), pattern.keep_largest(scores, group_axis=1))


def test_groups_run_along_input_channels() -> None:
    scores = torch.zeros(1, 4, 3, 3)
    scores[0, [1, 3], 0, 0] = 1.0
    scores[0, [0, 2], 2, 1] = 1.0
    selected = select_largest(scores, PATTERN)
    assert selected[0, :, 0, 0].tolist() == [0, 1, 0, 1]
    assert selected[0, :, 2, 1].tolist() == [1, 0, 1, 0]


def test_the_gradient_passes_straight_through() -> None:
    scores = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    factors = torch.arange(scores.numel(), dtype=torch.float32).reshape(scores.shape)
    (select_largest(scores, PATTERN) * factors).sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, factors)


def test_initial_scores_are_relative_to_the_group() -> None:
    weight = torch.tensor([[1.0, -3.0, 0.0, 4.0, 10.0, 30.0, 0.0, -40.0, 0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.5, 1.5, 0.0, 2.0, 0.5, 1.5, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0]])
    assert torch.equal(initial_scores(weight, 4), expected)


def layers() -> tuple[EligibleLayer, ...]:
    model = tiny_cnn()
    return survey_layers(model, probe_model(model, (3, 8, 8)), pattern=PATTERN).eligible


def run(tmp_path: Path, options: MaskOptions = OPTIONS) -> Outcome:
    train = labelled_by_network(96, seed=1)
    return Scores(options=options, checkpoint=tmp_path / "learn.checkpoint").sparsify(tiny_cnn(), layers(), train)


def test_masks_keep_exactly_n_of_m_and_the_network_stays_bit_identical(tmp_path: Path) -> None:
    model, train = tiny_cnn(), labelled_by_network(96, seed=1)
    state, modes = {n: v.clone() for n, v in model.state_dict().items()}, [m.training for m in model.modules()]
    random_state, order = torch.get_rng_state(), list(model.state_dict())
    outcome = Scores(options=OPTIONS, checkpoint=tmp_path / "c").sparsify(model, layers(), train)
    for mask in outcome.masks.values():
        assert (mask.keep.reshape(len(mask.keep), -1, 4, *mask.keep.shape[2:]).sum(2) == 2).all()
    assert list(model.state_dict()) == order
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert len(outcome.history) == 3
    assert set(outcome.statistics) == {n for n in state if n.endswith(("running_mean", "running_var"))}


def test_learning_lowers_the_loss_and_moves_the_masks(tmp_path: Path) -> None:
    outcome = run(tmp_path, OPTIONS.model_copy(update={"epochs": 8, "augment": "none"}))
    assert outcome.history[-1].loss < outcome.history[0].loss
    model = tiny_cnn()
    magnitude = PATTERN.keep_largest(np.abs(model.block.conv2.weight.detach().numpy()), group_axis=1)
    assert not np.array_equal(outcome.masks["block.conv2.weight"].keep, magnitude)


@pytest.mark.parametrize(
    "change",
    [
        {"distillation": 0.0},
        {"distillation": 1.0},
        {"autocast": "bfloat16"},
        {"max_steps": 4},
        {"batch_size": 1000},
        {"batch_size": 31, "max_steps": 1},
    ],
)
def test_options(tmp_path: Path, change: dict[str, object]) -> None:
    outcome = run(tmp_path, OPTIONS.model_copy(update=change))
    assert set(outcome.masks) == {layer.weight_name for layer in layers()}
    assert len(outcome.history) == {4: 2, 1: 1}.get(change.get("max_steps"), 3)  # type: ignore[call-overload]


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (1.0, 3.0), (0.3, 2.0)])
def test_the_loss_is_the_documented_one(tmp_path: Path, share: float, temperature: float) -> None:
    options = OPTIONS.model_copy(
        update={
            "distillation": share,
            "temperature": temperature,
            "batch_norm": False,
            "augment": "none",
            "batch_size": 96,
            "max_steps": 1,
        }
    )
    dense, masked, train = tiny_cnn(), tiny_cnn(), labelled_by_network(96, seed=1)
    with torch.inference_mode():
        for layer in layers():
            weight = masked.get_parameter(layer.weight_name)
            # Before the first step the scores are those of magnitude.
            weight.mul_(torch.from_numpy(PATTERN.keep_largest(np.abs(weight.detach().numpy()), group_axis=1)))
        images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
        target, logits = dense(images).double(), masked(images).double()
    soft = torch.softmax(target / temperature, 1)
    divergence = (soft * (soft.log() - torch.log_softmax(logits / temperature, 1))).sum(1).mean()
    entropy = -torch.log_softmax(logits, 1)[torch.arange(96), labels].mean()
    expected = (1 - share) * entropy + share * temperature**2 * divergence
    # Float32 against float64: log-probabilities of size one with errors of about 1e-6, multiplied by at most T^2 = 9.
    assert run(tmp_path, options).history[0].loss == pytest.approx(expected.item(), abs=1e-5)


def test_labels_do_not_matter_with_distillation_alone(tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"distillation": 1.0})
    train = labelled_by_network(96, seed=1)
    shuffled = type(train)(train.images, train.labels[::-1].copy())
    runs = [
        Scores(options=options, checkpoint=tmp_path / f"{i}").sparsify(tiny_cnn(), layers(), t)
        for i, t in enumerate((train, shuffled))
    ]
    assert [m.digest for m in runs[0].masks.values()] == [m.digest for m in runs[1].masks.values()]


def test_frozen_statistics(tmp_path: Path) -> None:
    assert run(tmp_path, OPTIONS.model_copy(update={"batch_norm": False})).statistics == {}


def test_the_seed_decides(tmp_path: Path) -> None:
    digests = [
        [m.digest for m in run(tmp_path / str(i), OPTIONS.model_copy(update={"seed": seed})).masks.values()]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_divergence_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    train = labelled_by_network(96, seed=1)
    # Finite images, whose sums in the first convolution are beyond float32.
    huge = type(train)(np.sign(train.images) * np.float32(3e38), train.labels)
    with pytest.raises(UsageError, match=r"loss became (nan|inf) in step 1; try a mask.learning_rate below 0.02"):
        Scores(options=OPTIONS, checkpoint=tmp_path / "c").sparsify(tiny_cnn(), layers(), huge)


def test_gradients_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    model = RootNet()
    model.load_state_dict(shallow_net().state_dict())
    eligible = survey_layers(model, probe_model(model, (3, 8, 8)), pattern=PATTERN).eligible
    with pytest.raises(UsageError, match=r"gradients of conv2.weight became NaN or infinite in epoch 1; try"):
        Scores(options=OPTIONS, checkpoint=tmp_path / "c").sparsify(model, eligible, labelled_by_network(96, seed=1))


def test_a_checkpoint_is_of_one_run_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "learn.checkpoint"
    assert read_checkpoint(path, "a") is None
    write_checkpoint(path, "a", {"step": 3, "scores": {"w": torch.arange(3.0)}})
    state = read_checkpoint(path, "a")
    assert state is not None
    assert state["step"] == 3
    assert state["scores"]["w"].tolist() == [0, 1, 2]
    assert read_checkpoint(path, "b") is None
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole[:70], whole[:200] + b"x" + whole[201:]):
        path.write_bytes(damaged)
        assert read_checkpoint(path, "a") is None


def test_a_checkpoint_of_other_options_is_not_continued(tmp_path: Path) -> None:
    expected = run(tmp_path / "fresh", OPTIONS.model_copy(update={"seed": 5}))
    run(tmp_path / "used")
    found = run(tmp_path / "used", OPTIONS.model_copy(update={"seed": 5}))
    assert found.history == expected.history


def test_the_key_sees_the_network(tmp_path: Path) -> None:
    other = tiny_cnn(seed=3)
    assert state_fingerprint(other) != state_fingerprint(tiny_cnn())
    train = labelled_by_network(96, seed=1)
    run(tmp_path)
    continued = Scores(options=OPTIONS, checkpoint=tmp_path / "learn.checkpoint").sparsify(other, layers(), train)
    fresh = Scores(options=OPTIONS, checkpoint=tmp_path / "other").sparsify(other, layers(), train)
    assert continued.history == fresh.history


def test_a_checkpoint_of_other_code_is_not_continued(tmp_path: Path) -> None:
    class Leaky(TinyCnn):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.block(torch.nn.functional.leaky_relu(self.bn(self.conv(x)))).mean((2, 3)))

    other, train = Leaky().eval(), labelled_by_network(96, seed=1)
    other.load_state_dict(tiny_cnn().state_dict())
    interrupted_after_an_epoch(tmp_path / "c", tiny_cnn())
    continued = Scores(options=OPTIONS, checkpoint=tmp_path / "c").sparsify(other, layers(), train)
    fresh = Scores(options=OPTIONS, checkpoint=tmp_path / "other").sparsify(other, layers(), train)
    assert continued.history == fresh.history


def interrupted_after_an_epoch(checkpoint: Path, model: torch.nn.Module) -> None:
    def interrupt(description: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scores(options=OPTIONS, checkpoint=checkpoint, progress=interrupt).sparsify(
            model, layers(), labelled_by_network(96, seed=1)
        )
    assert checkpoint.exists()
