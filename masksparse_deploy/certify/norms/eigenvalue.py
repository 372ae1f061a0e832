"""A proved upper bound of the largest eigenvalue of many Hermitian matrices at once, by Cholesky factorisations.

That A = level I - G has a Cholesky factorisation proves level to be at least the largest eigenvalue of G, up to the rounding of
the factorisation, for a sixth of what eigenvalues cost. docs/bounds.md derives the rounding.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dpotrf, zpotrf
from scipy.sparse.linalg import ArpackError, eigsh, svds

__all__ = ["UNIT_ROUNDOFF", "Deficits", "cholesky_deficits", "largest_eigenvalue", "ritz_value", "singular_value_from_below"]

Array = npt.NDArray[Any]

UNIT_ROUNDOFF = 2.0**-53
# Of a stack (count, n, n) of Hermitian matrices, which it may overwrite: for each an upper bound of how far below zero its
# smallest eigenvalue can be, infinity where it knows none.
Deficits = Callable[[Array], npt.NDArray[np.float64]]
# Up to here the eigenvalues themselves are quicker than Lanczos steps.
_SMALL = 32


def largest_eigenvalue(
    batches: Iterable[Array], *, slack: float, deficits: Deficits | None = None
) -> tuple[float, tuple[int, int]]:
    """An upper bound of the largest eigenvalue of all matrices.

    A level is raised to (1 + slack) times a Ritz value, which is a lower bound, until every matrix is proved to lie below it
    by its Frobenius norm, the first step of Gram iteration (Delattre et al. 2023), or else by a Cholesky factorisation.

    Args:
        batches: stacks (count, n, n) of Hermitian positive semidefinite matrices, float64 or complex128.
        slack: how far above the largest eigenvalue the bound may be, relative.
        deficits: the proof; `cholesky_deficits` if None.

    Returns:
        The bound, at least the largest eigenvalue and, up to rounding, at most 1 + slack times as much; and (batch, index) of
        the matrix whose largest eigenvalue is that close to it.
    """
    prove = deficits or cholesky_deficits
    level, deficit, witness = 0.0, 0.0, (0, 0)
    for number, grams in enumerate(batches):
        size = grams.shape[1]
        parts = grams.reshape(len(grams), size**2).view(np.float64)
        # the factor covers the rounding of a sum of 2 n^2 squares
        frobenius = np.sqrt(np.einsum("ij,ij->i", parts, parts)) * (1 + 2 * (size**2 + 4) * UNIT_ROUNDOFF)
        unproved = np.flatnonzero(frobenius > level)
        while unproved.size:
            if level > 0:
                shifted = grams[unproved]
                np.negative(shifted, out=shifted)
                shifted[:, np.arange(size), np.arange(size)] += level
                found = prove(shifted)
                deficit = max(deficit, float(found[np.isfinite(found)].max(initial=0)))
                unproved = unproved[~np.isfinite(found)]
                if not unproved.size:
                    break
            worst = int(unproved[np.argmax(frobenius[unproved])])
            raised = (1 + slack) * ritz_value(grams[worst], tolerance=slack**0.5 / 10)
            if raised <= level:  # the Lanczos steps missed the largest; one more step of the level makes sure that this ends
                exact = float(np.linalg.eigvalsh(grams[worst])[-1])
                raised = max((1 + slack) * exact, (1 + slack) * level)
            level, witness = raised, (number, worst)
            unproved = unproved[frobenius[unproved] > level]
    # one rounding of level - g on each diagonal
    return level * (1 + 4 * UNIT_ROUNDOFF) + deficit, witness


def cholesky_deficits(matrices: Array) -> npt.NDArray[np.float64]:
    """`Deficits` on the CPU: where the factorisation R* R of A completes, R* R = A + E with ||E|| <= 4 (n + 4) u trace(A).

    Source: Higham, "Accuracy and stability of numerical algorithms", 2002, theorem 10.3, and Demmel's bound of the norm of E
    by the trace; docs/bounds.md has the constant for complex matrices.
    """
    factorise = zpotrf if np.iscomplexobj(matrices) else dpotrf
    found = np.full(len(matrices), np.inf)
    allowance = 4 * (matrices.shape[1] + 4) * UNIT_ROUNDOFF
    for index, matrix in enumerate(matrices):
        trace = float(np.trace(matrix).real)
        # the transpose of a Hermitian matrix, its conjugate, is as definite; LAPACK overwrites it in place
        _, info = factorise(matrix.T, lower=1, overwrite_a=1, clean=0)
        if info == 0:
            found[index] = allowance * trace
    return found


def ritz_value(gram: Array, *, tolerance: float) -> float:
    """A lower bound, up to rounding, of the largest eigenvalue of a Hermitian matrix (n, n), and close to it."""
    size = len(gram)
    if size > _SMALL:
        start = np.random.default_rng(0).standard_normal(size).astype(gram.dtype)
        try:
            return float(eigsh(gram, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)[0])
        except ArpackError:  # not converged, or a start in a subspace that the matrix keeps
            pass
    return float(np.linalg.eigvalsh(gram)[-1])


def singular_value_from_below(matrix: Array) -> float:
    """A lower bound, up to rounding, of the largest singular value of (rows, columns), and close to it."""
    if min(matrix.shape) > _SMALL:
        start = np.random.default_rng(0).standard_normal(min(matrix.shape)).astype(matrix.dtype)
        try:
            return float(svds(matrix, k=1, v0=start, tol=1e-3, return_singular_vectors=False)[0])
        except ArpackError:
            pass
    return float(np.linalg.norm(matrix, 2))
