import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from masksparse_deploy.core.config import BakeOptions, ModelOptions
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.core.progress import silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn import attach_masks
from masksparse_deploy.learn.attach import Method
from masksparse_deploy.learn.model import state_fingerprint, weights_fingerprint
from masksparse_deploy.learn.selector import Selector
from masksparse_deploy.pipeline.baking import bake_model
from tests.learn.attaching import ALL_WEIGHTS, EXAMPLE, METHODS, described, train, user_model
from tests.learn.networks import labelled_by_network
from tests.models.tiny_cnn import TinyCnn, example_images, tiny_cnn
from tests.project import FACTORY
from tests.requirements import REPOSITORY


@pytest.mark.parametrize("method", METHODS)
def test_the_network_comes_back_as_it_was(method: Method) -> None:
    model = user_model()
    before = described(model)
    with attach_masks(model, EXAMPLE, method=method, include=["*", "fc"]) as masks:
        assert set(masks.selectors) == ALL_WEIGHTS
        train(masks)
        assert described(model) != before
    assert described(model) == before


def test_each_part_of_the_description_tells_a_change() -> None:
    def retyped(model: TinyCnn) -> None:
        model.block.conv1.__class__ = type("Other", (nn.Conv2d,), {})

    def reordered(model: TinyCnn) -> None:
        model.fc._parameters["weight"] = model.fc._parameters.pop("weight")

    def parametrized(model: TinyCnn) -> None:
        parametrize.register_parametrization(model.fc, "weight", nn.Identity())

    def counted(model: TinyCnn) -> None:
        assert model.bn.num_batches_tracked is not None
        model.bn.num_batches_tracked += 1

    faults = [
        retyped,
        reordered,
        parametrized,
        counted,
        lambda model: model.bn.running_mean.add_(1e-6),
        lambda model: model.fc.requires_grad_(False),
        lambda model: model.block.bn1.train(),
        lambda model: setattr(model.fc, "left_over", 1),
    ]
    for fault in faults:
        model = user_model()
        before = described(model)
        fault(model)
        assert described(model) != before


@pytest.mark.parametrize("method", METHODS)
def test_an_error_in_the_training_leaves_nothing_behind(method: Method) -> None:
    model = user_model()
    before = described(model)
    with (
        pytest.raises(ZeroDivisionError),
        attach_masks(model, EXAMPLE, method=method) as masks,
    ):
        train(masks, steps=1)
        raise ZeroDivisionError
    assert described(model) == before


def test_only_the_masks_take_gradients_and_move() -> None:
    model = tiny_cnn()
    weights = weights_fingerprint(model)
    masks = attach_masks(model, EXAMPLE)
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in moving} == {id(parameter) for parameter in masks.parameters()}
    starts = [parameter.detach().clone() for parameter in masks.parameters()]
    train(masks)
    assert all(not torch.equal(now, start) for now, start in zip(masks.parameters(), starts, strict=True))
    masks.detach()
    assert weights_fingerprint(model) == weights


@pytest.mark.parametrize("method", METHODS)
def test_learning_lowers_the_loss_and_moves_the_masks(method: Method) -> None:
    masks = attach_masks(tiny_cnn(), EXAMPLE, method=method)
    start = {name: mask.digest for name, mask in masks.masks().items()}
    losses = train(masks, steps=30)
    # Rows are drawn at random in every step, so that single losses of gumbel say little.
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert all(mask.digest != start[name] for name, mask in masks.masks().items())


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_computes_with_the_hardened_masks(method: Method) -> None:
    model, images = tiny_cnn(), torch.from_numpy(example_images())
    masks = attach_masks(model, EXAMPLE, method=method)
    train(masks)
    model.eval()
    with torch.inference_mode():
        answers = model(images)
        assert torch.equal(model(images), answers)
    found = masks.mask_set()
    masks.detach()
    with torch.inference_mode():
        for name, mask in found.layers.items():
            model.get_parameter(name).mul_(torch.tensor(mask.keep))
        for name, values in found.statistics.items():
            model.get_buffer(name).copy_(torch.tensor(values))
        assert torch.equal(model(images), answers)


def test_selectors_follow_the_mode_of_their_layers() -> None:
    model = user_model()
    with attach_masks(model, EXAMPLE, method="gumbel", include=["*", "fc"]) as masks:
        training = {name for name, selector in masks.selectors.items() if selector.training}
    assert training == ALL_WEIGHTS - {"fc.weight"}


def test_the_mask_set_can_be_had_before_and_after_and_is_of_the_network_as_it_was() -> None:
    model = tiny_cnn()
    source = state_fingerprint(model)
    with attach_masks(model, EXAMPLE, exclude=["block.conv2"]) as masks:
        train(masks)
        before = masks.mask_set()
    after = masks.mask_set()
    assert before.digest == after.digest
    assert before.source_sha256 == source == state_fingerprint(model)
    assert before.method == "scores"
    assert {layer.name for layer in before.skipped} == {"conv", "block.conv2", "fc"}
    assert set(before.statistics) == {name for name, _ in model.named_buffers() if name.endswith(("_mean", "_var"))}


def test_statistics_that_did_not_move_stay_out() -> None:
    model = tiny_cnn()
    with attach_masks(model, EXAMPLE) as masks:
        model(torch.ones(2, 3, 8, 8)).sum().backward()
    assert masks.mask_set().statistics == {}


