"""Operator norms: power iteration <= exact <= bound, over random geometries; bounds that are too small are caught."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksparse_deploy.certify.operator_norm import (
    NormCache,
    convolution_norm,
    grid_bound,
    matrix_norm,
    polyphase,
    unfolding_bound,
)
from masksparse_deploy.graph.operators import convolution

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A convolution with an input size, small enough to be written out as a matrix."""

    kernel: Array
    size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def padded_size(self) -> tuple[int, int]:
        return self.size[0] + self.pads[0] + self.pads[2], self.size[1] + self.pads[1] + self.pads[3]

    def matrix(self) -> Array:
        """The operator, one column for each input element."""
        channels = self.kernel.shape[1] * self.groups
        basis = np.eye(channels * math.prod(self.size)).reshape(-1, channels, *self.size)
        images = convolution(
            basis,
            self.kernel,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            groups=self.groups,
        )
        return images.reshape(len(basis), -1).T


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    kernel_size = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    dilations = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilations, strict=True)]
    smallest = [max(1, extents[0] - pads[0] - pads[2]), max(1, extents[1] - pads[1] - pads[3])]
    size = draw(st.tuples(st.integers(smallest[0], smallest[0] + 4), st.integers(smallest[1], smallest[1] + 4)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kernel = generator.standard_normal((groups * draw(st.integers(1, 2)), draw(st.integers(1, 3)), *kernel_size))
    if draw(st.booleans()):
        kernel = np.abs(kernel)  # the norm is then at frequency zero, where zero padding matters most
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return Case(kernel=kernel, size=size, strides=strides, pads=pads, dilations=dilations, groups=groups)


def power_iteration(matrix: Array, steps: int = 30) -> float:
    """A lower bound of the largest singular value, and only that."""
    x = np.random.default_rng(0).standard_normal(matrix.shape[1])
    for _ in range(steps):
        y = matrix.T @ (matrix @ x)
        if not y.any():
            return 0.0
        x = y / np.linalg.norm(y)
    return float(np.linalg.norm(matrix @ x))


Bound = Callable[[Case], float]


def with_size(case: Case) -> float:
    return convolution_norm(
        case.kernel,
        strides=case.strides,
        dilations=case.dilations,
        groups=case.groups,
        padded_size=case.padded_size,
        grid=8,
    ).value


def without_size(case: Case) -> float:
    return convolution_norm(case.kernel, strides=case.strides, dilations=case.dilations, groups=case.groups, grid=8).value


def _phases(case: Case) -> list[Array]:
    parts = np.split(case.kernel, case.groups)
    return [polyphase(part, strides=case.strides, dilations=case.dilations)[0] for part in parts]


def by_grid(case: Case) -> float:
    return max(grid_bound(part, cells=[max(4, t) for t in part.shape[2:]], slack=True) for part in _phases(case))


def by_unfolding(case: Case) -> float:
    return max(unfolding_bound(part) for part in _phases(case))


def circular(case: Case) -> float:
    """The planted false bound: exact for circular padding at the size of the input, but not a bound for zero padding."""
    parts = _phases(case)
    cells = [max(n // s, t) for n, s, t in zip(case.size, case.strides, parts[0].shape[2:], strict=True)]
    return max(grid_bound(part, cells=cells, slack=False) for part in parts)


def is_bound(case: Case, bound: Bound) -> bool:
    """Whether it holds; 1e-12 allows for the rounding of the singular value decomposition."""
    exact = float(np.linalg.norm(case.matrix(), 2))
    assert power_iteration(case.matrix()) <= exact * (1 + 1e-12)
    return exact <= bound(case) * (1 + 1e-12)


@settings(max_examples=300, deadline=None)
@given(case=cases())
def test_every_bound_is_at_least_the_exact_norm(case: Case) -> None:
    for bound in (with_size, without_size, by_grid, by_unfolding):
        assert is_bound(case, bound), bound.__name__


def random_cases(count: int) -> list[Case]:
    """3x3 convolutions padded to keep their size, as in CNNs."""
    generator = np.random.default_rng(5)
    found = []
    for _ in range(count):
        out_channels, in_channels, size = (int(value) for value in generator.integers((1, 1, 3), (3, 3, 7)))
        kernel = generator.standard_normal((out_channels, in_channels, 3, 3))
        found.append(Case(kernel=kernel, size=(size, size), pads=(1, 1, 1, 1)))
    return found


def test_the_fourier_norm_at_the_size_of_the_input_is_not_a_bound() -> None:
    tried = random_cases(200)
    assert sum(not is_bound(case, circular) for case in tried) >= 3
    assert all(is_bound(case, with_size) for case in tried)


def test_a_bound_that_is_ten_percent_small_is_caught() -> None:
    def shrunk(case: Case) -> float:
        return 0.9 * with_size(case)

    assert any(not is_bound(case, shrunk) for case in random_cases(200))


def test_a_grid_bound_without_its_slack_is_caught() -> None:
    def coarse(case: Case) -> float:
        return grid_bound(case.kernel, cells=(3, 3), slack=False)

    assert any(not is_bound(case, coarse) for case in random_cases(200))


def test_a_pointwise_convolution_is_a_matrix() -> None:
    kernel = np.random.default_rng(0).standard_normal((5, 3, 1, 1))
    bound = convolution_norm(kernel, strides=(2, 2))
    assert bound.method == "matrix"
    # outward rounding adds 1e-9
    assert bound.value == pytest.approx(np.linalg.norm(kernel[:, :, 0, 0], 2), rel=1e-8)
    assert matrix_norm(kernel[:, :, 0, 0]).value == pytest.approx(bound.value, rel=1e-12)


def test_the_winner_is_named() -> None:
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 3))
    assert convolution_norm(kernel).method == "grid"
    assert convolution_norm(kernel, padded_size=(10, 10)).method == "padded grid"
    assert convolution_norm(kernel, padded_size=(226, 226)).method == "grid"
    one_tap = np.zeros((1, 1, 3, 3))
    one_tap[0, 0, 1, 1] = 2.0
    assert convolution_norm(one_tap).value == pytest.approx(2.0, rel=0.02)  # slack of the 32 x 32 grid: 1 %
    assert convolution_norm(np.ones((1, 1, 3, 3))).method == "unfolding"  # all frequencies at once: (c) is exact here
    assert convolution_norm(np.zeros((2, 2, 3, 3))).value == 0.0


def test_bounds_shrink_from_unfolding_to_grid_to_padded_grid() -> None:
    kernel = np.random.default_rng(0).standard_normal((8, 8, 3, 3))
    sized, free = convolution_norm(kernel, padded_size=(10, 10)).value, convolution_norm(kernel).value
    assert sized <= free <= unfolding_bound(kernel)


def test_stride_is_exact_through_space_to_depth() -> None:
    generator = np.random.default_rng(0)
    kernel, x = generator.standard_normal((3, 2, 3, 3)), generator.standard_normal((1, 2, 9, 9))
    phases, shrink = polyphase(kernel, strides=(2, 2), dilations=(1, 1))
    assert phases.shape == (3, 8, 2, 2)
    assert shrink == (2, 2)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
    cells = padded.reshape(1, 2, 5, 2, 5, 2).transpose(0, 1, 3, 5, 2, 4)
    deep = cells.reshape(1, 8, 5, 5)
    np.testing.assert_allclose(convolution(deep, phases), convolution(x, kernel, strides=(2, 2)), atol=1e-12)


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = convolution_norm

    def counting(kernel: Array, **options: Any) -> Any:
        calls.append(kernel.shape)
        return original(kernel, **options)

    monkeypatch.setattr("masksparse_deploy.certify.operator_norm.convolution_norm", counting)
    cache = NormCache(grid=8)
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 3))
    geometry: dict[str, Any] = {"dilations": (1, 1), "groups": 1, "padded_size": (6, 6)}
    first = cache.convolution(kernel, strides=(1, 1), **geometry)
    assert cache.convolution(kernel.copy(), strides=(1, 1), **geometry) == first
    assert len(calls) == 1
    cache.convolution(kernel, strides=(2, 2), **geometry)
    cache.convolution(2 * kernel, strides=(1, 1), **geometry)
    assert len(calls) == 3
