"""What choosing masks anew costs in sparse training, against steps that never do.

    OMP_NUM_THREADS=1 python tools/benchmark_dynamic.py --rounds 20

takes a training step of ResNet-20 on random images, and one choice of the masks of all its layers by every solver, in turn, in
random order within each round. It prints for every pattern and solver what a step costs on average when masks are chosen in
every 40th one, as a multiple of the step without: the median over the rounds, each with the times of that round, and a 95 %
interval; and the same for choosing in every step. On the CPU it takes processor time, so that other programs do not count.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.config import MaskOptions, ProfileOptions
from masksparse_deploy.core.factory import load_factory
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.dynamic.weight_trainee import WeightTrainee
from masksparse_deploy.learn.eligibility import GROUP_AXIS, survey_layers
from masksparse_deploy.learn.learner import Learner
from masksparse_deploy.learn.mask_rule import Following
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.transposable.solve import Solver, transposable_mask
from masksparse_deploy.profiling.latencies import median_interval
from masksparse_deploy.profiling.sampling import sample_rounds

__all__ = ["main"]

MODELS = Path(__file__).resolve().parents[1] / "tests" / "models"
IMAGE_SHAPE = (3, 32, 32)
CLASS_COUNT = 10
BATCHES_PER_EPOCH = 4
CONFIDENCE = 0.95
# Learning rates fall to nothing long after the last step that is timed, and masks stay as they are.
EPOCHS = NEVER = 10_000
CASES: tuple[tuple[str, Solver | None], ...] = (
    ("2:4", None),
    ("T2:4", "exact"),
    ("T2:4", "greedy"),
    ("T2:4", "two-approximation"),
    ("T2:4", "flow"),
    ("T4:8", "exact"),
    ("T4:8", "two-approximation"),
    ("T4:8", "flow"),
)
STEP = "a step without"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints one line for each pattern and solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="at least 10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("none", "bfloat16", "float16"), default="none")
    options = parser.parse_args(arguments)
    mask = MaskOptions(
        epochs=EPOCHS, batch_size=options.batch, autocast=options.precision, device=options.device, distillation=0.0
    )
    times = _times(mask, ProfileOptions(rounds=options.rounds, inferences_per_round=1, warmup=1))
    print(f"ResNet-20, batch {options.batch}, precision {options.precision}, {torch.get_num_threads()} threads")
    print(f"{STEP:<28}{float(np.median(times[STEP])):10.1f} ms")
    print(f"{'masks chosen by':<28}{'once':>13}{'in every 40th step':>30}{'in every step':>26}")
    for case in CASES:
        name = _name(*case)
        choice = f"{float(np.median(times[name])):10.1f} ms"
        every = [_figure(times[name], times[STEP], steps) for steps in (MaskOptions().mask_steps, 1)]
        print(f"{name:<28}{choice}{every[0]:>30}{every[1]:>26}")
    return 0


def _figure(choices: npt.NDArray[np.float64], steps: npt.NDArray[np.float64], every: int) -> str:
    """The average step with a choice in every so many, over a step without one."""
    ratios = 1 + choices[:, 0] / (every * steps[:, 0])
    interval = median_interval(ratios, CONFIDENCE)
    return f"{float(np.median(ratios)):.4f}x [{interval.low:.4f}, {interval.high:.4f}]"


def _times(options: MaskOptions, timing: ProfileOptions) -> dict[str, npt.NDArray[np.float64]]:
    """Milliseconds of a step and of every choice of masks, (rounds, 1)."""
    model = load_factory("cifar_resnet:resnet20", MODELS)().eval()
    runs = {STEP: _step(model, options)}
    runs.update({_name(text, solver): _choice(model, text, solver, options) for text, solver in CASES})
    return sample_rounds(runs, timing, clock=time.perf_counter if _on_gpu(options) else time.process_time)


def _name(text: str, solver: Solver | None) -> str:
    return text if solver is None else f"{text} {solver}"


def _step(model: nn.Module, options: MaskOptions) -> Callable[[], None]:
    generator = np.random.default_rng(0)
    count = BATCHES_PER_EPOCH * options.batch_size
    images = generator.standard_normal((count, *IMAGE_SHAPE), dtype=np.float32)
    train = Samples(images, generator.integers(CLASS_COUNT, size=count))
    learner = Learner(model, train, options, lambda network: _trainee(network, "T2:4", "exact", mask_steps=NEVER))

    def step() -> None:
        learner.run_step()
        if learner.step % learner.epoch_steps == 0:
            learner.check()
        if _on_gpu(options):
            torch.cuda.synchronize()

    return step


def _choice(model: nn.Module, text: str, solver: Solver | None, options: MaskOptions) -> Callable[[], None]:
    network = copy.deepcopy(model).to("cuda" if _on_gpu(options) else "cpu")
    trainee = _trainee(network, text, solver, mask_steps=1)
    return lambda: trainee.begin_step(1, EPOCHS, seed=0)


def _trainee(network: nn.Module, text: str, solver: Solver | None, *, mask_steps: int) -> WeightTrainee:
    pattern = NMPattern.parse(text)
    layers = survey_layers(network, probe_model(copy.deepcopy(network).cpu(), IMAGE_SHAPE), pattern=pattern).eligible

    def choose(magnitude: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        if solver is None:
            return pattern.keep_largest(magnitude, group_axis=GROUP_AXIS)
        return transposable_mask(magnitude, pattern, solver=solver)

    return WeightTrainee(network, layers, Following(pattern=pattern, chosen_by=choose, mask_steps=mask_steps))


def _on_gpu(options: MaskOptions) -> bool:
    return options.device != "cpu" and torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
