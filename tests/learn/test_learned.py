import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.core.errors import MachineError, OutputError, UsageError
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.attach import Method
from masksparse_deploy.learn.learned import Learned
from masksparse_deploy.learn.model import state_fingerprint
from tests.learn.learning import OPTIONS, PATTERN, TRAIN, content, layers, run
from tests.learn.networks import RootNet, labelled_by_network, shallow_net
from tests.models.tiny_cnn import TinyCnn, tiny_cnn

METHODS: tuple[Method, ...] = ("scores", "gumbel")


@pytest.mark.parametrize("method", METHODS)
def test_masks_keep_exactly_n_of_m_and_the_network_stays_bit_identical(tmp_path: Path, method: Method) -> None:
    model = tiny_cnn()
    state, modes = {n: v.clone() for n, v in model.state_dict().items()}, [m.training for m in model.modules()]
    random_state, order = torch.get_rng_state(), list(model.state_dict())
    outcome = run(tmp_path / "c", method=method, model=model)
    for mask in outcome.masks.values():
        assert (mask.keep.reshape(len(mask.keep), -1, 4, *mask.keep.shape[2:]).sum(2) == 2).all()
    assert list(model.state_dict()) == order
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert len(outcome.history) == 3
    assert set(outcome.statistics) == {n for n in state if n.endswith(("running_mean", "running_var"))}


@pytest.mark.parametrize("method", METHODS)
def test_learning_lowers_the_loss_and_moves_the_masks(tmp_path: Path, method: Method) -> None:
    # What gumbel draws is noise at first, so that it needs longer to show.
    outcome = run(tmp_path / "c", {"epochs": 8 if method == "scores" else 20, "augment": "none"}, method=method)
    assert outcome.history[-1].loss < outcome.history[0].loss
    magnitude = PATTERN.keep_largest(np.abs(tiny_cnn().block.conv2.weight.detach().numpy()), group_axis=1)
    assert not np.array_equal(outcome.masks["block.conv2.weight"].keep, magnitude)


@pytest.mark.parametrize(
    ("change", "epochs"),
    [
        ({"distillation": 0.0}, 3),
        ({"distillation": 1.0}, 3),
        ({"autocast": "bfloat16"}, 3),
        ({"max_steps": 4}, 2),
        ({"batch_size": 1000}, 3),
        ({"batch_size": 31, "max_steps": 1}, 1),
        ({"batch_size": 16, "accumulate": 3}, 3),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_options(tmp_path: Path, method: Method, change: dict[str, object], epochs: int) -> None:
    outcome = run(tmp_path / "c", change, method=method)
    assert set(outcome.masks) == {layer.weight_name for layer in layers(tiny_cnn())}
    assert len(outcome.history) == epochs


def test_accumulated_batches_are_one_step_of_a_larger_batch(tmp_path: Path) -> None:
    same = {"batch_norm": False, "augment": "none"}
    whole = run(tmp_path / "whole", {**same, "batch_size": 32})
    parts = run(tmp_path / "parts", {**same, "batch_size": 16, "accumulate": 2})
    # The mean of two means of 16 float32 losses of size one, each with a rounding error of at most a few units of 6e-8.
    assert [p.loss for p in parts.history] == pytest.approx([p.loss for p in whole.history], abs=1e-5)
    assert content(parts)[0] == content(whole)[0]


def test_a_launchers_variable_does_not_overrule_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = {"batch_size": 16, "accumulate": 2}
    expected = content(run(tmp_path / "a", change))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert content(run(tmp_path / "b", change)) == expected


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (1.0, 3.0), (0.3, 2.0)])
def test_the_loss_is_the_documented_one(tmp_path: Path, share: float, temperature: float) -> None:
    change = {"distillation": share, "temperature": temperature, "batch_norm": False, "augment": "none"}
    dense, masked = tiny_cnn(), tiny_cnn()
    with torch.inference_mode():
        for layer in layers(dense):
            weight = masked.get_parameter(layer.weight_name)
            # Before the first step the scores are those of magnitude.
            weight.mul_(torch.from_numpy(PATTERN.keep_largest(np.abs(weight.detach().numpy()), group_axis=1)))
        images, labels = torch.from_numpy(TRAIN.images), torch.from_numpy(TRAIN.labels)
        target, logits = dense(images).double(), masked(images).double()
    soft = torch.softmax(target / temperature, 1)
    divergence = (soft * (soft.log() - torch.log_softmax(logits / temperature, 1))).sum(1).mean()
    entropy = -torch.log_softmax(logits, 1)[torch.arange(96), labels].mean()
    expected = (1 - share) * entropy + share * temperature**2 * divergence
    found = run(tmp_path / "c", {**change, "batch_size": 96, "max_steps": 1}).history[0].loss
    # Float32 against float64: log-probabilities of size one with errors of about 1e-6, multiplied by at most T^2 = 9.
    assert found == pytest.approx(expected.item(), abs=1e-5)


