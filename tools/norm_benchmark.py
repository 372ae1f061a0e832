"""How long the proved operator norms of a whole network take, and how much longer eigenvalues of every frequency would.

    python -m tools.norm_benchmark --network resnet50

builds every convolution and the linear layer of a ResNet at 224 pixels with random weights (He's scale), masks them 2:4, and
computes for each layer the norms that a certificate needs: of what was removed, of the dense and of the sparse kernel (what the
file changed is what was removed, so the fourth comes from the cache). It prints the processor seconds of each kind of layer,
which on one thread (OMP_NUM_THREADS=1) are those of an idle machine, and in all also the seconds by the clock.
`--compare` adds, for some layers, the ratio to two other ways to the same figure in the same run: eigenvalues in float64 at
every frequency, and Gram iteration until it is as tight. `--tightness` prints the table of docs/bounds.md instead.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.norms.polyphase import polyphase
from masksparse_deploy.certify.norms.symbol import grid_maximum, grid_slack
from masksparse_deploy.certify.norms.unfolding import unfolding_bound
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.core.patterns import NMPattern

__all__ = ["Layer", "main", "resnet_layers"]

Array = npt.NDArray[Any]

# Blocks of each width, and whether a block is a bottleneck.
NETWORKS = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One convolution; the linear layer is a 1x1 convolution of one pixel."""

    out_channels: int
    in_channels: int
    taps: int
    stride: int
    padded: int

    def __str__(self) -> str:
        text = f"{self.taps}x{self.taps} {self.in_channels} -> {self.out_channels}"
        return f"{text} stride {self.stride} on {self.padded}" if self.taps > 1 else text

    def kernel(self, generator: np.random.Generator) -> Array:
        """float32 weights of He's scale."""
        shape = (self.out_channels, self.in_channels, self.taps, self.taps)
        scale = (2 / (self.in_channels * self.taps**2)) ** 0.5
        kernel: Array = (generator.standard_normal(shape) * scale).astype(np.float32)
        return kernel


