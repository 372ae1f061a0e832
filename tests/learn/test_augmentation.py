import numpy as np
import pytest
import torch

from masksparse_deploy.learn.augmentation import augment


def ramp(count: int, height: int = 16, width: int = 24) -> torch.Tensor:
    """Images whose pixel at (y, x) has the value 100 y + x."""
    image = 100 * torch.arange(height)[:, None] + torch.arange(width)
    return image.float().expand(count, 2, height, width)


@pytest.mark.parametrize("how", ["shift", "shift-mirror"])
def test_every_image_is_shifted_as_a_whole_with_its_border_repeated(how: str) -> None:
    images = ramp(200)
    moved = augment(images, how, np.random.default_rng(0))  # type: ignore[arg-type]
    assert moved.shape == images.shape
    seen = set()
    for image in moved:
        assert torch.equal(image[0], image[1])
        mirrored = bool(image[0, 0, 0] > image[0, 0, -1])
        upright = image[0].flip(-1) if mirrored else image[0]
        # The centre is never on the border.
        dy, dx = int(upright[8, 12] // 100) - 8, int(upright[8, 12] % 100) - 12
        rows, columns = (torch.arange(16) + dy).clamp(0, 15), (torch.arange(24) + dx).clamp(0, 23)
        assert torch.equal(upright, (100 * rows[:, None] + columns).float())
        seen.add((dy, dx, mirrored))
    assert {dy for dy, _, _ in seen} == set(range(-2, 3))
    assert {dx for _, dx, _ in seen} == set(range(-3, 4))
    assert {mirrored for _, _, mirrored in seen} == ({False, True} if how == "shift-mirror" else {False})


def test_none_returns_the_images() -> None:
    images = ramp(2)
    assert augment(images, "none", np.random.default_rng(0)) is images


def test_the_same_seed_gives_the_same_images() -> None:
    first, second, other = (augment(ramp(20), "shift-mirror", np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
