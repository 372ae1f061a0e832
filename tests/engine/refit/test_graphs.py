"""Files that are not one network with other weights are told apart, each difference by its name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.engine.refit.graphs import changed_constants, graph_differences, require_same_graph
from masksparse_deploy.graph.reader import read_graph
from tests.engine.refit.networks import set_array, write_new, write_old


def first(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op)


def dilate(model: onnx.ModelProto) -> None:
    node = first(model, "Conv")
    kept = [attribute for attribute in node.attribute if attribute.name != "group"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("auto_pad", "NOTSET")])


def rename(model: onnx.ModelProto) -> None:
    first(model, "Relu").name = "another"


def replace(model: onnx.ModelProto) -> None:
    first(model, "Relu").op_type = "Elu"


def reshape(model: onnx.ModelProto) -> None:
    set_array(model, "fc.bias", np.zeros((1, 10), np.float32))


def halve(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "surplus"))


def opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = first(model, "Gemm").output[0] = "answers"


def size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16


def append(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["copy"], "copy"))


def test_other_weights_are_no_difference(tmp_path: Path) -> None:
    old, new = read_graph(write_old(tmp_path)), read_graph(write_new(tmp_path))
    assert graph_differences(old, new) == ()
    assert set(changed_constants(old, new)) == set(old.constants)
    assert changed_constants(old, old) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dilate, "operator stem has another"),
        (rename, "operator stem.relu has the name another instead of stem.relu"),
        (replace, "operator stem.relu has the op Elu instead of Relu"),
        (reshape, r"fc.bias is float32 \(1, 10\) instead of float32 \(10,\)"),
        (halve, "the constant surplus is in the new file only"),
        (opset, "operator set ai.onnx is 19 instead of 20"),
        (output, "outputs answers instead of logits"),
        (size, r"input images is \(None, 3, 16, 8\) instead of \(None, 3, 8, 8\)"),
        (append, "18 operators instead of 17"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, change: Callable[[onnx.ModelProto], None], words: str) -> None:
    old, new = read_graph(write_old(tmp_path)), read_graph(write_new(tmp_path, change))
    with pytest.raises(UsageError, match=f"new.onnx is not the network of old.onnx with other weights: .*{words}"):
        require_same_graph(old, new, old_name="old.onnx", new_name="new.onnx")


def test_integers_that_are_no_weights_must_stay(tmp_path: Path) -> None:
    for name, axis in (("a", 1), ("b", 2)):
        nodes = [helper.make_node("ReduceMean", ["images", "axes"], ["mean"], "mean", keepdims=1)]
        shapes = {"images": (2, 3, 4, 4), "mean": tuple(1 if index == axis else (2, 3, 4, 4)[index] for index in range(4))}
        values = [helper.make_tensor_value_info(text, 1, shape) for text, shape in shapes.items()]
        constants = [numpy_helper.from_array(np.array([axis]), "axes")]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / f"{name}.onnx")
    old, new = (read_graph(tmp_path / f"{name}.onnx") for name in "ab")
    assert graph_differences(old, new) == ("axes, which is no weight, has other values",)