def test_the_same_training_gives_the_same_masks() -> None:
    digests = set()
    for _ in range(2):
        with attach_masks(tiny_cnn(), EXAMPLE, method="gumbel") as masks:
            train(masks)
        digests.add(masks.mask_set().digest)
    assert len(digests) == 1


def test_layers_and_steps_draw_different_noise() -> None:
    with attach_masks(nn.Sequential(TwinConvolutions()), EXAMPLE, method="gumbel") as masks:
        masks.model.train()
        masks.begin_step(0.0, seed=0)
        first, second = (selector.mask() for selector in masks.selectors.values())
        assert not torch.equal(first, second)
        masks.begin_step(0.0, seed=1)
        assert not torch.equal(first, next(iter(masks.selectors.values())).mask())


class TwinConvolutions(nn.Module):
    """Two convolutions with equal weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = copy.deepcopy(self.first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.stem(x))).mean((2, 3))


def test_copies_live_their_own_lives() -> None:
    model = tiny_cnn()
    masks = attach_masks(model, EXAMPLE)
    copied, bare = copy.deepcopy(masks), copy.deepcopy(model)
    train(copied)
    assert copied.mask_set().digest != masks.mask_set().digest
    masks.detach()
    assert [name for name, module in model.named_modules() if isinstance(module, Selector)] == []
    # The copies still carry theirs, although the original's are off.
    images = torch.from_numpy(example_images())
    with torch.inference_mode():
        magnitude = bare(images)
        for name, mask in masks.masks().items():
            model.get_parameter(name).mul_(torch.tensor(mask.keep))
        assert torch.equal(model(images), magnitude)
    copied.detach()
    assert described(copied.model)[1:3] == described(tiny_cnn())[1:3]
    assert state_fingerprint(copied.model) == state_fingerprint(tiny_cnn())


def test_detaching_twice_does_nothing_more() -> None:
    model = tiny_cnn()
    masks = attach_masks(model, EXAMPLE)
    masks.detach()
    with torch.no_grad():
        model.fc.bias.add_(1.0)
    model.train()
    masks.detach()
    assert model.training
    assert masks.mask_set().source_sha256 == state_fingerprint(tiny_cnn())


def test_masks_can_be_attached_again() -> None:
    model = tiny_cnn()
    attach_masks(model, EXAMPLE).detach()
    with attach_masks(model, EXAMPLE, pattern="1:4") as masks:
        assert {mask.keep.mean() for mask in masks.masks().values()} == {0.25}


class SingleConvolution(nn.Conv2d):
    """A network that is itself a layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).mean((2, 3))


def test_a_network_that_is_itself_a_layer() -> None:
    model = SingleConvolution(8, 10, 3)
    before = described(model)
    with attach_masks(model, torch.zeros(1, 8, 8, 8)) as masks:
        assert list(masks.masks()) == ["weight"]
        assert int((model.weight != 0).sum()) == model.weight.numel() // 2
    assert described(model) == before


@pytest.mark.parametrize("method", METHODS)
def test_the_written_masks_can_be_baked(tmp_path: Path, method: Method) -> None:
    model = tiny_cnn()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with attach_masks(model, EXAMPLE, method=method) as masks:
        train(masks)
    masks.mask_set().write(tmp_path / "masks.safetensors")
    assert read_mask_set(tmp_path / "masks.safetensors").digest == masks.mask_set().digest
    report = bake_model(
        ModelOptions(factory=FACTORY, weights="model.safetensors"),
        tmp_path / "masks.safetensors",
        BakeOptions(),
        Samples(example_images(16)),
        folder=tmp_path,
        out=tmp_path,
        progress=silent,
    )
    assert {layer.weight_name for layer in report.layers} == set(masks.selectors)


def test_the_lines_in_the_documentation_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPOSITORY / "docs" / "library.md").read_text(encoding="utf-8")
    loop, settling, choice = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    model = tiny_cnn()
    before = described(model)
    data = labelled_by_network(64, seed=3)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    loader = list(zip(images.split(16), labels.split(16), strict=True))
    monkeypatch.chdir(tmp_path)
    exec(loop, {"model": model, "images": images, "loader": loader})
    assert described(model) == before
    assert read_mask_set(tmp_path / "masks.safetensors").source_sha256 == state_fingerprint(model)

    with attach_masks(model, images, method="gumbel") as masks:
        train(masks)
        drawn = masks.mask_set()
        exec(settling, {"torch": torch, "model": model, "masks": masks, "loader": loader})
        settled = masks.mask_set()
    assert all(settled.layers[name].digest == mask.digest for name, mask in drawn.layers.items())
    assert all(not np.array_equal(settled.statistics[name], values) for name, values in drawn.statistics.items())

    network = Documented()
    exec(choice, {"attach_masks": attach_masks, "model": network, "images": images})
    assert [name for name, module in network.named_modules() if parametrize.is_parametrized(module)] == ["conv", "classifier.0"]


class Documented(nn.Module):
    """A network with the layer names that the documentation uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 8, 3))
        self.conv = nn.Conv2d(8, 8, 3)
        self.classifier = nn.Sequential(nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.conv(self.layer1(self.stem(x))).mean((2, 3)))
