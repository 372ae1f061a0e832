"""The range of shapes that an engine must take: smallest, tuned for, and largest."""

from dataclasses import dataclass

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import UsageError

__all__ = ["ShapeRange", "shape_range"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """Shapes (batch, channels, height, width) of one input."""

    smallest: Shape
    tuned: Shape
    largest: Shape


def shape_range(shape: tuple[int | None, ...], options: EngineOptions, *, input_name: str) -> ShapeRange | None:
    """The shapes that `options` ask for, for an input of `shape`, whose lengths are None where the file leaves them open.

    None where the file leaves nothing open.

    Raises:
        UsageError: an open height or width without a size to tune for, sizes in the wrong order, sizes given for a file that
            fixes them, or an open number of channels.
    """
    batch, channels, *size = shape
    if channels is None:
        raise UsageError(f"input {input_name} has shape {shape}; only batch, height and width may be open")
    sizes = _sizes(size, options, f"input {input_name} has shape {shape}")
    if batch is not None and None not in size:
        return None
    batches = (options.smallest_batch, options.batch, options.largest_batch or options.batch)
    shapes = [(batch or count, channels, *image) for count, image in zip(batches, sizes, strict=True)]
    return ShapeRange(*shapes)


def _sizes(size: list[int | None], options: EngineOptions, what: str) -> list[Shape]:
    """(height, width) three times: smallest, tuned for, largest."""
    given = {name: getattr(options, name) for name in ("smallest_image", "tuned_image", "largest_image")}
    if None not in size:
        if any(given.values()):
            named = next(f"{name} {value}" for name, value in given.items() if value)
            raise UsageError(f"{what}, whose height and width are fixed: leave out {named}, or export with open ones")
        return [tuple(length or 0 for length in size)] * 3
    if options.tuned_image is None:
        raise UsageError(f"{what}, whose height or width is open: give the size to tune for, as --tuned-image 224x224")
    texts = [value or options.tuned_image for value in given.values()]
    sizes = [tuple(int(part) for part in text.split("x")) for text in texts]
    for lower, upper in ((0, 1), (1, 2)):
        if any(a > b for a, b in zip(sizes[lower], sizes[upper], strict=True)):
            names = list(given)
            raise UsageError(f"{names[lower]} {texts[lower]} is larger than {names[upper]} {texts[upper]}")
    for fixed, lengths in zip(size, zip(*sizes, strict=True), strict=True):
        if fixed is not None and set(lengths) != {fixed}:
            raise UsageError(f"{what}: give sizes with {fixed} where the file fixes it, not {' and '.join(texts)}")
    return sizes
