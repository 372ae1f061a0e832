"""How long it takes to harden and check the masks of a network with 25 million weights, the kernels of ResNet-50.

    OMP_NUM_THREADS=1 python tools/hardening_benchmark.py --pattern 2:4

prints the seconds, the best of several runs, for choosing the largest scores of every group, for building and checking the
masks, for the digest of the mask set, and for counting violations anew.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern

__all__ = ["main", "measure", "resnet50_kernels"]

STEPS = ("keep_largest", "LayerMask", "digest", "count_violations")


def resnet50_kernels() -> dict[str, npt.NDArray[np.float32]]:
    """Random scores, float32, in the shapes of ResNet-50's maskable weights."""
    shapes: list[tuple[int, ...]] = []
    channels = 64
    for width, block_count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(block_count):
            shapes += [(width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, channels, 1, 1))
            channels = 4 * width
    shapes.append((1000, channels))
    generator = np.random.default_rng(0)
    return {f"layer{i}.weight": generator.random(shape, dtype=np.float32) for i, shape in enumerate(shapes)}


def measure(scores: dict[str, npt.NDArray[np.float32]], pattern: NMPattern) -> dict[str, float]:
    """Seconds of each step."""
    ticks = [time.perf_counter()]
    keep = {name: pattern.keep_largest(array, group_axis=1) for name, array in scores.items()}
    ticks.append(time.perf_counter())
    layers = {n: LayerMask(weight_name=n, keep=array, group_axis=1, pattern=pattern) for n, array in keep.items()}
    ticks.append(time.perf_counter())
    assert MaskSet(layers=layers, source_sha256="0" * 64, method="benchmark").digest
    ticks.append(time.perf_counter())
    assert not any(pattern.count_violations(array, group_axis=1) for array in keep.values())
    ticks.append(time.perf_counter())
    return {step: after - before for step, before, after in zip(STEPS, ticks[:-1], ticks[1:], strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints one line for each step and the total."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", default="2:4", help="N:M, M a divisor of 64")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    scores, pattern = resnet50_kernels(), NMPattern.parse(options.pattern)
    runs = [measure(scores, pattern) for _ in range(options.runs)]
    best = min(runs, key=lambda run: sum(run.values()))
    print(f"{sum(array.size for array in scores.values()):,} weights, {pattern}")
    for step, seconds in best.items():
        print(f"{step:<17}{seconds:8.3f} s")
    print(f"{'total':<17}{sum(best.values()):8.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
