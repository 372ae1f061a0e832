import pytest
import torch
from torch import nn

from masksparse_deploy.learn.batch_norm import batch_norms
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.teacher import teacher_copy
from tests.models.cifar_resnet import resnet20
from tests.models.tiny_cnn import TinyCnn, tiny_cnn

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Branching(TinyCnn):
    """Cannot be traced: it looks at values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.mean() > 0 else -x)


class Disguised(TinyCnn):
    """Is traced to something else than it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1 if isinstance(x, torch.Tensor) else 2)


class Staying(TinyCnn):
    """Keeps a batch norm in training mode, so that answers depend on the batch."""

    def train(self, mode: bool = True) -> "Staying":
        super().train(mode)
        self.block.bn1.training = True
        return self


class Selective(TinyCnn):
    """Is traced to what no image goes through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if isinstance(x, torch.Tensor) else self.fc(x)


class Hooked(TinyCnn):
    """Has a hook that the images compared do not set off: tracing would leave it out unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, inputs, output: output.clamp(max=1e6))


class HookedInside(TinyCnn):
    """The same at a batch norm, which folding would leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.bn.register_forward_pre_hook(lambda module, inputs: (inputs[0].clamp(max=1e6),))


class Shared(nn.Module):
    """Neither convolution may take up its batch norm: one is called twice, the other's output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.used = nn.Conv2d(3, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norms[0](self.twice(self.twice(x)))
        y = self.used(x)
        return (self.norms[1](y) + y).mean((2, 3))


def with_statistics(model: nn.Module) -> nn.Module:
    for module in batch_norms(model).values():
        assert module.running_mean is not None and module.running_var is not None
        nn.init.uniform_(module.running_mean, -1, 1)
        nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize("make", [tiny_cnn, resnet20])
def test_batch_norms_are_folded_and_the_answers_stay(make: type[nn.Module]) -> None:
    model = with_statistics(make())
    before = state_fingerprint(model)
    teacher = teacher_copy(model, IMAGES)
    others = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(others)
        # Float32 with about twenty layers, each with a relative rounding error of some 1e-6.
        torch.testing.assert_close(teacher(others), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert not batch_norms(teacher)
    assert batch_norms(model)
    assert state_fingerprint(model) == before


@pytest.mark.parametrize("network", [Branching, Disguised, Selective, Hooked, HookedInside, Shared])
def test_what_cannot_be_folded_safely_is_copied(network: type[nn.Module]) -> None:
    model = with_statistics(network())
    teacher = teacher_copy(model, IMAGES)
    assert set(batch_norms(teacher)) == set(batch_norms(model))
    with torch.no_grad():
        assert torch.equal(teacher(IMAGES), model(IMAGES))


def test_a_batch_norm_in_training_mode_is_not_folded() -> None:
    model = with_statistics(Staying())
    before = state_fingerprint(model)
    teacher = teacher_copy(model, IMAGES)
    assert state_fingerprint(model) == before
    # The others still are.
    assert {name: module.training for name, module in batch_norms(teacher).items()} == {"block.bn1": True}
    with torch.no_grad():
        expected = model(IMAGES)
        # Float32 with a few layers, as above.
        torch.testing.assert_close(teacher(IMAGES), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
