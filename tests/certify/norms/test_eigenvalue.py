"""Largest eigenvalues by Cholesky factorisations; what rounding could hide is planted and found."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from masksparse_deploy.certify.norms import eigenvalue
from masksparse_deploy.certify.norms.eigenvalue import cholesky_deficits, largest_eigenvalue, singular_value_from_below
from masksparse_deploy.certify.norms.symbol import _gram_batches, gram_rounding, symbol_at

Array = npt.NDArray[Any]

SLACK = 1e-4


def grams(count: int, size: int, *, seed: int = 0, real: bool = False) -> Array:
    generator = np.random.default_rng(seed)
    symbols = generator.standard_normal((count, size + 2, size))
    if not real:
        symbols = symbols + 1j * generator.standard_normal(symbols.shape)
    stack: Array = symbols.conj().swapaxes(1, 2) @ symbols
    return stack


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(("count", "size"), [(1, 1), (20, 1), (30, 5), (7, 40)])
def test_the_largest_of_all_is_found_from_above_and_tightly(count: int, size: int, real: bool) -> None:
    stack = grams(count, size, real=real)
    exact = np.linalg.eigvalsh(stack)[:, -1]
    half = (count + 1) // 2
    bound, (batch, index) = largest_eigenvalue([stack[:half], stack[half:]], slack=SLACK)
    assert exact.max() <= bound <= exact.max() * (1 + 1.01 * SLACK)
    assert exact[batch * half + index] * (1 + 1.01 * SLACK) >= bound


def test_matrices_whose_frobenius_norm_is_just_above_the_others_count() -> None:
    direction = np.ones(5) / 5**0.5
    stack = np.array([scale * np.outer(direction, direction) for scale in (1.0, 1.3, 1.29, 1.2)])
    bound, witness = largest_eigenvalue([stack[:1], stack[1:]], slack=SLACK)
    assert 1.3 <= bound <= 1.3 * (1 + 1.01 * SLACK)
    assert witness == (1, 0)


def test_no_matrices_but_zeros() -> None:
    assert largest_eigenvalue([np.zeros((3, 4, 4))], slack=SLACK) == (0.0, (0, 0))


def test_lanczos_steps_that_miss_the_largest_do_not_make_the_bound_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = grams(10, 40)
    exact = np.linalg.eigvalsh(stack)[:, -1].max()
    monkeypatch.setattr(eigenvalue, "ritz_value", lambda gram, tolerance: float(np.trace(gram).real) / len(gram))
    bound, _ = largest_eigenvalue([stack], slack=SLACK)
    assert exact <= bound <= exact * (1 + 1.01 * SLACK)


def test_a_proof_that_accepts_everything_is_too_small() -> None:
    stack = grams(10, 40)
    bound, _ = largest_eigenvalue([stack], slack=SLACK, deficits=lambda matrices: np.zeros(len(matrices)))
    assert bound < np.linalg.eigvalsh(stack)[:, -1].max()


def indefinite_by_rounding(count: int) -> Iterator[tuple[Array, float]]:
    """Matrices [[I, b], [b^T, c]] with c just below b.b, and how far: their smallest eigenvalue is negative, and at least that.

    Exactly: c and b are floating-point numbers, and the difference is taken in rational arithmetic.
    """
    generator = np.random.default_rng(0)
    for _ in range(count):
        b = generator.random(40)
        exact = sum((Fraction(x) ** 2 for x in b.tolist()), Fraction(0))
        c = float(exact)
        while Fraction(c) >= exact:
            c = np.nextafter(c, 0)
        matrix = np.eye(41)
        matrix[-1, :-1] = matrix[:-1, -1] = b
        matrix[-1, -1] = c
        yield matrix, float(exact - Fraction(c))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_a_factorisation_that_completes_by_rounding_is_within_its_allowance(dtype: Any) -> None:
    fooled = 0
    for matrix, depth in indefinite_by_rounding(300):
        (deficit,) = cholesky_deficits(matrix[None].astype(dtype))
        assert deficit >= depth
        fooled += np.isfinite(deficit)
    # so many times a proof that forgets the allowance would have been false
    assert fooled > 10


def test_gram_matrices_are_off_by_less_than_is_allowed_and_by_more_than_nothing() -> None:
    generator = np.random.default_rng(0)
    worst = 0.0
    for _ in range(20):
        kernel = generator.standard_normal((1, 6, 4, 3, 3))
        frequencies = np.array([[k, 2 * k + 1] for k in range(5)])
        (computed,) = _gram_batches(kernel, (7, 11), frequencies, 5)
        for gram, (row, column) in zip(computed, frequencies, strict=True):
            difference = np.linalg.norm((gram - exact_gram(kernel[0], row, column)).astype(np.complex128), 2)
            assert difference <= gram_rounding(kernel)
            worst = max(worst, difference)
    assert worst > 0


def exact_gram(kernel: Array, row: int, column: int) -> Array:
    """F* F in extended precision, at 2 pi row / 7 and 2 pi column / 11."""
    turn = 8 * np.arctan(np.longdouble(1))
    angle = turn * (np.longdouble(row) / 7 * np.arange(3)[:, None] + np.longdouble(column) / 11 * np.arange(3))
    phases = np.cos(angle) + 1j * np.sin(angle)
    symbol = np.einsum("oirs,rs->oi", kernel.astype(np.longdouble), phases)
    gram: Array = np.einsum("oi,oj->ij", symbol.conj(), symbol)
    return gram


def test_a_symbol_is_the_entry_of_the_discrete_fourier_transform() -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 4, 2, 3))
    transform = np.fft.ifftn(kernel, (5, 6), axes=(2, 3), norm="forward")
    for cell in ((0, 0), (1, 0), (4, 5)):
        np.testing.assert_allclose(symbol_at(kernel, cell=cell, cells=(5, 6)), transform[:, :, cell[0], cell[1]], atol=1e-13)


@pytest.mark.parametrize("shape", [(5, 7), (60, 40), (40, 60)])
def test_singular_values_from_below(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    exact = float(np.linalg.norm(matrix, 2))
    assert 0.99 * exact <= singular_value_from_below(matrix) <= exact * (1 + 1e-12)
    assert 0.99 * exact <= singular_value_from_below(1j * matrix) <= exact * (1 + 1e-12)
