"""New weights under the same masks, on CIFAR-10's ResNet-20, as a command.

    python tools/update_acceptance.py --data ../shared/data --steps 300 --out out/update

takes the pretrained network through the chain with magnitude masks and new batch-norm statistics, trains all its dense weights
on for a few hundred steps (no mask, no distillation: what a user does between two releases), and updates: the same masks on
the new weights. Prints accuracies, bounds and budgets as Markdown tables. What is there already is not made again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional

from masksparse_deploy.core.config import DeployConfig, MaskOptions
from masksparse_deploy.core.files import write_atomic
from masksparse_deploy.core.samples import read_split
from masksparse_deploy.learn.augmentation import augment
from masksparse_deploy.learn.model import load_model
from masksparse_deploy.pipeline.config_file import read_config
from tools.cifar10_acceptance import prepare

__all__ = ["fine_tune", "main"]

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4


def fine_tune(config: DeployConfig, folder: Path, out: Path, *, steps: int, learning_rate: float, batch_size: int) -> None:
    """Train all weights of the dense network on for `steps` steps of SGD, and write the checkpoint `out`.

    Args:
        config: names the network and the training images.
        folder: where the configuration lies.
        out: a safetensors file.
        steps: batches, in random order with replacement between epochs.
        learning_rate: constant.
        batch_size: images in a batch, shifted and mirrored.
    """
    model = load_model(config.model, folder).train().requires_grad_(True)
    train = read_split(config.data, "train", folder)
    generator = np.random.default_rng(0)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for step in range(steps):
        chosen = generator.integers(len(train), size=batch_size)
        images = augment(torch.from_numpy(train.images[chosen]), "shift-mirror", generator)
        loss = functional.cross_entropy(model(images), torch.from_numpy(train.labels[chosen]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    write_atomic(out, save(model.state_dict()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, prepare, train, update, print."""
    parser = argparse.ArgumentParser(description="Update a pruned CIFAR-10 ResNet-20 to fine-tuned weights.")
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, weights/ and read_cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-count", type=int, default=20_000)
    parser.add_argument("--test-count", type=int, default=10_000)
    given = parser.parse_args(arguments)
    mask = MaskOptions(method="magnitude", augment="shift-mirror", calibration_count=2000)
    path = given.out / "run" / "deploy.yaml"
    if not path.is_file():
        prepare(given.data, path.parent, mask, train_count=given.train_count, test_count=given.test_count)
    config = read_config(path)
    weights = given.out / "new.safetensors"
    if not weights.is_file():
        fine_tune(
            config,
            path.parent,
            weights,
            steps=given.steps,
            learning_rate=given.learning_rate,
            batch_size=given.batch_size,
        )


if __name__ == "__main__":
    main()
