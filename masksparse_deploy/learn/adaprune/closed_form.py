"""The kept weights that come closest to the dense layer's outputs, by least squares."""

import torch

from masksparse_deploy.core.errors import UsageError

__all__ = ["reconstruction_error", "solve_kept"]

# Rows are solved together as long as their matrices have so few values, 64 MiB of float64.
_BATCH_VALUES = 2**23
# From so many kept weights a row on, conjugate gradients on all rows at once: more than twice as fast as factorising each row's
# matrix (0.104 against 0.244 s of processor time a row with 2,304 kept weights, 64 rows, float64).
_ITERATED_COUNT = 768
# Where they end: the relative residual in the preconditioner's norm. What is left to be gained is at most its square times the
# condition number of the preconditioned matrix.
_RESIDUAL = 1e-6
_MOST_STEPS = 500


def solve_kept(gram: torch.Tensor, dense: torch.Tensor, keep: torch.Tensor, *, ridge: float) -> torch.Tensor:
    """For every row w of `dense`, the v on the kept places that minimises |X v - X w|^2 + ridge g |v - w|^2 over them.

    Hubara et al. 2021 (arXiv 2102.08124) minimise the first term by gradient descent. Here it is solved: with S the kept and D
    the dropped places of a row, v_S = w_S + (G_SS + ridge g I)^-1 G_SD w_D, where G = X^T X and g is the mean of its diagonal.
    The ridge draws towards the dense weights, not towards zero: a weight whose inputs are never active stays, a row that keeps
    everything stays, and the error is never above that of dropping weights alone, for any ridge.

    Args:
        gram: X^T X, float64 (K, K).
        dense: float64 (rows, K).
        keep: bool (rows, K); every row keeps equally many.
        ridge: a share of the mean diagonal entry, above 0.

    Returns:
        float64 (rows, K), 0 where dropped.

    Raises:
        UsageError: `ridge` is too small for inputs that depend on one another.
    """
    masked = torch.where(keep, dense, 0.0)
    strength = ridge * float(gram.diagonal().mean())
    if strength == 0.0:  # no input is ever active, and any weights do
        return masked
    # What dropping takes away, seen from every input.
    lost = torch.where(keep, 0.0, dense) @ gram
    change = None
    if int(keep[0].sum()) >= _ITERATED_COUNT:
        change = _iterated(gram, lost, keep, strength)
    if change is None:
        change = _factorised(gram, lost, keep, strength)
    if change is None:
        raise UsageError(
            f"mask.ridge {ridge:g} is too small: the inputs of a layer depend on one another, and rounding leaves no "
            "solution; use 1e-9 or more"
        )
    return masked + change


def _factorised(gram: torch.Tensor, lost: torch.Tensor, keep: torch.Tensor, strength: float) -> torch.Tensor | None:
    """(G_SS + strength I)^-1 lost_S for every row, by Cholesky factorisation; None where rounding makes a matrix indefinite."""
    places = keep.nonzero()[:, 1].view(len(keep), -1)
    change = torch.zeros_like(lost)
    batch = max(1, _BATCH_VALUES // places.shape[1] ** 2)
    for start in range(0, len(keep), batch):
        rows = slice(start, start + batch)
        chosen = places[rows]
        systems = gram[chosen[:, :, None], chosen[:, None, :]]
        systems.diagonal(dim1=1, dim2=2).add_(strength)
        factors, failed = torch.linalg.cholesky_ex(systems)
        if bool(failed.any()):
            return None
        change[rows].scatter_(1, chosen, torch.cholesky_solve(lost[rows].gather(1, chosen)[:, :, None], factors)[:, :, 0])
    return change


def _iterated(gram: torch.Tensor, lost: torch.Tensor, keep: torch.Tensor, strength: float) -> torch.Tensor | None:
    """The same by conjugate gradients on all rows at once, preconditioned with the diagonal; None if they do not converge."""
    inverse = torch.where(keep, 1.0 / (gram.diagonal() + strength), 0.0)
    residual = torch.where(keep, lost, 0.0)
    change, direction = torch.zeros_like(residual), inverse * residual
    size = (residual * direction).sum(1, keepdim=True)
    # A row that loses nothing is solved by zero, and must not divide by it.
    goal = (_RESIDUAL**2 * size).clamp_min(torch.finfo(size.dtype).tiny)
    for _ in range(_MOST_STEPS):
        if bool((size <= goal).all()):
            return change
        product = torch.where(keep, direction @ gram, 0.0) + strength * direction
        step = torch.where(size <= goal, 0.0, size / (direction * product).sum(1, keepdim=True))
        change += step * direction
        residual -= step * product
        preconditioned = inverse * residual
        before, size = size, (residual * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + torch.where(before <= goal, 0.0, size / before) * direction
    return None


def reconstruction_error(gram: torch.Tensor, dense: torch.Tensor, other: torch.Tensor) -> float:
    """The squared distance |X v - X w|^2 between the outputs of two weights, over all rows and positions.

    Relative to |X w|^2, which is `reconstruction_error(gram, dense, 0 * dense)`, it says which share of the output is lost.

    Args:
        gram: X^T X, float64 (K, K).
        dense: float64 (rows, K).
        other: float64 (rows, K).
    """
    difference = other - dense
    return float(((difference @ gram) * difference).sum())