def resnet_layers(name: str) -> list[Layer]:
    """All convolutions and the linear layer of a ResNet (He et al. 2016) for 224 pixels, strides in the 3x3 convolutions."""
    block_counts, bottleneck = NETWORKS[name]
    layers = [_layer(64, 3, 7, 2, 224)]
    channels, size = 64, 56
    for stage, block_count in enumerate(block_counts):
        width = 64 << stage
        out_channels = 4 * width if bottleneck else width
        for block in range(block_count):
            stride = 2 if stage and block == 0 else 1
            if bottleneck:
                layers += [_layer(width, channels, 1, 1, size), _layer(width, width, 3, stride, size)]
                layers.append(_layer(out_channels, width, 1, 1, size // stride))
            else:
                layers += [_layer(width, channels, 3, stride, size), _layer(width, width, 3, 1, size // stride)]
            if stride > 1 or channels != out_channels:
                layers.append(_layer(out_channels, channels, 1, stride, size))
            channels, size = out_channels, size // stride
    return [*layers, _layer(1000, channels, 1, 1, 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints a table with one row for each kind of layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="resnet50")
    parser.add_argument("--grid", type=int, default=32, help="N of the N x N frequency grid")
    parser.add_argument("--compare", action="store_true", help="also the ratio to eigenvalues and to Gram iteration")
    parser.add_argument("--widest", type=int, default=256, help="channels of the widest layer of that comparison")
    parser.add_argument("--tightness", action="store_true", help="bound / exact for small convolutions, nothing else")
    options = parser.parse_args(arguments)
    if options.tightness:
        print_tightness()
        return 0
    layers, generator = resnet_layers(options.network), np.random.default_rng(0)
    seconds: dict[str, list[float]] = {}
    compared: dict[str, str] = {}
    norms, clock_s = NormCache(grid=options.grid), 0.0
    for layer in layers:
        kernel, start = layer.kernel(generator), time.perf_counter()
        seconds.setdefault(str(layer), []).append(_seconds(functools.partial(_norms, layer, kernel, norms)))
        clock_s += time.perf_counter() - start
        if options.compare and layer.taps > 1 and max(layer.out_channels, layer.in_channels) <= options.widest:
            compared.setdefault(str(layer), _comparison(layer, kernel))
    for name, each in seconds.items():
        print(f"{name:<36}{len(each):3} x {np.mean(each):7.3f} s   {compared.get(name, '')}".rstrip())
    total_s = sum(map(sum, seconds.values()))
    print(
        f"{options.network}: {len(layers)} layers, 4 norms each: {total_s:.1f} s of the processor, {clock_s:.1f} s by the clock"
    )
    return 0


def print_tightness() -> None:
    """Bound / exact, the median over 10 random kernels, the exact norm by writing the operator out as a matrix."""
    print("| convolution | (a) N = 8 | (a) N = 16 | (a) N = 32 | (b) | (c) |\n|---|---|---|---|---|---|")
    for name, shape, stride, size in (
        ("3x3, 8 -> 8, on 8x8", (8, 8, 3, 3), 1, 8),
        ("the same, stride 2", (8, 8, 3, 3), 2, 8),
        ("5x5, 4 -> 4, on 8x8", (4, 4, 5, 5), 1, 8),
        ("7x7 stride 2, 3 -> 8, on 16x16", (8, 3, 7, 7), 2, 16),
    ):
        ratios = np.array([_ratios(np.random.default_rng(seed).standard_normal(shape), stride, size) for seed in range(10)])
        print(f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in np.median(ratios, axis=0)) + " |")


def _layer(out_channels: int, in_channels: int, taps: int, stride: int, size: int) -> Layer:
    return Layer(out_channels=out_channels, in_channels=in_channels, taps=taps, stride=stride, padded=size + taps // 2 * 2)


def _norms(layer: Layer, kernel: Array, norms: NormCache) -> None:
    """The four norms of a masked layer, as masksparse_deploy.certify.layers asks for them."""
    pattern = NMPattern(n=2, m=4)
    eligible = layer.in_channels % pattern.m == 0
    keep = pattern.keep_largest(np.abs(kernel), group_axis=1) if eligible else np.ones(kernel.shape, bool)
    sparse = np.where(keep, kernel, 0)
    for part in (kernel - sparse, np.where(keep, 0, kernel), kernel, sparse):
        if layer.taps == 1:
            norms.matrix(part[:, :, 0, 0])
        else:
            norms.convolution(part, strides=(layer.stride,) * 2, dilations=(1, 1), groups=1, padded_size=(layer.padded,) * 2)


def _comparison(layer: Layer, kernel: Array) -> str:
    """One maximum over the frequencies of an N x N grid or the padded one, in three ways."""
    phases, _ = polyphase(kernel.astype(np.float64), strides=(layer.stride,) * 2, dilations=(1, 1))
    cells = (min(32, -(-layer.padded // layer.stride)),) * 2
    found: list[float] = []
    ours = _seconds(lambda: found.append(grid_maximum(phases[None], cells=cells).value))
    eigenvalues = _seconds(lambda: found.append(max(float(np.linalg.eigvalsh(g)[-1]) ** 0.5 for g in _grams(phases, cells))))
    gram_s = _seconds(lambda: found.append(max(_gram_iteration(g) for g in _grams(phases, cells))))
    assert max(found) <= min(found) * (1 + 2e-4), found  # the same figure in three ways: 0.01 % each
    return f"eigenvalues {eigenvalues / ours:.1f}x, Gram iteration {gram_s / ours:.1f}x as long"


def _grams(kernel: Array, cells: Sequence[int]) -> Iterator[Array]:
    """F* F, or F F* if that is smaller, at one of w and -w for all frequencies, each by itself."""
    if kernel.shape[0] < kernel.shape[1]:
        kernel = kernel.swapaxes(0, 1)
    row_phases = np.exp(2j * np.pi / cells[0] * np.outer(np.arange(kernel.shape[2]), np.arange(cells[0])))
    for column in range(cells[1] // 2 + 1):
        along_rows = kernel @ np.exp(2j * np.pi / cells[1] * column * np.arange(kernel.shape[3]))
        for phases in row_phases.T:
            symbol = along_rows @ phases
            yield symbol.conj().T @ symbol


def _gram_iteration(gram: Array, *, tightness: float = 1e-4) -> float:
    """||F|| <= ||(F* F)^(2^(t-1))||_F^(1/2^t) (Delattre et al. 2023), with as many steps t as `tightness` takes."""
    logarithm, exponent, bound = 0.0, 1.0, np.inf
    while True:
        size = float(np.linalg.norm(gram))
        gram = gram / size
        logarithm += exponent * np.log(size)
        previous, bound = bound, float(np.exp(logarithm / 2))
        if previous <= bound * (1 + tightness / 2):
            return bound
        gram, exponent = gram @ gram, exponent / 2


def _ratios(kernel: Array, stride: int, size: int) -> list[float]:
    taps = kernel.shape[2]
    pad = taps // 2
    exact = _exact_norm(kernel, stride, size, pad)
    phases, _ = polyphase(kernel, strides=(stride, stride), dilations=(1, 1))
    padded = (-(-(size + 2 * pad) // stride),) * 2
    by_grid = [grid_maximum(phases[None], cells=(n, n)).value * grid_slack(phases.shape[2:], (n, n)) for n in (8, 16, 32)]
    bounds = [*by_grid, grid_maximum(phases[None], cells=padded).value, unfolding_bound(phases[None])]
    return [bound / exact for bound in bounds]


def _exact_norm(kernel: Array, stride: int, size: int, pad: int) -> float:
    """The largest singular value of the operator as a matrix."""
    out_channels, in_channels, taps, _ = kernel.shape
    outputs = (size + 2 * pad - taps) // stride + 1
    reads = np.zeros((taps, outputs, size))
    for tap in range(taps):
        for out in range(outputs):
            if 0 <= (source := out * stride + tap - pad) < size:
                reads[tap, out, source] = 1
    tensor = np.einsum("oirs,rax,sby->oabixy", kernel, reads, reads, optimize=True)
    return float(np.linalg.norm(tensor.reshape(out_channels * outputs**2, in_channels * size**2), 2))


def _seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
