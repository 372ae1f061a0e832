"""Learns 2:4 masks in a training loop of one's own, on a ResNet-18 or a small network: python run.py --help."""

import argparse
import copy
import importlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.learn import attach_masks

STEPS = 60
BATCH_SIZE = 16
LEARNING_RATE = 0.05
IMAGE_SHAPE = (3, 64, 64)


def small_network() -> nn.Module:
    """Three convolutions and a classifier with weights that are the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


def load_network(source: str, weights: str | None) -> nn.Module:
    """The ResNet-18 of torchvision or timm, or the small network.

    Args:
        source: "torchvision", "timm" or "small"; "auto" takes the first that is installed.
        weights: trained weights to download, by the source's own name for them; None draws random ones.
    """
    if source == "auto":
        source = next((name for name in ("torchvision", "timm") if importlib.util.find_spec(name)), "small")
    print(f"network: {source}, {f'weights {weights}' if weights else 'random weights'}")
    torch.manual_seed(0)
    if source == "torchvision":
        return importlib.import_module("torchvision.models").resnet18(weights=weights)
    if source == "timm":
        return importlib.import_module("timm").create_model(weights or "resnet18", pretrained=weights is not None)
    if weights:
        raise SystemExit("the small network has no trained weights; use --network torchvision or timm with --weights")
    return small_network()


def synthetic_images(count: int, seed: int) -> torch.Tensor:
    """Blurred noise, so that neighbouring pixels are alike; replace it by your own data."""
    noise = torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(seed))
    return functional.avg_pool2d(noise, 5, stride=1, padding=2) * 5


def unseen_images() -> tuple[np.ndarray, np.ndarray]:
    """Images that no mask was learned on, for `masksparse bake`, and labels that stand for nothing."""
    return synthetic_images(64, seed=1).numpy(), np.zeros(64, dtype=np.int64)


def learn_masks(model: nn.Module, images: torch.Tensor, steps: int) -> MaskSet:
    """The loop: learn which weights to keep, so that the answers stay those of the dense network."""
    dense = copy.deepcopy(model)
    with attach_masks(model, images[:1]) as masks:
        optimizer = torch.optim.AdamW(masks.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        for step in range(steps):
            batch = images[torch.randperm(len(images))[:BATCH_SIZE]]
            with torch.no_grad():
                wanted = dense(batch)
            masks.begin_step(step / steps, seed=step)
            loss = functional.mse_loss(model(batch), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return masks.mask_set()


@torch.no_grad()
def deviation(model: nn.Module, masks: MaskSet, images: torch.Tensor) -> float:
    """How far the answers of the masked network are from the dense ones: |masked - dense| / |dense|, Euclidean."""
    masked = copy.deepcopy(model)
    for name, mask in masks.layers.items():
        masked.get_parameter(name).mul_(torch.tensor(mask.keep))
    dense = model(images)
    return float((masked(images) - dense).norm() / dense.norm())


def main() -> None:
    """Learn masks, compare them with magnitude masks, and write both the checkpoint and the masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=["auto", "torchvision", "timm", "small"], default="auto")
    parser.add_argument(
        "--weights", help="trained weights to download, as IMAGENET1K_V1 (torchvision) or resnet18.a1_in1k (timm)"
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("out/own_loop"))
    arguments = parser.parse_args()

    # In evaluation mode batch norm keeps its statistics, which noise would spoil.
    model = load_network(arguments.network, arguments.weights).eval()
    before = copy.deepcopy(model.state_dict())
    magnitude = learn_masks(model, synthetic_images(BATCH_SIZE, seed=0), steps=0)
    learned = learn_masks(model, synthetic_images(16 * BATCH_SIZE, seed=0), arguments.steps)

    print(f"masked: {len(learned.layers)} layers, left dense: {', '.join(layer.name for layer in learned.skipped)}")
    unseen = torch.from_numpy(unseen_images()[0])
    for name, masks in (("magnitude", magnitude), ("learned", learned)):
        print(f"answers with {name} masks: {deviation(model, masks, unseen):.1%} away from the dense ones")
    after = model.state_dict()
    unchanged = list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    print(f"network as before, bit for bit: {'yes' if unchanged else 'no'}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(after, arguments.out / "model.safetensors")
    learned.write(arguments.out / "masks.safetensors")
    print(f"wrote model.safetensors and masks.safetensors to {arguments.out}")


if __name__ == "__main__":
    main()
