"""New weights under the same masks, on CIFAR-10's ResNet-20, as a command.

    python tools/update_acceptance.py --data ../shared/data --steps 300 --out out/update

takes the pretrained network through the chain with magnitude masks and new batch-norm statistics, trains all its dense weights
on for a few hundred steps (no mask, no distillation: what a user does between two releases), and updates: the same masks on
the new weights. Prints accuracies, bounds and budgets as Markdown tables. The old run and the new checkpoint are not made again
where they are there already; --relearn adds masks made anew for the new weights, to compare with.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional

from masksparse_deploy.core.artifacts.learning import LearnReport
from masksparse_deploy.core.artifacts.updating import UpdateReport
from masksparse_deploy.core.config import DeployConfig, MaskOptions, ModelOptions, ProfileOptions, UpdateOptions
from masksparse_deploy.core.files import write_atomic
from masksparse_deploy.core.samples import read_split
from masksparse_deploy.learn.augmentation import augment
from masksparse_deploy.learn.model import load_model
from masksparse_deploy.learn.run import learn
from masksparse_deploy.pipeline.config_file import read_config
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.run import StageResult, run_chain
from masksparse_deploy.pipeline.update_report import Certified
from masksparse_deploy.pipeline.updating import Update
from tools.cifar10_acceptance import prepare, table

__all__ = ["fine_tune", "main", "tables"]

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
# Shares by which bounds may grow, for which budgets are looked for.
GROWTHS = (0.1, 1.0, 10.0)


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


def tables(report: UpdateReport) -> str:
    """Accuracies, bounds, layers and masks of an update as Markdown tables."""
    total = report.sample_count
    lines = ["| network | old weights | new weights |", "|---|---|---|"]
    for name, old, new in (
        ("dense", report.dense_correct_old, report.dense_correct_new),
        ("the same masks", report.sparse_correct_old, report.sparse_correct_new),
    ):
        lines.append(f"| {name} | {'-' if old is None else f'{old / total:.2%}'} | {new / total:.2%} |")
    lines += [
        "",
        "| new masked network against | claim | bound | by the triangle inequality | measured |",
        "|---|---|---|---|---|",
    ]
    for comparison in report.comparisons:
        bound, measured = _figure(comparison.layerwise), _figure(comparison.layerwise_measured)
        lines.append(f"| {comparison.against} | layerwise | {bound} | - | {measured} |")
        lines += [
            f"| | {claim.name} | {_figure(claim.direct)} | {_figure(claim.triangle)} | {_figure(claim.measured)} |"
            for claim in comparison.claims
        ]
    head = "| layer | update / norm | removed before | after | at most | at most, Frobenius | kept before | after |"
    lines += ["", head, "|---|---|---|---|---|---|---|---|"]
    masks = {mask.layer: mask for mask in report.masks}
    for layer in report.layers:
        mask = masks.get(layer.layer)
        removed = (layer.removed_norm_old, layer.removed_norm_new, layer.removed_norm_sum, layer.removed_norm_frobenius)
        kept = () if mask is None else (mask.norm_before, mask.norm)
        figures = [_figure(value) for value in removed] + [f"{share:.2%}" for share in kept if share is not None]
        lines.append(f"| {layer.layer} | {layer.dense_update / layer.weight_norm:.4f} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", report.advice])


def budgets(old: Job) -> str:
    """The budgets of the old certificate for several growths, as a Markdown table."""
    lines = [
        "| bounds may grow by | end-to-end budget / norm of each layer | layerwise budget / norm, median |",
        "|---|---|---|",
    ]
    for growth in GROWTHS:
        certified = Certified(old.out, old.test, growth)
        found, layers = certified.budgets, certified.layers
        shares = [
            budget.layerwise / float(np.linalg.norm(layers[name].dense))
            for name, budget in found.layers.items()
            if budget.layerwise is not None
        ]
        lines.append(f"| {growth:.0%} | {_figure(found.share)} | {_figure(float(np.median(shares)))} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _job(config: DeployConfig, folder: Path, out: Path) -> Job:
    return Job(config=config, folder=folder, out=out, command="python tools/update_acceptance.py", config_text="")


def _told(result: StageResult) -> None:
    print(f"{result.stage} {result.status} in {result.seconds:.0f} s", file=sys.stderr, flush=True)


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
    parser.add_argument("--relearn", action="store_true", help="choose masks anew for the new weights, too")
    given = parser.parse_args(arguments)
    mask = MaskOptions(method="magnitude", augment="shift-mirror", calibration_count=2000)
    path = given.out / "run" / "deploy.yaml"
    if not path.is_file():
        prepare(given.data, path.parent, mask, train_count=given.train_count, test_count=given.test_count)
    # speed is not what this is about
    quick = ProfileOptions(rounds=10, inferences_per_round=1, warmup=1)
    config = read_config(path).model_copy(update={"profile": quick})
    old = _job(config, path.parent, path.parent)
    if not (old.out / "validation.json").is_file():
        run_chain(old, on_result=_told)
    weights = given.out / "new.safetensors"
    if not weights.is_file():
        rate, size = given.learning_rate, given.batch_size
        fine_tune(config, path.parent, weights, steps=given.steps, learning_rate=rate, batch_size=size)
    update = Update(before=old, weights=weights, out=given.out / "new", options=UpdateOptions())
    update.check()
    run_chain(update.job, stages=update.stages, on_result=_told)
    report = UpdateReport.read(update.out / "update.json")
    print(tables(report))
    print(f"\n{budgets(old)}")
    if given.relearn:
        model = ModelOptions(factory=config.model.factory, weights=str(weights.resolve()))
        anew: LearnReport = learn(model, config.data, mask, folder=path.parent, out=given.out / "anew")
        print("\n" + table(anew))


if __name__ == "__main__":
    main()
