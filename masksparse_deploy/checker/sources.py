"""What a certificate is checked against: the two files and the images, with what has been computed from them so far."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from masksparse_deploy.checker.errors import UsageError
from masksparse_deploy.checker.images import Images
from masksparse_deploy.checker.network import Network, is_floating, read_network, shapes_of
from masksparse_deploy.checker.pair import Pair, structural_difference
from masksparse_deploy.checker.samples import Propagated, propagate
from masksparse_deploy.checker.setting import LayerNorms, Setting

__all__ = ["Progress", "Sources"]

# What is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


class Sources:
    """The files of one check, or of several of certificates about the same files.

    Attributes:
        pair: the two networks.
        images: the data set, None where it is not at hand.
        obstacle: why the two files cannot be those of one certificate; None if they can.
        progress: called as the work goes on.
    """

    def __init__(self, dense: Path, sparse: Path, images: Images | None, progress: Progress | None = None) -> None:
        """Read the files.

        Raises:
            UsageError: a file is missing, or the images don't fit the networks.
            DamagedError: a file is damaged.
        """
        self.pair = Pair(dense=read_network(dense), sparse=read_network(sparse))
        self.images = images
        self.progress: Progress = progress or _silent
        self.obstacle = structural_difference(self.pair) or _unusable(self.pair)
        self._shapes = {} if self.obstacle else shapes_of(self.pair.dense, _image_shape(self.pair.dense, images))
        self.obstacle = self.obstacle or _misfit(self.pair, self._shapes)
        self._settings: dict[int, Setting] = {}
        self._runs: dict[tuple[int, int], Propagated] = {}

    def setting(self, grid: int) -> Setting:
        """The networks with their norms on a grid of N = `grid`."""
        if grid not in self._settings:
            norms = LayerNorms(self.pair, self._shapes, grid)
            self._settings[grid] = Setting(pair=self.pair, shapes=self._shapes, norms=norms)
        return self._settings[grid]

    def run(self, grid: int, count: int) -> Propagated:
        """The recursions on the first `count` images, of which there are as many.

        Raises:
            NoRuleError: an operator cannot be computed at all.
            KeyError: the shape of a tensor is not known.
        """
        assert self.images is not None, "asked for only where there are images"
        if (grid, count) not in self._runs:
            self._runs[grid, count] = propagate(self.setting(grid), self.images.images[:count], progress=self.progress)
        return self._runs[grid, count]


def _silent(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def _unusable(pair: Pair) -> str | None:
    """What makes a pair of equal graphs unfit for a certificate."""
    network = pair.dense
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        return f"{len(network.inputs)} inputs and {len(network.outputs)} outputs, where a certificate is about one of each"
    weights = {name for node in network.nodes if node.op_type != "Clip" for name in node.input}
    for side in (pair.dense, pair.sparse):
        for name, masked in side.masks.items():
            if not np.isfinite(masked.held).all():
                return f"masked positions of {name!r} hold NaN or infinite values in {side.path}"
        for name in sorted(weights & side.constants.keys()):
            array = side.constants[name]
            if is_floating(array) and not np.isfinite(array.astype(np.float64)).all():
                return f"{name!r} holds NaN or infinite values in {side.path}"
    return None


def _misfit(pair: Pair, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """A mask of another size than the output it is for: Where would broadcast it, or fail."""
    for side in (pair.dense, pair.sparse):
        for name, masked in side.masks.items():
            if name in shapes and masked.kept.shape != shapes[name][1:]:
                return f"the mask of {name!r} has {masked.kept.shape} positions, the tensor has {shapes[name][1:]}"
    return None


def _image_shape(network: Network, images: Images | None) -> tuple[int, ...] | None:
    if images is None:
        return None
    shape, taken = images.images.shape, network.inputs[0].type.tensor_type.shape.dim
    fits = len(taken) == len(shape) and all(
        dim.dim_value in (0, length) for dim, length in zip(taken[1:], shape[1:], strict=True)
    )
    if not fits:
        wanted = ", ".join(str(dim.dim_value or "any") for dim in taken[1:])
        raise UsageError(
            f"images have the shape {shape}, the networks take (count, {wanted}); give the data of the certificate"
        )
    return tuple(shape[1:])
