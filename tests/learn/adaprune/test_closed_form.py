import numpy as np
import pytest
import torch

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.adaprune import closed_form
from masksparse_deploy.learn.adaprune.closed_form import reconstruction_error, solve_kept

INPUTS, ROWS = 16, 6
# What rounding in float64 may add to a squared error, relative to the squared outputs: some thousand operations.
ROUNDING = 1e-12


def system(samples: int = 200, *, seed: int = 0, dead: tuple[int, ...] = ()) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs that depend on one another, weights, and a 2:4 mask by magnitude."""
    generator = np.random.default_rng(seed)
    x = np.maximum(generator.standard_normal((samples, INPUTS)) @ generator.standard_normal((INPUTS, INPUTS)), 0)
    x[:, dead] = 0
    weight = generator.standard_normal((ROWS, INPUTS))
    keep = NMPattern(n=2, m=4).keep_largest(np.abs(weight), group_axis=1)
    return torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(keep)


def error(x: torch.Tensor, weight: torch.Tensor, other: torch.Tensor) -> float:
    return float(((x @ (other - weight).T) ** 2).sum())


def test_it_is_the_least_squares_solution() -> None:
    x, weight, keep = system()
    found = solve_kept(x.T @ x, weight, keep, ridge=1e-14).numpy()
    for row in range(ROWS):
        kept = keep[row].numpy()
        expected, *_ = np.linalg.lstsq(x.numpy()[:, kept], (x @ weight[row]).numpy(), rcond=None)
        # The condition of X^T X is below 1e6 here, so that the ridge changes less than 1e-8 of the solution.
        np.testing.assert_allclose(found[row, kept], expected, rtol=1e-7, atol=1e-8)
        assert not found[row, ~kept].any()


def test_a_ridge_draws_towards_the_dense_weights() -> None:
    x, weight, keep = system()
    ridge = 0.3 * float((x.T @ x).diagonal().mean())
    found = solve_kept(x.T @ x, weight, keep, ridge=0.3).numpy()
    for row in range(ROWS):
        kept = keep[row].numpy()
        # The same as a regression with further samples, which ask for the dense weights.
        stacked = np.vstack([x.numpy()[:, kept], np.sqrt(ridge) * np.eye(kept.sum())])
        asked = np.concatenate([(x @ weight[row]).numpy(), np.sqrt(ridge) * weight[row].numpy()[kept]])
        np.testing.assert_allclose(found[row, kept], np.linalg.lstsq(stacked, asked, rcond=None)[0], rtol=1e-9, atol=1e-10)
    far = solve_kept(x.T @ x, weight, keep, ridge=1e12)
    np.testing.assert_allclose(far, torch.where(keep, weight, 0.0), rtol=1e-9)


@pytest.mark.parametrize("ridge", [1e-8, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("samples", [1, 5, 200])
@pytest.mark.parametrize("dead", [(), (0, 3, 4, 5)])
def test_the_error_is_never_above_that_of_dropping_alone(ridge: float, samples: int, dead: tuple[int, ...]) -> None:
    for seed in range(20):
        x, weight, keep = system(samples, seed=seed, dead=dead)
        dropped = torch.where(keep, weight, 0.0)
        fitted = solve_kept(x.T @ x, weight, keep, ridge=ridge)
        assert error(x, weight, fitted) <= error(x, weight, dropped) + ROUNDING * error(x, weight, 0 * weight)


def test_a_ridge_that_draws_towards_zero_would_not_keep_that_promise() -> None:
    x, weight, keep = system(dead=())
    gram = x.T @ x
    ridge = 100.0 * gram.diagonal().mean()
    drawn = torch.zeros_like(weight)
    for row in range(ROWS):
        kept = keep[row]
        right = (gram @ weight[row])[kept]
        drawn[row, kept] = torch.linalg.solve(gram[kept][:, kept] + ridge * torch.eye(int(kept.sum())), right)
    assert error(x, weight, drawn) > error(x, weight, torch.where(keep, weight, 0.0))


def test_a_row_that_keeps_everything_stays() -> None:
    x, weight, keep = system()
    assert torch.equal(solve_kept(x.T @ x, weight, torch.ones_like(keep), ridge=1e-3), weight)


def test_weights_whose_inputs_are_never_active_stay() -> None:
    x, weight, keep = system(dead=(2, 7))
    found = solve_kept(x.T @ x, weight, keep, ridge=1e-3)
    for place in (2, 7):
        assert torch.equal(found[:, place], torch.where(keep, weight, 0.0)[:, place])
    assert bool((found != torch.where(keep, weight, 0.0)).any())
    nothing = solve_kept(0 * (x.T @ x), weight, keep, ridge=1e-3)
    assert torch.equal(nothing, torch.where(keep, weight, 0.0))


def test_a_row_of_zeros_stays_one() -> None:
    x, weight, keep = system()
    weight[3] = 0
    assert not solve_kept(x.T @ x, weight, keep, ridge=1e-3)[3].any()


def test_rows_are_solved_in_batches_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, keep = system()
    together = solve_kept(x.T @ x, weight, keep, ridge=1e-3)
    monkeypatch.setattr(closed_form, "_BATCH_VALUES", 4 * (INPUTS // 2) ** 2)
    np.testing.assert_allclose(solve_kept(x.T @ x, weight, keep, ridge=1e-3), together, rtol=1e-12)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("dead", [(), (0, 3, 4, 5)])
def test_conjugate_gradients_find_the_same(monkeypatch: pytest.MonkeyPatch, ridge: float, dead: tuple[int, ...]) -> None:
    x, weight, keep = system(dead=dead)
    weight[3] = 0
    gram = x.T @ x
    direct = solve_kept(gram, weight, keep, ridge=ridge)
    monkeypatch.setattr(closed_form, "_ITERATED_COUNT", 1)
    monkeypatch.setattr(closed_form, "_factorised", lambda *_: pytest.fail("must not be needed"))
    iterated = solve_kept(gram, weight, keep, ridge=ridge)
    assert not iterated[3].any()
    strength = ridge * gram.diagonal().mean()

    def objective(row: int, other: torch.Tensor) -> float:
        difference = other[row] - weight[row]
        on_kept = difference[keep[row]]
        return float(((x @ difference) ** 2).sum() + strength * (on_kept**2).sum())

    for row in range(ROWS):
        matrix = gram[keep[row]][:, keep[row]] + strength * torch.eye(int(keep[row].sum()))
        scale = matrix.diagonal().rsqrt()
        condition = float(torch.linalg.cond(scale[:, None] * matrix * scale))
        least, most = objective(row, direct), objective(row, torch.where(keep, weight, 0.0))
        assert objective(row, iterated) - least <= closed_form._RESIDUAL**2 * condition * (most - least) + ROUNDING * most


def test_without_convergence_matrices_are_factorised_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, keep = system()
    direct = solve_kept(x.T @ x, weight, keep, ridge=1e-3)
    monkeypatch.setattr(closed_form, "_ITERATED_COUNT", 1)
    monkeypatch.setattr(closed_form, "_MOST_STEPS", 2)
    assert torch.equal(solve_kept(x.T @ x, weight, keep, ridge=1e-3), direct)


def test_a_ridge_that_rounding_swallows_is_refused() -> None:
    x, weight, keep = system(samples=3)
    with pytest.raises(UsageError, match=r"mask\.ridge 1e-30 is too small.*use 1e-9 or more"):
        solve_kept(x.T @ x, weight, keep, ridge=1e-30)


def test_the_error_from_the_gram_matrix_is_that_of_the_outputs() -> None:
    x, weight, keep = system()
    other = torch.where(keep, weight, 0.0)
    assert reconstruction_error(x.T @ x, weight, other) == pytest.approx(error(x, weight, other), rel=1e-10)
