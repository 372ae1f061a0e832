"""Tensors that an engine holds as rows, as the images they are in the sparse file, so that layers are compared as any other."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.engine.protocol import Session
from masksparse_deploy.validate.rewritten import BuiltFrom

__all__ = ["Places", "RowSession", "find_rows"]

# Name of a tensor of the sparse file -> the engine's tensor of rows, and the row of each position, int64 (height, width).
Places = Mapping[str, tuple[str, npt.NDArray[np.int64]]]


def find_rows(built_from: BuiltFrom, names: Iterable[str]) -> Places:
    """Where the file that the engine was built from has tensors as rows that it does not have as images.

    Args:
        built_from: the file; the check of the rewritten file must have passed.
        names: tensors of the sparse file.
    """
    if built_from.sparse is None:
        return {}
    from masksparse_deploy.rewrite.verify import row_images

    computed = {*built_from.graph.inputs, *(name for node in built_from.graph.nodes for name in node.outputs)}
    return row_images(built_from.sparse, built_from.graph, [name for name in names if name not in computed])


class RowSession:
    """A session that gives tensors of rows as images too, under the names of the sparse file."""

    def __init__(self, session: Session, places: Places) -> None:
        self._session = session
        self._places = places

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """See `Session.input_shape`."""
        return self._session.input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """See `Session.output_names`; the images are behind the others."""
        return (*self._session.output_names, *self._places)

    def run(self, images: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[Any]]:
        """See `Session.run`; rows (count, rows, channels) become images (count, channels, height, width)."""
        found = dict(self._session.run(images))
        for name, (rows, places) in self._places.items():
            found[name] = np.moveaxis(found[rows][:, places], -1, 1)
        return found

    def prepare(self, images: npt.NDArray[np.float32]) -> Callable[[], None]:
        """See `Session.prepare`."""
        return self._session.prepare(images)
