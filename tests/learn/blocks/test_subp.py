import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.learn.blocks import Subp
from masksparse_deploy.learn.blocks.scores import Criterion, block_scores

N, CHANNELS = 4, 16
PATTERN = BlockPattern.parse("1x4@0.5")


def rule(**change: object) -> Subp:
    given = {"pattern": PATTERN, "criterion": "bpar", "start": 0.0, "end": 0.75, "epochs": 1, "seed": 0}
    return Subp(**{**given, **change})  # type: ignore[arg-type]


def weight(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((3 * N, CHANNELS, 3, 3), dtype=np.float32)


def course(rule: Subp, total_steps: int, *, layer: int = 0) -> list[npt.NDArray[np.bool_]]:
    """The mask of every step, of weights that move a little in each."""
    moving, steps = weight(), np.random.default_rng(1)
    keep, masks = rule.first(moving), []
    for step in range(total_steps):
        if rule.is_due(step, total_steps):
            keep = rule.choose(moving, keep, step=step, total_steps=total_steps, layer=layer)
        masks.append(keep)
        moving = moving + 0.1 * steps.standard_normal(moving.shape).astype(np.float32)
    return masks


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(("1x4@0.5", "1x4@0.3", "1x2@0.9", "1x4@0.2/8", "1x12@0.75/4")),
    st.sampled_from(("bpar", "l1")),
    st.floats(0, 0.9),
    st.floats(0.01, 1),
    st.sampled_from((1, 2, 7, 40)),
)
def test_every_group_keeps_the_same_count_at_every_step(
    text: str, criterion: Criterion, start: float, length: float, total_steps: int
) -> None:
    pattern = BlockPattern.parse(text)
    chosen = rule(pattern=pattern, criterion=criterion, start=start, end=min(1.0, start + length))
    counts = []
    for keep in course(chosen, total_steps):
        blocks = pattern.blocks(keep)
        assert np.array_equal(pattern.expand(blocks, keep.shape), keep)
        assert len(set(blocks.sum(axis=1))) == 1
        counts.append(int(blocks[0].sum()))
    # Fewer and fewer, and at last exactly what the pattern says, whenever the schedule was to end.
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == pattern.kept_channels(CHANNELS)


def test_it_starts_dense_and_ends_as_scheduled() -> None:
    counts = [int(PATTERN.blocks(keep)[0].sum()) for keep in course(rule(start=0.25, end=0.75), 40)]
    # Chosen anew in every second step; 8 of 16 are pruned in the end, int(8 * (1 - ((e - 10) / 20)^3)) are drawn back.
    assert counts[:12] == [16] * 12
    expected = [8 + int(8 * (1 - ((step - step % 2 - 10) / 20) ** 3)) for step in range(12, 30)]
    assert counts[12:30] == expected
    assert counts[30:] == [8] * 10


@pytest.mark.parametrize(("epochs", "total_steps", "count"), [(1, 390, 20), (30, 390, 30), (1, 7, 7), (1, 1, 1)])
def test_masks_are_chosen_every_epoch_or_twenty_times(epochs: int, total_steps: int, count: int) -> None:
    due = [step for step in range(total_steps) if rule(epochs=epochs).is_due(step, total_steps)]
    assert len(due) == count
    assert due[0] == 0
    assert len(set(np.diff(due))) <= 2


def test_without_regrowth_the_lowest_of_every_group_are_pruned() -> None:
    for criterion in ("bpar", "l1"):
        chosen = rule(criterion=criterion, end=0.5)
        keep = chosen.choose(weight(), chosen.first(weight()), step=30, total_steps=40, layer=0)
        scores = block_scores(weight(), N, chosen.criterion)
        blocks = PATTERN.blocks(keep)
        for row, kept in zip(scores, blocks, strict=True):
            assert row[kept].min() > row[~kept].max()


def test_blocks_are_scored_by_what_the_network_computes_with() -> None:
    """However large a dropped block has become, it scores as zeros and comes back by chance alone."""
    chosen, grown = rule(end=0.5), weight()
    keep = chosen.choose(grown, chosen.first(grown), step=30, total_steps=40, layer=0)
    grown[~keep] *= 100
    assert np.array_equal(chosen.choose(grown, keep, step=32, total_steps=40, layer=0), keep)


def test_regrown_blocks_change_from_choice_to_choice_and_between_layers_but_not_between_runs() -> None:
    one, again, other, reseeded = (
        course(rule(end=1.0, seed=seed), 40, layer=layer) for seed, layer in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    middle = [course[30] for course in (one, other, reseeded)] + [one[32]]
    assert len({keep.tobytes() for keep in middle}) == 4


def test_every_choice_draws_anew() -> None:
    """Of the same weights, later choices draw fewer blocks, and not just the first of those before."""
    chosen = rule(end=1.0)
    earlier, later = (chosen.choose(weight(), chosen.first(weight()), step=step, total_steps=40, layer=0) for step in (30, 32))
    # int(8 * (1 - 0.75^3)) and int(8 * (1 - 0.8^3)) of 8, beside the same 8 that are kept.
    assert [int(PATTERN.blocks(keep)[0].sum()) for keep in (earlier, later)] == [12, 11]
    assert (later & ~earlier).any()


def test_of_the_pruned_blocks_those_with_high_scores_come_back_more_often() -> None:
    """Of eight one is not zero: it is drawn first with probability e / (e + 7) = 0.28, the others with 0.10 each."""
    chosen, weights = rule(criterion="l1", end=1.0), weight()
    weights[:, 8:] *= 1e-3
    weights[:, 9:] = 0
    keep = chosen.first(weights)
    # int(8 * (1 - 0.93^3)) = 1
    drawn = [PATTERN.blocks(chosen.choose(weights, keep, step=93, total_steps=100, layer=layer)) for layer in range(400)]
    returned = np.array(drawn)[:, :, 8:].reshape(-1, 8)
    assert (returned.sum(axis=1) == 1).all()
    # Of 1,200 draws; their share has a standard deviation of 0.013.
    assert abs(returned[:, 0].mean() - np.e / (np.e + 7)) < 0.06


def test_a_pruned_block_comes_back() -> None:
    masks = course(rule(end=1.0), 40)
    returned = [(~before & after).any() for before, after in itertools.pairwise(masks)]
    assert any(returned)


@pytest.mark.parametrize("criterion", ["bpar", "l1"])
def test_the_finished_mask_of_a_step_in_between_has_the_pattern(criterion: Criterion) -> None:
    chosen = rule(criterion=criterion)
    for keep in course(chosen, 40):
        finished = chosen.finished(weight(), keep)
        assert not (finished & ~keep).any()
        LayerMask(weight_name="w", keep=finished, group_axis=1, pattern=PATTERN)
    assert np.array_equal(finished, keep)


def test_the_finished_mask_rather_keeps_zeros_than_what_was_dropped() -> None:
    chosen, blocks = rule(criterion="l1"), np.ones((3, CHANNELS), dtype=np.bool_)
    blocks[:, :4] = False
    weights = weight()
    weights[:, 4:12] = 0
    keep = PATTERN.expand(blocks, weights.shape)
    expected = [index in (4, 5, 6, 7, 12, 13, 14, 15) for index in range(CHANNELS)]
    assert PATTERN.blocks(chosen.finished(weights, keep)).tolist() == [expected] * 3
