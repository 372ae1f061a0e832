"""What a step that learns masks costs, against a step that trains the dense weights of the same network.

    OMP_NUM_THREADS=2 python tools/benchmark_learning.py --rounds 20

takes the steps of ResNet-20 on random images in turn, in random order within each round, and prints for each way to learn the
median over the rounds of its time divided by the dense step's in the same round, with a 95 % interval. Both kinds of step
are forward, backward and AdamW, in the same precision, on the same batches. `tools/hardening_benchmark.py` has the other half:
what it costs to make masks of what was learned.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from masksparse_deploy.core.config import MaskOptions, ProfileOptions
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.attach import Method
from masksparse_deploy.learn.batches import Batches
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.learner import Learner
from masksparse_deploy.learn.mask_trainee import MaskTrainee
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.processes import start_accelerator
from masksparse_deploy.profiling.latencies import median_interval, round_ratios
from masksparse_deploy.profiling.sampling import sample_rounds

__all__ = ["main"]

DENSE = "dense weights"
MODELS = Path(__file__).resolve().parents[1] / "tests" / "models"
IMAGE_SHAPE = (3, 32, 32)
CLASS_COUNT = 10
BATCHES_PER_EPOCH = 4
CONFIDENCE = 0.95
# Learning rates fall to nothing long after the last step that is timed.
EPOCHS = 10_000
METHODS: dict[str, tuple[Method, float]] = {
    "scores": ("scores", 0.0),
    "scores + distillation": ("scores", 0.5),
    "gumbel": ("gumbel", 0.0),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints one line for each way to learn and each precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="at least 10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("none", "bfloat16", "float16"), action="append", help="repeatable")
    options = parser.parse_args(arguments)
    for precision in options.precision or ("none", "bfloat16"):
        mask = MaskOptions(epochs=EPOCHS, batch_size=options.batch, autocast=precision, device=options.device)
        print(f"ResNet-20, batch {options.batch}, precision {precision}, {torch.get_num_threads()} threads")
        for line in _lines(mask, ProfileOptions(rounds=options.rounds, inferences_per_round=1, warmup=2)):
            print(line)
    return 0


def _lines(options: MaskOptions, timing: ProfileOptions) -> list[str]:
    """Time all kinds of step, and say how they compare."""
    model, train = (
        load_factory("cifar_resnet:resnet20", MODELS)().eval(),
        _random_samples(BATCHES_PER_EPOCH * options.batch_size),
    )
    steps = {DENSE: _dense_step(model, train, options)}
    for name, (method, share) in METHODS.items():
        steps[name] = _learning_step(model, train, options.model_copy(update={"distillation": share}), method)
    times = sample_rounds(steps, timing, clock=time.perf_counter)
    lines = [f"{DENSE:<23}{float(np.median(times[DENSE])):9.1f} ms"]
    for name in METHODS:
        ratios = round_ratios(times[name], times[DENSE])
        interval = median_interval(ratios, CONFIDENCE)
        figures = f"{float(np.median(ratios)):7.2f}x [{interval.low:.2f}, {interval.high:.2f}]"
        lines.append(f"{name:<23}{float(np.median(times[name])):9.1f} ms{figures}")
    return lines


def _random_samples(count: int) -> Samples:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((count, *IMAGE_SHAPE), dtype=np.float32)
    return Samples(images, generator.integers(CLASS_COUNT, size=count))


def _learning_step(model: nn.Module, train: Samples, options: MaskOptions, method: Method) -> Callable[[], None]:
    pattern = NMPattern.parse(options.pattern)
    layers = survey_layers(model, probe_model(model, IMAGE_SHAPE), pattern=pattern).eligible
    learner = Learner(model, train, options, lambda network: MaskTrainee(network, layers, pattern, method))

    def step() -> None:
        learner.run_step()
        if learner.step % learner.epoch_steps == 0:
            learner.check()
        _wait_for_gpu()

    return step


def _dense_step(model: nn.Module, train: Samples, options: MaskOptions) -> Callable[[], None]:
    accelerator = start_accelerator(options)
    network = accelerator.prepare_model(copy.deepcopy(model).train())
    optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(network.parameters(), 1e-4))
    batches = Batches(train=train, options=options)
    done = 0

    def step() -> None:
        nonlocal done
        for images, labels in batches.of_step(done, accelerator.device):
            assert labels is not None
            accelerator.backward(functional.cross_entropy(network(images), labels))
            optimizer.step()
            optimizer.zero_grad()
        done += 1
        _wait_for_gpu()

    return step


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