def test_labels_are_not_needed_with_distillation_alone(tmp_path: Path) -> None:
    shuffled = Samples(TRAIN.images, TRAIN.labels[::-1].copy())
    runs = [
        run(tmp_path / str(index), {"distillation": 1.0}, train=train)
        for index, train in enumerate((TRAIN, shuffled, Samples(TRAIN.images)))
    ]
    assert content(runs[0]) == content(runs[1]) == content(runs[2])


def test_cross_entropy_without_labels_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.train has no labels, and mask.distillation 0.5 .* set mask.distillation: 1, "):
        run(tmp_path / "c", train=Samples(TRAIN.images))


def test_frozen_statistics(tmp_path: Path) -> None:
    assert run(tmp_path / "c", {"batch_norm": False}).statistics == {}


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(tmp_path: Path, method: Method) -> None:
    runs = [content(run(tmp_path / str(i), {"seed": seed}, method=method)) for i, seed in enumerate((1, 1, 2))]
    assert runs[0] == runs[1] != runs[2]


def test_a_loss_that_is_not_finite_is_an_error_with_its_step(tmp_path: Path) -> None:
    # Finite images, whose sums in the first convolution are beyond float32.
    huge = Samples(np.sign(TRAIN.images) * np.float32(3e38), TRAIN.labels)
    with pytest.raises(UsageError, match=r"loss became (nan|inf) in step 1; try a mask.learning_rate below 0.01"):
        run(tmp_path / "c", train=huge)
    one = TRAIN.images.copy()
    one[17] = huge.images[17]
    steps: list[int] = []
    with pytest.raises(UsageError, match=r"loss became (nan|inf) in step 2;"):
        # With this seed the second of three batches has the image; the losses are looked at after the third.
        run(
            tmp_path / "d",
            {"augment": "none", "seed": 2},
            train=Samples(one, TRAIN.labels),
            progress=lambda *a: steps.append(a[1]),
        )
    assert steps == [1, 2, 3]


def test_gradients_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    model = RootNet()
    model.load_state_dict(shallow_net().state_dict())
    with pytest.raises(UsageError, match=r"gradients of conv2.weight became NaN or infinite by step 3; try"):
        run(tmp_path / "c", model=model)


def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mask.autocast float16 needs a GPU; on the CPU use bfloat16, or none"):
        run(tmp_path / "c", {"autocast": "float16"})


def test_a_missing_gpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match=r"mask.device is cuda, and PyTorch finds no GPU"):
        run(tmp_path / "c", {"device": "cuda"})


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        run(tmp_path / "file" / "c")


