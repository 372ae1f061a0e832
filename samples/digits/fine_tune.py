"""Trains the dense network on for a few epochs, as between two releases: python fine_tune.py new.safetensors."""

import argparse
from pathlib import Path

import torch
from data import test, train
from model import digits_net
from safetensors.torch import load_file, save_file
from torch.nn import functional
from train import BATCH_SIZE, shifted

EPOCHS = 5
LEARNING_RATE = 3e-4
SEED = 1


def main() -> None:
    """Go on from model.safetensors, print the test accuracy, write another checkpoint."""
    parser = argparse.ArgumentParser(description="Train the dense network on for a few epochs.")
    parser.add_argument("out", type=Path, help="the new checkpoint")
    out = parser.parse_args().out
    model = digits_net()
    model.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
    images, labels = (torch.from_numpy(array) for array in train())
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
            loss = functional.cross_entropy(model(shifted(images[batch], generator)), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    images, labels = (torch.from_numpy(array) for array in test())
    with torch.inference_mode():
        correct = int((model(images).argmax(1) == labels).sum())
    print(f"test accuracy {correct} of {len(labels)} = {correct / len(labels):.2%}")
    save_file(model.state_dict(), out)


if __name__ == "__main__":
    main()
