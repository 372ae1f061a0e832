import pytest

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.engine.shape_profile import ShapeRange, shape_range

OPTIONS = EngineOptions(batch=8, smallest_batch=2, largest_batch=16)


def sized(**sizes: str) -> EngineOptions:
    return EngineOptions(batch=8, smallest_batch=2, largest_batch=16, **sizes)  # type: ignore[arg-type]


def shapes(shape: tuple[int | None, ...], options: EngineOptions = OPTIONS) -> ShapeRange | None:
    return shape_range(shape, options, input_name="images")


def test_a_fixed_file_needs_no_range() -> None:
    assert shapes((4, 3, 32, 32)) is None


def test_an_open_batch() -> None:
    assert shapes((None, 3, 32, 32)) == ShapeRange((2, 3, 32, 32), (8, 3, 32, 32), (16, 3, 32, 32))
    assert shapes((None, 3, 32, 32), EngineOptions(batch=8)) == ShapeRange((1, 3, 32, 32), (8, 3, 32, 32), (8, 3, 32, 32))


def test_open_sizes() -> None:
    options = sized(smallest_image="96x64", tuned_image="224x224", largest_image="512x300")
    assert shapes((None, 3, None, None), options) == ShapeRange((2, 3, 96, 64), (8, 3, 224, 224), (16, 3, 512, 300))
    assert shapes((4, 3, None, None), sized(tuned_image="64x32")) == ShapeRange((4, 3, 64, 32), (4, 3, 64, 32), (4, 3, 64, 32))
    assert shapes((1, 3, None, 32), sized(tuned_image="64x32", largest_image="96x32")) == ShapeRange(
        (1, 3, 64, 32), (1, 3, 64, 32), (1, 3, 96, 32)
    )


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((None, 3, None, None), OPTIONS, "give the size to tune for, as --tuned-image 224x224"),
        ((None, 3, 32, 32), sized(largest_image="64x64"), "fixed: leave out largest_image 64x64"),
        (
            (None, 3, None, None),
            sized(smallest_image="64x65", tuned_image="64x64"),
            "smallest_image 64x65 is larger than tuned_image 64x64",
        ),
        (
            (None, 3, None, None),
            sized(tuned_image="64x64", largest_image="32x64"),
            "tuned_image 64x64 is larger than largest_image 32x64",
        ),
        ((None, 3, None, 32), sized(tuned_image="64x64"), "give sizes with 32 where the file fixes it"),
        ((None, None, 32, 32), OPTIONS, "only batch, height and width may be open"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int | None, ...], options: EngineOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shapes(shape, options)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch": 4, "smallest_batch": 5}, "at most the batch of 4"),
        ({"batch": 4, "largest_batch": 3}, "at least the batch of 4"),
        ({"tuned_image": "224"}, "HEIGHTxWIDTH"),
        ({"tuned_image": "0x8"}, "HEIGHTxWIDTH"),
        ({"optimization_level": 6}, "less than or equal to 5"),
    ],
)
def test_options_that_contradict_themselves(values: dict[str, int | str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EngineOptions(**values)  # type: ignore[arg-type]
