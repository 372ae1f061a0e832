"""Trains the dense network and writes model.safetensors: python train.py."""

from pathlib import Path

import numpy as np
import torch
from data import test, train
from model import DigitsNet, digits_net
from safetensors.torch import save_file
from torch.nn import functional

EPOCHS = 60
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.01
SEED = 0


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image moved by -1, 0 or 1 pixels in both directions; the border repeats."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = torch.arange(height) + torch.randint(3, (count, 1), generator=generator)
    columns = torch.arange(width) + torch.randint(3, (count, 1), generator=generator)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def fit(model: DigitsNet, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Train on shifted images with a one-cycle schedule; the last weights count, nothing is selected."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * steps)
    generator = torch.Generator().manual_seed(SEED)
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator)[: steps * BATCH_SIZE].split(BATCH_SIZE):
            logits = model(shifted(images[batch], generator))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}   loss {total / steps:.4f}")
    model.eval()


def main() -> None:
    """Train, print the test accuracy, write the checkpoint beside this script."""
    torch.manual_seed(SEED)
    model = digits_net()
    fit(model, *(torch.from_numpy(array) for array in train()))
    images, labels = test()
    with torch.inference_mode():
        predicted = model(torch.from_numpy(images)).argmax(1).numpy()
    correct = int(np.count_nonzero(predicted == labels))
    print(f"test accuracy {correct} of {len(labels)} = {correct / len(labels):.2%}")
    save_file(model.state_dict(), Path(__file__).with_name("model.safetensors"))


if __name__ == "__main__":
    main()
