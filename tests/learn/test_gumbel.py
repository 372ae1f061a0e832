import math

import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.gumbel import GumbelSelector, select_row

PATTERN = NMPattern(n=2, m=4)
CODEBOOK = torch.from_numpy(PATTERN.codebook()).float()


def selector(shape: tuple[int, ...] = (8, 16, 3, 3)) -> GumbelSelector:
    return GumbelSelector(torch.randn(shape, generator=torch.Generator().manual_seed(1)), PATTERN)


def test_logits_start_at_the_kept_magnitude_relative_to_the_group() -> None:
    weight = torch.tensor([[1.0, -3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0]])
    # Rows in lexicographic order: 01, 02, 03, 12, 13, 23; the first group's mean is 2.
    expected = torch.tensor([[[2.0, 0.5, 2.5, 1.5, 3.5, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]])
    assert torch.equal(GumbelSelector(weight, PATTERN).logits, expected)


def test_the_codebook_is_constant() -> None:
    learned = selector()
    before = learned.codebook.clone()
    assert [name for name, _ in learned.named_parameters()] == ["logits"]
    assert list(learned.state_dict()) == ["logits"]
    assert not learned.codebook.requires_grad
    optimizer = torch.optim.AdamW(learned.parameters(), lr=0.1)
    start = learned.logits.detach().clone()
    for step in range(5):
        learned.begin_step(step / 5, step)
        optimizer.zero_grad()
        learned.mask().mul(torch.arange(16.0)[:, None, None]).sum().backward()
        optimizer.step()
    assert not torch.equal(learned.logits, start)
    assert torch.equal(learned.codebook, before)
    assert torch.equal(before.bool(), torch.from_numpy(PATTERN.codebook()))


@pytest.mark.parametrize(("n", "m", "rows"), [(8, 16, 12870), (4, 11, 330)])
def test_a_pattern_with_too_many_rows_is_refused(n: int, m: int, rows: int) -> None:
    with pytest.raises(
        UsageError, match=rf"keep {n} of {m} weights, which are {rows}, more than the 256.* use method 'scores'"
    ):
        GumbelSelector(torch.ones(2, m), NMPattern(n=n, m=m))


def test_the_largest_codebooks_that_fit() -> None:
    assert GumbelSelector(torch.ones(1, 10), NMPattern(n=5, m=10)).logits.shape == (1, 1, 252)
    assert GumbelSelector(torch.ones(1, 16), NMPattern(n=16, m=16)).harden().all()


def test_the_temperature_falls_exponentially() -> None:
    learned = selector()
    temperatures = []
    for progress in (0.0, 0.5, 1.0):
        learned.begin_step(progress, 0)
        temperatures.append(learned.temperature)
    # Halfway on an exponential is the geometric mean.
    assert temperatures == pytest.approx([2.0, math.sqrt(2.0 * 0.3), 0.3], rel=1e-12)


def test_draws_are_those_of_their_seed() -> None:
    learned, random_state = selector(), torch.get_rng_state()

    def draws(seed: int) -> list[torch.Tensor]:
        learned.begin_step(0.0, seed)
        return [learned.mask().detach() for _ in range(2)]

    first, again, other = draws(3), draws(3), draws(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), random_state)


def test_rows_are_drawn_with_the_probabilities_of_the_softmax() -> None:
    count = 40_000
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, 0.0])
    learned = GumbelSelector(torch.ones(count, 4), PATTERN)
    with torch.no_grad():
        learned.logits.copy_(logits.expand(count, 1, 6))
    learned.begin_step(1.0, 0)
    drawn = learned.mask().detach()
    frequencies = np.array([float((drawn == row).all(1).float().mean()) for row in CODEBOOK])
    # The temperature changes the gradient, not the draw. A frequency has a standard deviation of at most
    # sqrt(0.25 / 40,000) = 0.0025; five of them leave a chance of one in a million for a right sampler.
    assert frequencies == pytest.approx(torch.softmax(logits, 0).numpy(), abs=0.0125)


def test_evaluation_draws_nothing_and_takes_the_first_of_equal_rows() -> None:
    learned = selector().eval()
    with torch.no_grad():
        learned.logits.zero_()
    expected = CODEBOOK[0].repeat(4)[None, :, None, None].expand(8, 16, 3, 3)
    assert torch.equal(learned.mask(), expected)
    assert torch.equal(learned.mask(), expected)


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 3, 2)])
@pytest.mark.parametrize("temperature", [2.0, 0.3])
def test_the_gradient_is_that_of_the_softmax(shape: tuple[int, ...], temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape[0], 2, 6, *shape[2:], generator=generator, dtype=torch.float64).requires_grad_()
    noise = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    factors = torch.randn(shape, generator=generator, dtype=torch.float64)
    codebook = CODEBOOK.double()
    mask = select_row(logits, noise, codebook, temperature)
    (found,) = torch.autograd.grad((mask * factors).sum(), logits)

    soft = torch.softmax((logits + noise) / temperature, 2).movedim(2, -1) @ codebook
    (expected,) = torch.autograd.grad((soft.movedim(-1, 2).reshape(shape) * factors).sum(), logits)
    # Sums of at most 24 products of size one in float64.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_training_finds_the_rows_that_matter() -> None:
    """Output channel j needs inputs 4g + (j mod 4) and 4g + (j + 1 mod 4); magnitudes say nothing."""
    wanted = torch.zeros(4, 8)
    for channel in range(4):
        for group in range(2):
            wanted[channel, [4 * group + channel, 4 * group + (channel + 1) % 4]] = 1.0
    learned = GumbelSelector(torch.ones(4, 8), PATTERN)
    optimizer = torch.optim.AdamW(learned.parameters(), lr=0.1, weight_decay=0.0)
    for step in range(60):
        learned.begin_step(step / 60, step)
        optimizer.zero_grad()
        nn.functional.mse_loss(learned.mask(), wanted).backward()
        optimizer.step()
    assert np.array_equal(learned.harden(), wanted.bool().numpy())
