"""Operator norms: power iteration <= exact <= bound, over random geometries; bounds that are too small are caught.

MASKSPARSE_NORM_CASES sets how many random convolutions are tried; many want pytest's --timeout=0 as well.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from masksparse_deploy.certify.norms import symbol
from masksparse_deploy.certify.norms.polyphase import polyphase
from masksparse_deploy.certify.norms.symbol import GridMaximum, grid_maximum, grid_slack
from masksparse_deploy.certify.norms.unfolding import frobenius_bound, unfolding_bound
from masksparse_deploy.certify.operator_norm import NormCache, convolution_norm, matrix_norm
from masksparse_deploy.graph.operators import convolution
from tests.certify.norms.cases import Case, power_iteration, random_case, same_size_case

Array = npt.NDArray[Any]
Bound = Callable[[Case], float]

CASE_COUNT = int(os.environ.get("MASKSPARSE_NORM_CASES", "2000"))


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
    return convolution_norm(case.kernel, strides=case.strides, dilations=case.dilations, groups=case.groups, grid=4).value


def phases_of(case: Case) -> Array:
    phases, _ = polyphase(case.kernel, strides=case.strides, dilations=case.dilations)
    return phases.reshape(case.groups, -1, *phases.shape[1:])


def by_grid(case: Case) -> float:
    phases = phases_of(case)
    taps = phases.shape[3:]
    return grid_maximum(phases, cells=taps).value * grid_slack(taps, taps)


def by_unfolding(case: Case) -> float:
    return unfolding_bound(phases_of(case))


def by_frobenius(case: Case) -> float:
    return frobenius_bound(phases_of(case))


def circular(case: Case) -> float:
    """The planted false bound: exact for circular padding at the size of the input, but not a bound for zero padding."""
    phases = phases_of(case)
    cells = [max(n // s, t) for n, s, t in zip(case.size, case.strides, phases.shape[3:], strict=True)]
    return grid_maximum(phases, cells=cells).value


def is_bound(case: Case, bound: Bound) -> bool:
    """Whether it holds; 1e-12 allows for the rounding of the singular value decomposition."""
    exact = float(np.linalg.norm(case.matrix(), 2))
    assert power_iteration(case.matrix()) <= exact * (1 + 1e-12)
    return exact <= bound(case) * (1 + 1e-12)


def same_size_cases(count: int = 200) -> list[Case]:
    generator = np.random.default_rng(5)
    return [same_size_case(generator) for _ in range(count)]


def test_every_bound_is_at_least_the_exact_norm() -> None:
    generator = np.random.default_rng(0)
    for number in range(CASE_COUNT):
        case = random_case(generator)
        matrix = case.matrix()
        exact = float(np.linalg.norm(matrix, 2))
        assert power_iteration(matrix) <= exact * (1 + 1e-12)
        for bound in (with_size, without_size, by_grid, by_unfolding, by_frobenius):
            assert exact <= bound(case) * (1 + 1e-12), (number, bound.__name__)


def test_the_operators_written_out_are_those_of_the_graph() -> None:
    generator, tried = np.random.default_rng(1), 0
    while tried < 20:
        case = random_case(generator)
        if len(case.size) != 2:
            continue
        tried += 1
        x = generator.standard_normal((1, case.kernel.shape[1] * case.groups, *case.size))
        (top, bottom), (left, right) = case.pads
        geometry: dict[str, Any] = {"strides": case.strides, "dilations": case.dilations, "groups": case.groups}
        expected = convolution(x, case.kernel, pads=(top, left, bottom, right), **geometry)
        np.testing.assert_allclose(case.matrix() @ x.ravel(), expected.ravel(), rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_the_fourier_norm_at_the_size_of_the_input_is_not_a_bound() -> None:
    tried = same_size_cases()
    assert sum(not is_bound(case, circular) for case in tried) >= 3
    assert all(is_bound(case, with_size) for case in tried)


def test_a_bound_that_is_ten_percent_small_is_caught() -> None:
    def shrunk(case: Case) -> float:
        return 0.9 * with_size(case)

    assert any(not is_bound(case, shrunk) for case in same_size_cases())


def test_a_grid_bound_without_its_slack_is_caught() -> None:
    def coarse(case: Case) -> float:
        return grid_maximum(phases_of(case), cells=(3, 3)).value

    assert any(not is_bound(case, coarse) for case in same_size_cases())


def test_half_of_the_frequencies_that_leaves_some_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(cells: Sequence[int]) -> npt.NDArray[np.int64]:
        """Half of the rows as well as half of the columns."""
        grid = np.indices(tuple(cells)).reshape(len(cells), -1).T
        return grid[(grid <= np.array(cells) // 2).all(axis=1)]

    monkeypatch.setattr(symbol, "_half_of", forgetful)
    assert any(not is_bound(case, with_size) for case in same_size_cases())


def wrong_phases(kernel: Array, *, strides: Sequence[int], dilations: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """A planted fault: keeps only the first phase of the kernel, as if stride just dropped the other taps."""
    steps = tuple(slice(None, None, stride) for stride in strides)
    return kernel[(slice(None), slice(None), *steps)], tuple(strides)


def undivided_phases(kernel: Array, *, strides: Sequence[int], dilations: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """A planted fault: forgets that dilated taps lie apart once there is a stride."""
    return polyphase(kernel, strides=strides, dilations=(1,) * len(dilations))


@pytest.mark.parametrize("fault", [wrong_phases, undivided_phases])
def test_a_wrong_polyphase_is_caught(fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masksparse_deploy.certify.operator_norm.polyphase", fault)
    generator = np.random.default_rng(2)
    assert any(not is_bound(random_case(generator), with_size) for _ in range(300))


def test_a_norm_that_takes_the_mean_over_groups_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean_of_groups(kernel: Array, **options: Any) -> GridMaximum:
        values = [grid_maximum(part[None], **options).value for part in kernel]
        return GridMaximum(value=float(np.mean(values)), cell=(), group=0)

    monkeypatch.setattr("masksparse_deploy.certify.norms.convolution.grid_maximum", mean_of_groups)
    generator = np.random.default_rng(2)
    assert any(not is_bound(random_case(generator), with_size) for _ in range(300))


def test_the_bound_of_the_grid_is_at_most_a_hundredth_of_a_percent_above_its_maximum() -> None:
    generator = np.random.default_rng(3)
    for shape, cells in (((40, 36, 3, 3), (7, 8)), ((5, 48, 3), (9,)), ((3, 4, 2, 2, 3), (4, 5, 6))):
        kernel = generator.standard_normal(shape)
        frequencies = np.fft.fftn(kernel, cells, axes=range(2, len(shape)))
        exact = np.linalg.norm(np.moveaxis(frequencies.reshape(*shape[:2], -1), 2, 0), 2, axis=(1, 2)).max()
        assert exact <= grid_maximum(kernel[None], cells=cells).value <= exact * 1.0001


def test_a_transposed_convolution_has_the_norm_of_the_convolution_that_it_transposes() -> None:
    generator = np.random.default_rng(4)
    for _ in range(50):
        case = random_case(generator)
        transposed = case.matrix().T
        assert np.linalg.norm(transposed, 2) <= with_size(case) * (1 + 1e-12)


def test_a_pointwise_convolution_is_a_matrix() -> None:
    kernel = np.random.default_rng(0).standard_normal((5, 3, 1, 1))
    bound = convolution_norm(kernel, strides=(2, 2))
    assert bound.method == "matrix"
    exact = float(np.linalg.norm(kernel[:, :, 0, 0], 2))
    assert exact <= bound.value <= exact * (1 + 1e-8)
    # the kernel of the stride is laid out in another order, and summed in another
    assert matrix_norm(kernel[:, :, 0, 0]).value == pytest.approx(bound.value, rel=1e-12)


def test_taps_that_do_not_overlap_are_a_matrix() -> None:
    kernel = np.random.default_rng(0).standard_normal((5, 3, 4, 4))  # the patches of a vision transformer
    bound = convolution_norm(kernel, strides=(4, 4))
    assert bound.method == "matrix"
    assert bound.value == pytest.approx(float(np.linalg.norm(kernel.reshape(5, -1), 2)), rel=1e-8)


def test_the_winner_is_named() -> None:
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 3))
    assert convolution_norm(kernel).method == "grid"
    assert convolution_norm(kernel, padded_size=(10, 10)).method == "padded grid"
    assert convolution_norm(kernel, padded_size=(226, 226)).method == "grid"
    one_tap = np.zeros((1, 1, 3, 3))
    one_tap[0, 0, 1, 1] = 2.0
    assert convolution_norm(one_tap).value == pytest.approx(2.0, rel=0.02)  # slack of the 32 x 32 grid: 1 %
    assert convolution_norm(np.ones((1, 1, 3, 3))).method == "frobenius"  # all frequencies at once: exact here
    flat = np.ones((1, 1, 3, 3)) * np.diag([2.0, 1.0])[:, :, None, None]
    assert convolution_norm(flat).method == "unfolding"  # (c) is exact, and two singular values part it from Frobenius
    assert convolution_norm(np.zeros((2, 2, 3, 3))).value == 0.0


def test_bounds_shrink_from_frobenius_to_unfolding_to_grid_to_padded_grid() -> None:
    kernel = np.random.default_rng(0).standard_normal((8, 8, 3, 3))
    sized, free = convolution_norm(kernel, padded_size=(10, 10)).value, convolution_norm(kernel).value
    assert sized <= free <= unfolding_bound(kernel[None]) <= frobenius_bound(kernel[None])


def test_an_unfolding_that_cannot_be_the_smallest_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(matrices: Array, **_: Any) -> float:
        raise AssertionError("evaluated")

    monkeypatch.setattr("masksparse_deploy.certify.norms.unfolding.spectral_norm", planted)
    kernel = np.random.default_rng(0).standard_normal((1, 8, 8, 3, 3))
    assert unfolding_bound(kernel, limit=grid_maximum(kernel, cells=(8, 8)).value) == math.inf
    with pytest.raises(AssertionError, match="evaluated"):
        unfolding_bound(kernel)


def test_stride_is_exact_through_space_to_depth() -> None:
    generator = np.random.default_rng(0)
    kernel, x = generator.standard_normal((3, 2, 3, 3)), generator.standard_normal((1, 2, 9, 9))
    phases, shrink = polyphase(kernel, strides=(2, 2), dilations=(1, 1))
    assert phases.shape == (3, 8, 2, 2)
    assert shrink == (2, 2)
    assert polyphase(kernel, strides=(4, 1), dilations=(2, 3))[1] == (4, 3)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
    cells = padded.reshape(1, 2, 5, 2, 5, 2).transpose(0, 1, 3, 5, 2, 4)
    deep = cells.reshape(1, 8, 5, 5)
    np.testing.assert_allclose(convolution(deep, phases), convolution(x, kernel, strides=(2, 2)), atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e150, 1e300])
def test_weights_of_any_size_are_bounded(scale: float) -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3, 3))
    expected = convolution_norm(kernel, padded_size=(6, 6)).value * scale
    assert convolution_norm(scale * kernel, padded_size=(6, 6)).value == pytest.approx(expected, rel=1e-3)


def test_weights_that_are_not_finite_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        matrix_norm(np.array([[1.0, np.nan]]))


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = grid_maximum

    def counting(kernel: Array, **options: Any) -> Any:
        calls.append(kernel.shape)
        return original(kernel, **options)

    monkeypatch.setattr("masksparse_deploy.certify.norms.convolution.grid_maximum", counting)
    cache = NormCache(grid=8)
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 3))
    geometry: dict[str, Any] = {"dilations": (1, 1), "groups": 1, "padded_size": (6, 6)}
    first = cache.convolution(kernel, strides=(1, 1), **geometry)
    assert cache.convolution(kernel.copy(), strides=(1, 1), **geometry) == first
    assert len(calls) == 1
    cache.convolution(kernel, strides=(2, 2), **geometry)
    cache.convolution(2 * kernel, strides=(1, 1), **geometry)
    assert len(calls) == 3
