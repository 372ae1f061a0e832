"""Pairs of files for refits: the sparse network an engine was built from, and the same one with other weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.models.make_onnx import residual_pair


def write_old(folder: Path) -> Path:
    """A network of which four layers are masked, and say so."""
    onnx.save(residual_pair(seed=0)[1], folder / "old.onnx")
    return folder / "old.onnx"


def write_new(folder: Path, change: Callable[[onnx.ModelProto], None] = lambda model: None) -> Path:
    """The same network with other weights, none of them zero, after `change`."""
    model = residual_pair(seed=1)[0]
    change(model)
    onnx.save(model, folder / "new.onnx")
    return folder / "new.onnx"


def array_of(path: Path, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in onnx.load(path).graph.initializer if tensor.name == name))


def set_array(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
