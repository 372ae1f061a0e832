import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from masksparse_deploy.learn.blocks.regrowth import pruned_share, regrow, regrown_count, regrowth_probabilities

SCORES = np.array([[-1.0, -0.4, 0.1, 0.5, 1.3]])
DRAWS = 20_000


def test_the_schedule_by_hand() -> None:
    # Powers of two, which are exact.
    shares = [pruned_share(progress, start=0.25, end=0.75) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert shares == [0, 0, 1 / 8, 1, 1]
    # Of 64 channels pruned, all come back at first, 56 in the middle, none at the end.
    assert [regrown_count(64, share) for share in shares] == [64, 64, 56, 0, 0]


@given(st.floats(0, 0.9), st.floats(0.01, 1), st.lists(st.floats(0, 1), min_size=2), st.integers(0, 2048))
def test_the_schedule_falls_from_all_to_nothing(start: float, length: float, progress: list[float], pruned: int) -> None:
    end = min(1.0, start + length)
    shares = [pruned_share(value, start=start, end=end) for value in (0.0, *sorted(progress), 1.0)]
    counts = [regrown_count(pruned, share) for share in shares]
    assert (counts[0], counts[-1]) == (pruned, 0)
    assert counts == sorted(counts, reverse=True)
    assert all(0 <= share <= 1 for share in shares)


def test_it_may_fall_in_one_step() -> None:
    assert [pruned_share(progress, start=0.5, end=0.0) for progress in (0, 0.5, 1)] == [1, 1, 1]


def test_probabilities_by_hand() -> None:
    powers = np.exp(SCORES / np.sqrt((SCORES**2).sum()))
    np.testing.assert_allclose(regrowth_probabilities(SCORES), powers / powers.sum(), rtol=1e-14)
    # Scores of no length have no direction either.
    np.testing.assert_allclose(regrowth_probabilities(np.zeros((2, 4))), 0.25)


def successive(probabilities: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """The chance of each ordered draw without replacement: p_a * p_b / (1 - p_a) * ... ."""
    chances = []
    for order in itertools.permutations(range(len(probabilities)), count):
        chance, left = 1.0, 1.0
        for index in order:
            chance *= probabilities[index] / left
            left -= probabilities[index]
        chances.append(chance)
    return np.array(chances)


def p_value(count: int, *, temperature: float = 1.0) -> float:
    """Of the chi-square test of draws against the softmax with the published temperature of 1."""
    probabilities = np.repeat(regrowth_probabilities(SCORES, temperature=temperature), DRAWS, axis=0)
    drawn = regrow(probabilities, count, np.random.default_rng(0))
    places = {order: place for place, order in enumerate(itertools.permutations(range(SCORES.shape[1]), count))}
    observed = np.bincount([places[tuple(row)] for row in drawn.tolist()], minlength=len(places))
    powers = np.exp(SCORES[0] / np.linalg.norm(SCORES))
    return float(stats.chisquare(observed, DRAWS * successive(powers / powers.sum(), count)).pvalue)


def test_draws_follow_the_softmax_without_replacement() -> None:
    # On the fixed seed; a sampler that is right falls below in one of 100 seeds.
    assert min(p_value(1), p_value(2), p_value(3)) > 0.01


def test_another_temperature_or_replacement_would_be_seen() -> None:
    assert max(p_value(1, temperature=1.2), p_value(2, temperature=0.8)) < 1e-4


def test_every_draw_is_another_block_and_all_come_in_the_end() -> None:
    drawn = regrow(np.repeat(regrowth_probabilities(SCORES), 50, axis=0), 5, np.random.default_rng(1))
    assert (np.sort(drawn, axis=1) == np.arange(5)).all()
    assert len({tuple(row) for row in drawn.tolist()}) > 20
