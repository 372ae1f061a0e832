"""The kept weights that come closest to the dense layer's outputs, by least squares."""

import torch

from masksparse_deploy.core.errors import UsageError

__all__ = ["reconstruction_error", "solve_kept"]

# Rows are solved together as long as their matrices have so few values, 64 MiB of float64.
_BATCH_VALUES = 2**23


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
    places = keep.nonzero()[:, 1].view(len(keep), -1)
    # What dropping takes away, seen from every input.
    lost = torch.where(keep, 0.0, dense) @ gram
    batch = max(1, _BATCH_VALUES // places.shape[1] ** 2)
    for start in range(0, len(keep), batch):
        rows = slice(start, start + batch)
        chosen = places[rows]
        systems = gram[chosen[:, :, None], chosen[:, None, :]]
        systems.diagonal(dim1=1, dim2=2).add_(strength)
        factors, failed = torch.linalg.cholesky_ex(systems)
        if bool(failed.any()):
            raise UsageError(
                f"mask.ridge {ridge:g} is too small: the inputs of a layer depend on one another, and rounding leaves no "
                "solution; use 1e-9 or more"
            )
        change = torch.cholesky_solve(lost[rows].gather(1, chosen)[:, :, None], factors)[:, :, 0]
        masked[rows] = masked[rows].scatter_add(1, chosen, change)
    return masked


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
