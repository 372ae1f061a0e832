"""A dense CIFAR-10 network from fresh weights, where no pretrained checkpoint is published.

    python -m tools.train_cifar --data ../shared/data --network wide_resnet8 --epochs 12 --out out/wide_resnet8.safetensors

SGD with Nesterov momentum, one-cycle schedule, random shifts and mirroring, bfloat16 arithmetic. Prints the test accuracy.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.files import write_atomic
from masksparse_deploy.learn.augmentation import augment
from tools.cifar10_acceptance import MEAN, MODEL_FILE, STD

__all__ = ["main", "train"]

_PEAK_LEARNING_RATE = 0.4
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, epochs: int, batch_size: int, seed: int) -> None:
    """Train in place.

    Args:
        network: from normalised float32 images to logits.
        images: float32 (count, channels, height, width).
        labels: int64 (count,).
        epochs: passes over the images.
        batch_size: images in a step.
        seed: of the order of the images and of their shifts.
    """
    generator = np.random.default_rng(seed)
    steps = len(images) // batch_size
    optimizer = torch.optim.SGD(
        network.parameters(), lr=_PEAK_LEARNING_RATE, momentum=_MOMENTUM, nesterov=True, weight_decay=_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_LEARNING_RATE, total_steps=epochs * steps)
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for epoch in range(epochs):
        order = generator.permutation(len(images))
        for step in range(steps):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            batch = augment(images[chosen], "shift-mirror", generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(network(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss of the last batch {loss.item():.3f}", file=sys.stderr, flush=True)
    network.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, train, write the checkpoint, print the accuracy."""
    parser = argparse.ArgumentParser(description="Train a dense CIFAR-10 network from fresh weights.")
    parser.add_argument("--data", type=Path, required=True, help="folder with read_cifar10.py")
    parser.add_argument("--network", required=True, help=f"a callable of {MODEL_FILE.name}, as wide_resnet8")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-count", type=int, default=50_000, help="the first so many training images")
    parser.add_argument("--test-count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="receives the state dict, as .safetensors")
    given = parser.parse_args(arguments)
    torch.manual_seed(given.seed)
    network = load_factory(f"{MODEL_FILE.stem}:{given.network}", MODEL_FILE.parent)()
    start = time.process_time()
    images, labels = (array[: given.train_count] for array in load_factory("read_cifar10:train_set", given.data)()[:2])
    train(
        network,
        _normalised(images),
        torch.from_numpy(labels.astype(np.int64)),
        epochs=given.epochs,
        batch_size=given.batch_size,
        seed=given.seed,
    )
    write_atomic(given.out, save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}))
    images, labels = (array[: given.test_count] for array in load_factory("read_cifar10:test_set", given.data)()[:2])
    with torch.inference_mode():
        answers = torch.cat([network(batch).argmax(1) for batch in _normalised(images).split(500)]).numpy()  # type: ignore[no-untyped-call]
    correct = int((answers == labels).sum())
    print(f"{given.network}: {correct} of {len(labels)} correct, {time.process_time() - start:.0f} s of processor time")


def _normalised(images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


if __name__ == "__main__":
    main()