def interrupt_after(step: int) -> Progress:
    def progress(description: str, done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("change", "last_step", "first_step"),
    [
        # Three steps are an epoch; the interruption comes before the state after its step is written.
        ({"checkpoint_steps": 2}, 8, 7),
        ({"checkpoint_steps": 2}, 3, 3),
        ({"checkpoint_steps": 1}, 6, 6),
        ({"checkpoint_steps": 1, "batch_size": 16, "accumulate": 2, "autocast": "bfloat16"}, 5, 5),
        ({}, 5, 4),
        ({}, 2, 1),
    ],
)
def test_interrupted_learning_goes_on_in_mid_epoch(
    tmp_path: Path, method: Method, change: dict[str, object], last_step: int, first_step: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", change, method=method, progress=interrupt_after(last_step))
    seen: list[int] = []
    continued = run(tmp_path / "cut", change, method=method, progress=lambda text, done, total: seen.append(done))
    assert seen == list(range(first_step, 10))
    assert content(continued) == content(run(tmp_path / "whole", change, method=method))


def test_the_progress_is_that_of_the_whole_learning(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    run(tmp_path / "c", progress=lambda *shown: seen.append(shown))
    assert seen == [("learning masks", step, 9) for step in range(1, 10)]


def test_how_often_the_state_is_saved_does_not_matter_to_what_is_saved(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", {"checkpoint_steps": 4}, progress=interrupt_after(6))
    seen: list[int] = []
    run(tmp_path / "c", {"checkpoint_steps": 5}, progress=lambda text, done, total: seen.append(done))
    assert seen[0] == 5


class Leaky(TinyCnn):
    """The weights of TinyCnn, and other code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block(torch.nn.functional.leaky_relu(self.bn(self.conv(x)))).mean((2, 3)))


def leaky() -> Leaky:
    model = Leaky().eval()
    model.load_state_dict(tiny_cnn().state_dict())
    return model


@pytest.mark.parametrize(
    ("change", "method", "model", "train"),
    [
        ({"seed": 5}, "scores", tiny_cnn(), TRAIN),
        ({}, "gumbel", tiny_cnn(), TRAIN),
        ({}, "scores", tiny_cnn(seed=3), TRAIN),
        ({}, "scores", leaky(), TRAIN),
        ({}, "scores", tiny_cnn(), labelled_by_network(96, seed=2)),
    ],
    ids=["options", "method", "weights", "code", "images"],
)
def test_a_checkpoint_of_another_run_is_not_continued(
    tmp_path: Path, change: dict[str, object], method: Method, model: nn.Module, train: Samples
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", progress=interrupt_after(4))
    assert (tmp_path / "c").exists()
    seen: list[int] = []
    run(
        tmp_path / "c",
        change,
        method=method,
        model=model,
        train=train,
        progress=lambda text, done, total: seen.append(done),
    )
    assert seen[0] == 1


def test_a_checkpoint_of_other_layers_is_not_continued(tmp_path: Path) -> None:
    # An assignment can change under the same name, so that the options stay.
    model = tiny_cnn()
    learned = Learned(options=OPTIONS, method="scores", checkpoint=tmp_path / "c", progress=interrupt_after(4))
    with pytest.raises(KeyboardInterrupt):
        learned.sparsify(model, layers(model), TRAIN)
    seen: list[int] = []
    again = dataclasses.replace(learned, progress=lambda text, done, total: seen.append(done))
    assert len(again.sparsify(model, layers(model)[1:], TRAIN).masks) == len(layers(model)) - 1
    assert seen[0] == 1


def test_weights_tell_networks_apart() -> None:
    assert state_fingerprint(tiny_cnn(seed=3)) != state_fingerprint(tiny_cnn())
    assert state_fingerprint(leaky()) == state_fingerprint(tiny_cnn())


def test_the_course_of_learning_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", log_folder=tmp_path / "log", progress=interrupt_after(5))
    outcome = run(tmp_path / "c", log_folder=tmp_path / "log")
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "learning_rate", "changed_share"}
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [3, 6, 9]
    # The file holds float32.
    assert [event.value for event in losses] == pytest.approx([point.loss for point in outcome.history], rel=1e-6)
    assert all(0 < event.value < 0.01 * 1.0001 for event in events.Scalars("learning_rate"))
    before = {
        name: PATTERN.keep_largest(np.abs(tiny_cnn().get_parameter(name).detach().numpy()), group_axis=1)
        for name in outcome.masks
    }
    changed = sum(int((mask.keep != before[name]).sum()) for name, mask in outcome.masks.items())
    assert events.Scalars("changed_share")[-1].value == pytest.approx(changed / sum(k.size for k in before.values()))


def test_without_tensorboard_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MachineError, match=r"needed for mask.tensorboard .*masksparse-deploy\[tensorboard\]"):
        run(tmp_path / "c", log_folder=tmp_path / "log")
