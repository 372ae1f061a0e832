"""Baking a model into a folder, and running what was written."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from masksparse_deploy.bake.from_file import bake_file
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.masks import MaskSet
from tests.bake.file_models import (
    model_of,
    values,
)


def bake(model: onnx.ModelProto, masks: MaskSet, folder: Path) -> BakeReport:
    """Write a model to a file, and bake that into folder/out."""
    onnx.save(model, folder / "in.onnx")
    return bake_file(folder / "in.onnx", masks, BakeOptions(), out=folder / "out")


def run(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # the operators as they are in the file: fused, a dequantized weight would be multiplied in another precision
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (found,) = onnxruntime.InferenceSession(path, options).run(None, {"x": x})
    return np.asarray(found)


def product_differs_as_masked(folder: Path, x: np.ndarray, dense_weight: np.ndarray, keep: np.ndarray) -> None:
    """x @ (in, out) in both files, the sparse one with the zeros of the mask."""
    # Sums of at most 8 terms of size one in FP32: 8 * 2^-24, about 5e-7
    np.testing.assert_allclose(run(folder / "out" / "dense.onnx", x), x @ dense_weight, atol=5e-6)
    np.testing.assert_allclose(run(folder / "out" / "sparse.onnx", x), x @ np.where(keep, dense_weight, 0), atol=5e-6)


def function_model(*calls: str) -> onnx.ModelProto:
    """Products in a function that gets its weight from outside: one call for each weight."""
    inside = [helper.make_node("MatMul", ["left", "right"], ["product"], name="inner")]
    function = helper.make_function(
        "com.example", "Product", ["left", "right"], ["product"], inside, [helper.make_opsetid("", 20)]
    )
    names = ["x", *(f"y{index}" for index in range(len(calls) - 1)), "y"]
    nodes = [
        helper.make_node("Product", [names[index], weight], [names[index + 1]], name=f"call{index}", domain="com.example")
        for index, weight in enumerate(calls)
    ]
    return model_of(nodes, {weight: values(8, 8) for weight in calls}, x=["batch", 8], y=["batch", 8], functions=[function])
