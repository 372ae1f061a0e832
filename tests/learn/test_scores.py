import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.scores import initial_scores, select_largest

PATTERN = NMPattern(n=2, m=4)


@st.composite
def scored_groups(draw: st.DrawFn) -> tuple[NMPattern, np.ndarray]:
    m = draw(st.sampled_from([2, 4, 8]))
    pattern = NMPattern(n=draw(st.integers(1, m)), m=m)
    kernel = draw(st.sampled_from([(), (1, 1), (3, 2)]))
    shape = (draw(st.integers(1, 3)), m * draw(st.integers(1, 3)), *kernel)
    # Few distinct values, so that ties are common.
    return pattern, draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0])))


@given(scored_groups())
@settings(max_examples=60, deadline=None)
def test_selection_is_that_of_the_pattern_ties_included(case: tuple[NMPattern, np.ndarray]) -> None:
    pattern, scores = case
    selected = select_largest(torch.from_numpy(scores), pattern).numpy()
    assert np.array_equal(selected.astype(bool), pattern.keep_largest(scores, group_axis=1))


def test_groups_run_along_input_channels() -> None:
    scores = torch.zeros(1, 4, 3, 3)
    scores[0, [1, 3], 0, 0] = 1.0
    scores[0, [0, 2], 2, 1] = 1.0
    selected = select_largest(scores, PATTERN)
    assert selected[0, :, 0, 0].tolist() == [0, 1, 0, 1]
    assert selected[0, :, 2, 1].tolist() == [1, 0, 1, 0]


def test_the_gradient_passes_straight_through() -> None:
    scores = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    factors = torch.arange(scores.numel(), dtype=torch.float32).reshape(scores.shape)
    (select_largest(scores, PATTERN) * factors).sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, factors)


def test_initial_scores_are_relative_to_the_group() -> None:
    weight = torch.tensor([[1.0, -3.0, 0.0, 4.0, 10.0, 30.0, 0.0, -40.0, 0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.5, 1.5, 0.0, 2.0, 0.5, 1.5, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0]])
    assert torch.equal(initial_scores(weight, 4), expected)
