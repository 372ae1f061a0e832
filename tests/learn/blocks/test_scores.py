import numpy as np
import numpy.typing as npt
import pytest

from masksparse_deploy.learn.blocks.scores import Criterion, block_scores

N = 4


def weight(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((8, 6, 3, 2), dtype=np.float32)


def by_hand(weight: npt.NDArray[np.float32], criterion: Criterion) -> npt.NDArray[np.float64]:
    """The formulas of the paper, block by block."""
    scores = np.empty((len(weight) // N, weight.shape[1]))
    for group in range(len(scores)):
        blocks = [weight[group * N : (group + 1) * N, channel].astype(np.float64).ravel() for channel in range(weight.shape[1])]
        norms = [np.abs(block).sum() for block in blocks]
        cosines = [[abs(a @ b) / np.sqrt((a @ a) * (b @ b)) if a.any() and b.any() else 0.0 for b in blocks] for a in blocks]
        redundancies = [sum(row) for row in cosines]
        for channel in range(weight.shape[1]):
            if criterion == "l1":
                scores[group, channel] = norms[channel]
                continue
            share = redundancies[channel] / sum(redundancies) if redundancies[channel] else 1.0
            scores[group, channel] = norms[channel] / sum(norms) - share
    return scores


@pytest.mark.parametrize("criterion", ["l1", "bpar"])
def test_they_are_the_formulas(criterion: Criterion) -> None:
    given = weight()
    given[:N, 2] = 0
    # Sums of 24 products of size one in float64.
    np.testing.assert_allclose(block_scores(given, N, criterion), by_hand(given, criterion), rtol=1e-13, atol=1e-13)


def test_of_blocks_of_one_norm_the_redundant_ones_score_lower() -> None:
    given = np.zeros((2, 4, 1, 1), np.float32)
    # Channels 0 and 1 are the same but for their sign; 2 and 3 hold one output channel each.
    given[:, :, 0, 0] = [[1, -1, 2, 0], [1, -1, 0, 2]]
    assert np.ptp(block_scores(given, 2, "l1")) == 0
    low, also_low, high, also_high = block_scores(given, 2, "bpar")[0]
    # Every norm is a quarter; R is 1 + 1 + 2 / sqrt(2) for the first two, and 1 + 2 / sqrt(2) for the others.
    total = 2 * (2 + 2**0.5) + 2 * (1 + 2**0.5)
    assert low == pytest.approx(0.25 - (2 + 2**0.5) / total)
    assert high == pytest.approx(0.25 - (1 + 2**0.5) / total)
    assert (also_low, also_high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(("criterion", "lowest"), [("l1", 0.0), ("bpar", -1.0)])
def test_nothing_scores_lower_than_a_block_of_zeros(criterion: Criterion, lowest: float) -> None:
    given = weight()
    given[N:, [1, 4]] = 0
    scores = block_scores(given, N, criterion)
    assert scores[1, 1] == scores[1, 4] == lowest
    assert (np.delete(scores[1], [1, 4]) > lowest).all()


@pytest.mark.parametrize("criterion", ["l1", "bpar"])
def test_a_group_of_zeros_has_scores(criterion: Criterion) -> None:
    assert np.ptp(block_scores(np.zeros((8, 6), np.float32), N, criterion)) == 0
