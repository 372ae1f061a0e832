"""Accuracy on CIFAR-10 under 1xN blocks and under what they are compared with, one configuration a run.

    python -m tools.block_accuracy --data ../shared/data --results out/accuracy --method subp --pattern 1x16@0.5 --seed 0
    python -m tools.block_accuracy --data ../shared/data --results out/accuracy --method dense --seed 0
    python -m tools.block_accuracy --results out/accuracy --table

A run trains from the pretrained network, or from fresh weights, answers the test images once at the end, and writes settings
and counts into a JSON file of its own, beside the mask set, which `masksparse bake` takes; if it is there it does nothing.
`--table` prints the mean and the standard deviation over the seeds. With `--held-out 5000` the last so many training images
are judged in place of the test images, and not trained on: what settings were chosen by.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.config import MaskOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.files import canonical_json, make_folder, write_atomic
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.assignment import survey_assigned
from masksparse_deploy.learn.dynamic.dense import dense_trainee
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.evaluation import count_correct, substitutes
from masksparse_deploy.learn.methods import Methods
from masksparse_deploy.learn.model import load_model, state_fingerprint
from masksparse_deploy.learn.positions.apply import masked_positions
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.requested import requested_pattern
from masksparse_deploy.learn.sparsifier import Outcome
from masksparse_deploy.learn.training import Training
from tools.cifar10_acceptance import MEAN, MODEL_FILE, NETWORKS, STD

__all__ = ["accuracy_of", "by_row", "main", "row_of", "table"]

# "dense" trains all weights without masks: what the same budget brings the network that is compared with.
METHODS = ("dense", "subp", "blocks", "sparse-training", "positions")
_TRAINING_COUNT = 50_000
_BATCH_SIZE = 128
_IN_FILE_NAMES = str.maketrans("@~:/", "p_-b")
# Settings that are the user's to vary, and what the runs of a row of the table have in common.
_VARIED = (
    "pattern",
    "position_rate",
    "position_maps",
    "position_selection",
    "position_ramp_end",
    "initialization",
    "criterion",
    "learning_rate",
    "distillation",
    "schedule_start",
    "schedule_end",
    "mask_steps",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; train and judge one configuration, or print the table."""
    given = _parser().parse_args(arguments)
    if given.table:
        print(table(json.loads(path.read_text()) for path in sorted(given.results.glob("*.json"))))
        return
    if given.data is None:
        raise UsageError("--data is missing: the folder with cifar10/, weights/ and read_cifar10.py")
    if given.network not in NETWORKS and given.checkpoint is None:
        raise UsageError(f"no checkpoint of {given.network} is published; train one (tools/train_cifar.py), give --checkpoint")
    torch.set_num_threads(1)
    make_folder(given.results)
    settings = _settings(given)
    path = given.results / f"{_name(settings)}.json"
    if path.is_file():
        if _comparable(json.loads(path.read_text())) != _comparable(json.loads(canonical_json(settings))):
            raise UsageError(f"{path} holds a run with other settings; move it away, or give another --results")
        print(f"{path} is there already", file=sys.stderr)
        return
    result, masks = _run(given)
    masks.write(path.with_suffix(".safetensors"))
    write_atomic(path, canonical_json(settings | result))
    print(path.read_text())


