"""Tiles to try solvers on, and what the best of their admissible tiles keeps, found by others than the solvers."""

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.sparse

from masksparse_deploy.learn.transposable.enumeration import admissible_tiles

Floats = npt.NDArray[np.floating]
Booleans = npt.NDArray[np.bool_]


def random_tiles(count: int, m: int, *, kind: str = "normal", seed: int = 0) -> npt.NDArray[np.float32]:
    """Magnitudes (count, m, m) of one of the kinds in KINDS."""
    generator = np.random.default_rng(seed)
    shape = (count, m, m)
    if kind == "few values":
        values = generator.integers(0, 3, shape)
    elif kind == "8 bits":
        values = generator.integers(0, 128, shape)
    elif kind == "zero":
        values = np.zeros(shape)
    elif kind == "equal":
        values = np.full(shape, 0.1)
    elif kind == "zero lines":
        values = np.abs(generator.standard_normal(shape)) * (generator.random((count, m, 1)) < 0.5)
    elif kind == "huge range":
        values = np.exp(generator.uniform(-80, 80, shape))
    elif kind == "subnormal":
        values = generator.integers(0, 2**20, shape) * 2.0**-149
    elif kind == "enormous":
        values = generator.uniform(0.5, 1, shape) * np.finfo(np.float32).max
    else:
        values = np.abs(generator.standard_normal(shape))
    return values.astype(np.float32)


KINDS = ("normal", "few values", "8 bits", "zero", "equal", "zero lines", "huge range", "subnormal", "enormous")


def kept_sums(magnitudes: Floats, keep: Booleans) -> npt.NDArray[np.float64]:
    """(tiles,)"""
    return np.where(keep, magnitudes.astype(np.float64), 0).sum(axis=(1, 2))


def best_sums_by_trying_all(magnitudes: Floats, n: int) -> npt.NDArray[np.float64]:
    """(tiles,), a loop over the admissible tiles."""
    best = np.full(len(magnitudes), -np.inf)
    for candidate in admissible_tiles(n, magnitudes.shape[-1]):
        best = np.maximum(best, magnitudes.astype(np.float64)[:, candidate].sum(axis=1))
    return best


def best_sum_by_linear_program(tile: Floats, n: int) -> float:
    """Of one tile, by HiGHS; its own tolerance is 1e-7 of an objective whose coefficients are at most 1."""
    m = len(tile)
    largest = float(tile.max())
    lines = scipy.sparse.vstack(
        [scipy.sparse.kron(scipy.sparse.eye(m), np.ones(m)), scipy.sparse.kron(np.ones(m), scipy.sparse.eye(m))]
    )
    found = scipy.optimize.linprog(
        -tile.ravel() / largest, A_eq=lines.tocsr(), b_eq=np.full(2 * m, n), bounds=(0, 1), method="highs"
    )
    assert found.status == 0
    return float(-found.fun) * largest


def assert_exactly_n(keep: Booleans, n: int) -> None:
    assert (keep.sum(axis=1) == n).all()
    assert (keep.sum(axis=2) == n).all()
