"""What the tests of attached masks share."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from masksparse_deploy.learn import AttachedMasks
from masksparse_deploy.learn.attach import Method
from masksparse_deploy.learn.model import state_fingerprint
from tests.learn.networks import labelled_by_network
from tests.models.tiny_cnn import TinyCnn, example_images, tiny_cnn

EXAMPLE = torch.zeros(1, 3, 8, 8)
METHODS: list[Method] = ["scores", "gumbel"]
ALL_WEIGHTS = {"block.conv1.weight", "block.conv2.weight", "block.shortcut.0.weight", "fc.weight"}


def described(model: nn.Module) -> list[object]:
    """Everything about a network that a user could find changed."""
    return [
        state_fingerprint(model),
        list(model.state_dict()),
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()],
        [(name, buffer.tolist()) for name, buffer in model.named_buffers()],
        [name for name, module in model.named_modules() if parametrize.is_parametrized(module)],
        [sorted(vars(module)) for module in model.modules()],
    ]


def train(masks: AttachedMasks, *, steps: int = 6, learning_rate: float = 0.05) -> list[float]:
    """A user's loop, with batch norm in training mode."""
    images = torch.from_numpy(example_images(64, seed=3))
    labels = torch.from_numpy(labelled_by_network(64, seed=3).labels)
    optimizer = torch.optim.AdamW(masks.parameters(), lr=learning_rate, weight_decay=0.0)
    masks.model.train()
    losses = []
    for step in range(steps):
        masks.begin_step(step / steps, seed=step)
        loss = functional.cross_entropy(masks.model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def user_model() -> TinyCnn:
    """With flags and modes that differ from one another, and a bias behind a weight that is masked."""
    model = tiny_cnn()
    model.bn.requires_grad_(False)
    model.block.train()
    model.block.bn1.eval()
    return model