def table(results: Iterable[dict[str, Any]]) -> str:
    """The results as a Markdown table: a row for runs that differ by their seed alone, best accuracy first.

    "layers" are those whose weights are masked, "weights kept" is of these, "dense" the network before any training.

    Args:
        results: what runs wrote.
    """
    rows = by_row(results)
    lines = [
        "| network | masks | layers | weights kept | accuracy | spread | seeds | dense |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (network, masks), runs in sorted(rows.items(), key=lambda row: (row[0][0], -accuracy_of(row[1])[0])):
        mean, spread = accuracy_of(runs)
        kept, dense = runs[0]["kept_share"], runs[0]["dense_correct"] / runs[0]["total"]
        deviation = "" if spread is None else f"{spread:.2f}"
        figures = f"{mean:.2f} % | {deviation} | {len(runs)} | {dense:.2%}"
        lines.append(f"| {network} | {masks} | {runs[0]['masked_layers']} | {kept:.1%} | {figures} |")
    return "\n".join(lines)


def by_row(results: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Results that differ by their seed alone, under their `row_of`."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        rows.setdefault(row_of(result), []).append(result)
    return rows


def accuracy_of(runs: Sequence[dict[str, Any]]) -> tuple[float, float | None]:
    """Mean and standard deviation, in percent; no deviation of a single run."""
    values = [100 * run["correct"] / run["total"] for run in runs]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def row_of(result: dict[str, Any]) -> tuple[str, str]:
    """What stands before the figures: the network, and whatever is not its default."""
    options = result["options"]
    words = [result["method"]]
    words += [options["pattern"]] if result["method"] not in ("dense", "positions") else []
    words += [f"{result['epochs']} epochs"] if result["epochs"] != 1 else []
    for name in _relevant(options):
        if name != "pattern" and options[name] != MaskOptions.model_fields[name].default:
            words.append(f"{name} {options[name]}")
    return f"{result['network']}{', held out' if result['held_out'] else ''}", ", ".join(words)


def _run(given: argparse.Namespace) -> tuple[dict[str, Any], MaskSet]:
    model = _model(given)
    train, judged = _images(given)
    options, start = _options(given), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        outcome = _outcome(given.method, model, train, options, Path(folder))
    seconds = time.process_time() - start
    replaced = substitutes(model, outcome.masks, outcome.statistics, outcome.weights)
    # Each of them once, at the end.
    with masked_positions(model, outcome.positions):
        correct = count_correct(model, judged, replaced, batch_size=500)
    kept, weights = 0, 0
    for mask in outcome.masks.values():
        kept, weights = kept + int(np.count_nonzero(mask.keep)), weights + mask.keep.size
    masks = MaskSet(
        layers=outcome.masks,
        source_sha256=state_fingerprint(model),
        method=given.method,
        statistics=outcome.statistics,
        weights=outcome.weights,
        positions=outcome.positions,
    )
    result = {
        "correct": correct,
        "total": len(judged),
        "dense_correct": count_correct(model, judged, batch_size=500),
        "masked_layers": len(outcome.masks),
        "kept_share": kept / weights if weights else 1.0,
        "position_shares": {name: mask.density for name, mask in outcome.positions.items()},
        "losses": [point.loss for point in outcome.history],
        "training_cpu_s": round(seconds, 1),
        "torch": torch.__version__,
    }
    return result, masks


def _outcome(method: str, model: nn.Module, train: Samples, options: MaskOptions, out: Path) -> Outcome:
    if method == "dense":
        return Training(options=options, method=method, prepare=dense_trainee, checkpoint=out / "c", progress=_show).run(
            model, (), train
        )
    layers: tuple[EligibleLayer, ...] = ()
    if method != "positions":
        probe = probe_model(model, train.images.shape[1:])
        layers = survey_assigned(model, probe, options, folder=out).eligible
    methods = Methods(
        model=model,
        layers=layers,
        train=train,
        options=options,
        pattern=requested_pattern(options),
        may_decide=False,
        device=torch.device("cpu"),
        out=out,
        progress=_show,
    )
    methods.check()
    return methods.run(methods.sparsifier(options.method), permuted=False)  # type: ignore[arg-type]


def _model(given: argparse.Namespace) -> nn.Module:
    weights = given.checkpoint or given.data / "weights" / NETWORKS[given.network]
    options = ModelOptions(factory=f"{MODEL_FILE.stem}:{given.network}", weights=str(weights.resolve()))
    return load_model(options, MODEL_FILE.parent)


def _images(given: argparse.Namespace) -> tuple[Samples, Samples]:
    """What is trained on, and what is judged."""
    batches = tuple(range(1, 1 + -(-min(given.train_count, _TRAINING_COUNT) // 10_000)))
    train = _samples(load_factory("read_cifar10:train_set", given.data)(batches), given.train_count)
    if not given.held_out:
        return train, _samples(load_factory("read_cifar10:test_set", given.data)(), given.test_count)
    cut = len(train) - given.held_out
    return train.first(cut), Samples(train.images[cut:], train.labels[cut:])


def _samples(arrays: Sequence[np.ndarray], count: int) -> Samples:
    pixels, labels = arrays[0][:count], arrays[1][:count]
    images = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
    # Channel by channel, which takes no second copy of all of them.
    for channel in range(3):
        images[:, channel] = (pixels[..., channel] / np.float32(255) - np.float32(MEAN[channel])) / np.float32(STD[channel])
    return Samples(images, labels.astype(np.int64))


def _options(given: argparse.Namespace) -> MaskOptions:
    varied = {name: getattr(given, name) for name in _VARIED if getattr(given, name) is not None}
    return MaskOptions(
        method="sparse-training" if given.method == "dense" else given.method,
        epochs=given.epochs,
        batch_size=_BATCH_SIZE,
        augment="shift-mirror",
        autocast="bfloat16",
        device="cpu",
        channel_block=given.channel_block,
        seed=given.seed,
        **varied,
    )


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    """What a run depends on, as its file tells it."""
    return {
        "network": given.network,
        "method": given.method,
        "seed": given.seed,
        "epochs": given.epochs,
        "train_count": given.train_count,
        "test_count": given.test_count,
        "held_out": given.held_out,
        "options": _options(given).model_dump(mode="json"),
    }


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: options that the program has got since then, or that the run does not look at, do not."""
    given = {key: settings[key] for key in ("network", "method", "seed", "epochs", "train_count", "test_count", "held_out")}
    options = MaskOptions().model_dump(mode="json") | settings["options"]
    return given | {name: options[name] for name in _relevant(options)}


def _relevant(options: dict[str, Any]) -> list[str]:
    """Those of the varied options that the run looks at."""
    names = _VARIED if options.get("position_rate") else [name for name in _VARIED if not name.startswith("position_")]
    return [name for name in names if name in options]


def _name(settings: dict[str, Any]) -> str:
    """A name for the file, of what is not the default."""
    options = settings["options"]
    words = [settings["network"], settings["method"], *([options["pattern"]] if "pattern" in options else [])]
    words += [f"{name}-{options[name]}" for name in _VARIED[1:] if options[name] != MaskOptions.model_fields[name].default]
    words += [f"epochs-{settings['epochs']}"] + (["held-out"] if settings["held_out"] else []) + [f"seed-{settings['seed']}"]
    return "_".join(words).translate(_IN_FILE_NAMES)


def _parser() -> argparse.ArgumentParser:
    defaults = MaskOptions()
    parser = argparse.ArgumentParser(description="Accuracy on CIFAR-10 under 1xN blocks, one configuration a run.")
    parser.add_argument("--results", type=Path, required=True, help="folder of the results, one file a run")
    parser.add_argument("--table", action="store_true", help="print what the folder holds, and run nothing")
    parser.add_argument("--data", type=Path, help="folder with cifar10/, weights/ and read_cifar10.py")
    parser.add_argument("--network", default="resnet20", help=f"a callable of {MODEL_FILE.name}, as wide_resnet8")
    parser.add_argument("--checkpoint", type=Path, help="of the dense network; default: the published one")
    parser.add_argument("--method", choices=METHODS, default="subp")
    parser.add_argument("--pattern", help="1xN@P for blocks, N:M for sparse-training")
    parser.add_argument("--channel-block", type=int, choices=(1, 4, 8, 16, 32), default=1, help="of the rounding; 1: none")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-count", type=int, default=_TRAINING_COUNT, help="the first so many training images")
    parser.add_argument("--test-count", type=int, default=10_000)
    parser.add_argument("--held-out", type=int, default=0, help="judge the last so many training images, for choosing settings")
    for name in _VARIED[1:]:
        kind = type(getattr(defaults, name))
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float if kind is type(None) else kind, help="see masksparse learn"
        )
    return parser


def _show(description: str, done: int, total: int) -> None:
    # A hundred steps are enough to see that it moves.
    if done == total or done % 100 == 0:
        print(f"{description}: {done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
