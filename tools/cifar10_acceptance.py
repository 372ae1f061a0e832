"""Every method on the pretrained CIFAR-10 ResNets, as a command.

    python tools/cifar10_acceptance.py --data ../shared/data --epochs 3 --out out/cifar10
    python tools/cifar10_acceptance.py --data ../shared/data --epochs 3 --out out/sparse --method sparse-training --pattern T2:4

writes a configuration with everything it needs into the output folder (the network, its checkpoint, the images as .npz,
deploy.yaml), learns the masks and prints the accuracies as a Markdown table. `masksparse deploy out/cifar10/deploy.yaml`
runs the whole chain on the same files.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from masksparse_deploy.core.artifacts.learning import LearnReport
from masksparse_deploy.core.config import DataOptions, DeployConfig, EngineOptions, Gates, MaskOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.files import atomic_output, make_folder, write_atomic
from masksparse_deploy.learn.run import learn

__all__ = ["main", "prepare", "table"]

NETWORKS = {
    "resnet20": "cifar10_resnet20-12fca82f.safetensors",
    "resnet32": "cifar10_resnet32-d509ac18.safetensors",
}
METHODS = ("magnitude", "scores", "gumbel", "transposable", "adaprune", "sparse-training")
MODEL_FILE = Path(__file__).resolve().parents[1] / "tests" / "models" / "cifar_resnet.py"
BATCH_IMAGES = 10_000
TRAINING_BATCHES = 5
# What the checkpoints were trained with, channels R, G, B.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def prepare(
    data: Path,
    out: Path,
    mask: MaskOptions,
    *,
    network: str = "resnet20",
    train_count: int = TRAINING_BATCHES * BATCH_IMAGES,
    test_count: int = BATCH_IMAGES,
) -> Path:
    """Write a folder that `masksparse deploy` can run on, and return its deploy.yaml.

    Args:
        data: the folder with cifar10/, weights/ and read_cifar10.py.
        out: receives the network, its checkpoint, train.npz and test.npz (uint8 images), deploy.yaml, and the results.
        mask: how to choose masks.
        network: "resnet20" or "resnet32".
        train_count: the first so many training images.
        test_count: the first so many test images.

    Raises:
        UsageError: `data` is not such a folder.
    """
    if not (data / "read_cifar10.py").is_file():
        raise UsageError(f"{data} holds no read_cifar10.py; give the folder with cifar10/, weights/ and its reader")
    make_folder(out)
    shutil.copyfile(MODEL_FILE, out / MODEL_FILE.name)
    shutil.copyfile(data / "weights" / NETWORKS[network], out / "model.safetensors")
    batches = tuple(range(1, 1 + min(TRAINING_BATCHES, -(-train_count // BATCH_IMAGES))))
    training = load_factory("read_cifar10:train_set", data)(batches)
    test = load_factory("read_cifar10:test_set", data)()
    for name, arrays, count in (("train", training, train_count), ("test", test, test_count)):
        images, labels, _ = arrays
        with atomic_output(out / f"{name}.npz") as partial, partial.open("wb") as stream:
            np.savez(stream, images=images[:count], labels=labels[:count].astype(np.int64))
    config = DeployConfig(
        model=ModelOptions(factory=f"{MODEL_FILE.stem}:{network}", weights="model.safetensors"),
        data=DataOptions(train="train.npz", test="test.npz", mean=MEAN, std=STD),
        mask=mask,
        engine=EngineOptions(batch=64),
        gates=Gates(accuracy_drop_points=2.0, flip_rate=0.1),
        out=out.as_posix(),
    )
    path = out / "deploy.yaml"
    write_atomic(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())
    return path


def table(report: LearnReport) -> str:
    """The accuracies as a Markdown table."""
    lines = ["| masks | correct | of | accuracy |", "|---|---|---|---|"]
    lines += [f"| {a.method} | {a.correct} | {a.total} | {a.correct / a.total:.2%} |" for a in report.accuracies]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, prepare, learn, print."""
    parser = argparse.ArgumentParser(description="Make a pretrained CIFAR-10 ResNet sparse.")
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, weights/ and read_cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--network", choices=sorted(NETWORKS), default="resnet20")
    parser.add_argument("--method", choices=METHODS, default="scores")
    parser.add_argument("--pattern", default=MaskOptions().pattern)
    parser.add_argument("--permute", action="store_true", help="reorder channels first")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=MaskOptions().batch_size)
    parser.add_argument("--distillation", type=float, default=MaskOptions().distillation)
    parser.add_argument("--learning-rate", type=float, help="default: that of the method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calibration-count", type=int, default=10_000, help="images for statistics and for adaprune")
    parser.add_argument("--train-count", type=int, default=TRAINING_BATCHES * BATCH_IMAGES)
    parser.add_argument("--test-count", type=int, default=BATCH_IMAGES)
    parser.add_argument("--prepare-only", action="store_true", help="write the folder and stop")
    given = parser.parse_args(arguments)
    mask = MaskOptions(
        method=given.method,
        pattern=given.pattern,
        permute=given.permute,
        epochs=given.epochs,
        batch_size=given.batch_size,
        distillation=given.distillation,
        learning_rate=given.learning_rate,
        seed=given.seed,
        augment="shift-mirror",
        autocast="bfloat16",
        # Always, so that nothing is decided on the test images.
        recalibrate=True,
        calibration_count=given.calibration_count,
    )
    path = prepare(
        given.data, given.out, mask, network=given.network, train_count=given.train_count, test_count=given.test_count
    )
    print(f"wrote {path}", file=sys.stderr)
    if given.prepare_only:
        return
    config = DeployConfig.model_validate(yaml.safe_load(path.read_text()))
    start = time.monotonic()
    report = learn(config.model, config.data, config.mask, folder=given.out, out=given.out, progress=_show)
    print(f"learned and evaluated in {time.monotonic() - start:.0f} s", file=sys.stderr)
    print(table(report))


def _show(description: str, done: int, total: int) -> None:
    # A hundred steps are enough to see that it moves.
    if done == total or done % 100 == 0:
        print(f"{description}: {done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    main()
