"""AdaPrune on the pretrained CIFAR-10 ResNets: accuracy, with and without batch-norm re-estimation, and what it costs.

    python tools/adaprune_benchmark.py --data ../shared/data --out out/adaprune --pattern 2:4 --pattern T2:4

prints a Markdown table: for each pattern and each way, the accuracy on the test images, the share of the masked layers' output
that is lost on the calibration images, and the processor time of the fit. With --zeros the smallest weights of the network are
set to zero first, a source without structure, for patterns such as auto:8.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from masksparse_deploy.core.config import DeployConfig, MaskOptions
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.samples import Samples, read_split
from masksparse_deploy.learn.adaprune import AdaPrune, pattern_for_source
from masksparse_deploy.learn.adaprune.closed_form import reconstruction_error
from masksparse_deploy.learn.adaprune.gram import gram_matrices
from masksparse_deploy.learn.eligibility import EligibleLayer, survey_layers
from masksparse_deploy.learn.evaluation import count_correct, substitutes
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.model import load_model
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.reestimated import Reestimated
from masksparse_deploy.learn.sparsifier import Given, Outcome, Sparsifier

__all__ = ["drop_smallest", "main"]

AUTO = "auto:"
WAYS = {"magnitude": "magnitude", "closed-form": "adaprune, closed form", "iterative": "adaprune, iterative"}
EVALUATION_BATCH = 250
# 1,000 images make eight such batches.
BATCH_NORM_BATCH = 125


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, prepare, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, weights/ and read_cifar10.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the network and its images")
    parser.add_argument("--network", choices=("resnet20", "resnet32"), default="resnet20")
    parser.add_argument("--pattern", action="append", help="N:M, TN:M or auto:M; repeatable")
    parser.add_argument("--way", choices=tuple(WAYS), action="append", help="repeatable; default: magnitude and closed-form")
    parser.add_argument("--calibration-count", type=int, default=1000)
    parser.add_argument("--augment", choices=("none", "shift", "shift-mirror"), default="shift-mirror")
    parser.add_argument("--ridge", type=float, default=MaskOptions().ridge)
    parser.add_argument("--steps", type=int, default=1000, help="of the gradient descent")
    parser.add_argument("--zeros", type=float, default=0.0, help="fraction of weights that the source lacks")
    parser.add_argument("--train-count", type=int, default=50_000)
    parser.add_argument("--test-count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    prepare = load_factory("cifar10_acceptance:prepare", Path(__file__).parent)
    counts = {"train_count": options.train_count, "test_count": options.test_count}
    path = prepare(options.data, options.out, MaskOptions(), network=options.network, **counts)
    config = DeployConfig.model_validate(yaml.safe_load(path.read_text()))
    model = load_model(config.model, options.out)
    train, test = read_split(config.data, "train", options.out), read_split(config.data, "test", options.out)
    print("| masks | correct | accuracy | + batch norm | output lost | fit, CPU s |\n|---|---|---|---|---|---|")
    correct, also_correct = (_correct(model, test, outcome) for outcome in _twice(model, train, Outcome(masks={}), options))
    accuracies = f"{correct / len(test):.2%} | {also_correct / len(test):.2%}"
    print(f"| none ({options.network}) | {correct} of {len(test)} | {accuracies} | | |", flush=True)
    for text in options.pattern or ["2:4"]:
        for row in _rows(model, train, test, text, options):
            print(row, flush=True)
    return 0


def drop_smallest(model: nn.Module, layers: Sequence[EligibleLayer], fraction: float) -> None:
    """Set the smallest |weight| of all layers together to zero, in place: the unstructured source of a comparison."""
    weights = [model.get_parameter(layer.weight_name) for layer in layers]
    magnitude = np.sort(np.concatenate([weight.detach().abs().numpy().ravel() for weight in weights]))
    count = int(fraction * magnitude.size)
    if count:
        with torch.no_grad():
            for weight in weights:
                weight[weight.abs() <= float(magnitude[count - 1])] = 0.0


def _rows(dense: nn.Module, train: Samples, test: Samples, text: str, options: argparse.Namespace) -> Iterator[str]:
    automatic = text.startswith(AUTO)
    m = int(text.removeprefix(AUTO)) if automatic else 0
    pattern = NMPattern(n=1, m=m) if automatic else NMPattern.parse(text)
    layers = survey_layers(dense, probe_model(dense, train.images.shape[1:]), pattern=pattern).eligible
    drop_smallest(dense, layers, options.zeros)
    if automatic:
        pattern = pattern_for_source(dense, layers, m)
    if options.zeros:
        correct = _correct(dense, test, Outcome(masks={}))
        yield f"| none, {options.zeros:.0%} zeros | {correct} of {len(test)} | {correct / len(test):.2%} | | | |"
    closed = AdaPrune(
        pattern=pattern,
        calibration_count=options.calibration_count,
        batch_size=100,
        augment=options.augment,
        seed=options.seed,
        ridge=options.ridge,
        steps=options.steps,
        progress=_show,
    )
    images = closed.images(train)
    grams = gram_matrices(dense, layers, images, batch_size=100)
    methods: dict[str, Sparsifier] = {
        "magnitude": Magnitude(pattern=pattern),
        "closed-form": closed,
        "iterative": dataclasses.replace(closed, reconstruction="iterative"),
    }
    for way in options.way or ("magnitude", "closed-form"):
        name, method = WAYS[way], methods[way]
        start = time.process_time()
        outcome = method.sparsify(dense, layers, train)
        seconds = time.process_time() - start
        correct, also_correct = (_correct(dense, test, found) for found in _twice(dense, train, outcome, options))
        yield (
            f"| {name} {pattern} | {correct} of {len(test)} | {correct / len(test):.2%} | {also_correct / len(test):.2%} | "
            f"{_lost(dense, layers, grams, outcome):.2%} | {seconds:.0f} |"
        )


def _twice(model: nn.Module, train: Samples, outcome: Outcome, options: argparse.Namespace) -> tuple[Outcome, Outcome]:
    """`outcome` as it is, and with batch-norm statistics from the calibration images."""
    estimated = Reestimated(
        inner=Given(outcome=outcome),
        calibration_count=options.calibration_count,
        batch_size=BATCH_NORM_BATCH,
        augment=options.augment,
        seed=options.seed,
    )
    return outcome, estimated.sparsify(model, (), train)


def _correct(model: nn.Module, test: Samples, outcome: Outcome) -> int:
    replaced = substitutes(model, outcome.masks, outcome.statistics, outcome.weights)
    return count_correct(model, test, replaced, batch_size=EVALUATION_BATCH, progress=_show)


def _lost(model: nn.Module, layers: Sequence[EligibleLayer], grams: dict[str, torch.Tensor], outcome: Outcome) -> float:
    """The mean over layers of the squared change of their outputs, relative to the squared outputs."""
    replaced = substitutes(model, outcome.masks, {}, outcome.weights)
    shares = []
    for layer in layers:
        weight = model.get_parameter(layer.weight_name).double().flatten(1)
        new = replaced[layer.weight_name].double().flatten(1)
        total = reconstruction_error(grams[layer.name], weight, 0 * weight)
        shares.append(reconstruction_error(grams[layer.name], weight, new) / total)
    return float(np.mean(shares))


def _show(description: str, done: int, total: int) -> None:
    if done == total:
        print(f"{description}: {total}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
