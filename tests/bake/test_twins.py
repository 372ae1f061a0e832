"""Finding what differs between two files: every kind of difference, and nothing that means nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake.proto_twins import any_content, constants, identical, proto_differences, tensor_array
from tests.bake.file_models import branching_model, constant_node, rich_model, values

Change = Callable[[onnx.ModelProto], None]


def differences(one: onnx.ModelProto, other: onnx.ModelProto) -> list[str]:
    def same_content(name: str, mine: TensorProto, yours: TensorProto) -> bool:
        return identical(tensor_array(mine, Path()), tensor_array(yours, Path()))

    return list(proto_differences(one, other, same_content))


def everything() -> onnx.ModelProto:
    """A model with a function and bodies besides all that `rich_model` has."""
    model = rich_model()
    model.graph.node.extend([constant_node("yes", np.array(True)), branching_model(captured=False).graph.node[-1]])
    inside = [helper.make_node("Relu", ["in"], ["out"], name="inside")]
    model.functions.append(
        helper.make_function("com.example", "Own", ["in"], ["out"], inside, [helper.make_opsetid("", 18)], ["slope"])
    )
    return model


def changed_body(model: onnx.ModelProto) -> None:
    body = next(attribute.g for attribute in model.graph.node[-1].attribute if attribute.name == "else_branch")
    body.initializer[0].raw_data = bytes(reversed(body.initializer[0].raw_data))


def other_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].data_type = TensorProto.INT32


CHANGES: dict[str, Change] = {
    r"ir_version": lambda model: setattr(model, "ir_version", 10),
    r"producer_version": lambda model: setattr(model, "producer_version", "2"),
    r"doc_string": lambda model: model.ClearField("doc_string"),
    r"opset_import\[com\.example\]: in one file only": lambda model: model.opset_import.pop(0),
    r"metadata_props\[author\]\.value": lambda model: setattr(model.metadata_props[1], "value", "somebody"),
    r"training_info: 0 and 1": lambda model: model.training_info.add(),
    r"graph\.name": lambda model: setattr(model.graph, "name", "other"),
    r"graph\.node: 6 and 5": lambda model: model.graph.node.pop(),
    r"graph\.node\[own\]\.domain": lambda model: setattr(model.graph.node[1], "domain", ""),
    r"graph\.node\[own\]\.input": lambda model: model.graph.node[1].input.append("c"),
    r"graph\.node\[own\]\.attribute\[table\]\.floats": lambda model: model.graph.node[1].attribute[1].floats.append(1),
    r"graph\.node\[fc\]\.attribute\[transB\]: in one file only": lambda model: model.graph.node[3].attribute.pop(),
    r"graph\.node\[fc\]\.name": lambda model: setattr(model.graph.node[3], "name", "head"),
    r"attribute\[else_branch\]\.g\.initializer\[else\.weight\]: other values": changed_body,
    r"graph\.initializer\[fc\.weight\]\.data_type": other_type,
    r"graph\.initializer\[conv\.weight\]\.doc_string": lambda model: model.graph.initializer[0].ClearField("doc_string"),
    r"graph\.input\[x\]\.type\.denotation": lambda model: setattr(model.graph.input[0].type, "denotation", "TENSOR"),
    r"graph\.input\[x\].*dim\[1\]\.dim_value": lambda model: setattr(
        model.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 9
    ),
    r"graph\.output\[y\].*shape": lambda model: model.graph.output[0].type.tensor_type.ClearField("shape"),
    r"graph\.value_info\[b\]: in one file only": lambda model: model.graph.value_info.pop(),
    r"graph\.quantization_annotation\[b\]": lambda model: model.graph.quantization_annotation.pop(),
    r"functions\[Own\]\.attribute": lambda model: model.functions[0].attribute.append("other"),
    r"functions\[Own\]\.node\[inside\]\.op_type": lambda model: setattr(model.functions[0].node[0], "op_type", "Abs"),
}


@pytest.mark.parametrize("finding", CHANGES)
def test_a_difference_is_found_and_named(finding: str) -> None:
    other = everything()
    CHANGES[finding](other)
    found = differences(everything(), other)
    assert len(found) == 1
    assert re.search(finding, found[0]), found


def test_what_means_nothing_is_no_difference() -> None:
    other = everything()
    for part in (other, other.graph.node[0], other.graph.initializer[0]):
        entries = [(entry.key, entry.value) for entry in part.metadata_props]
        part.ClearField("metadata_props")
        for key, value in reversed(entries):
            part.metadata_props.add(key=key, value=value)
        part.metadata_props.add(key="masksparse.pattern", value="2:4")
    other.graph.node[0].domain = "ai.onnx"
    other.graph.value_info.append(helper.make_tensor_value_info("nobody", TensorProto.FLOAT, [1]))
    other.graph.value_info.append(helper.make_tensor_value_info("fc.weight", TensorProto.FLOAT, [4, 8]))
    other.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]))
    typed = helper.make_tensor("fc.weight", TensorProto.FLOAT, [4, 8], values(4, 8).reshape(-1).tolist())
    typed.metadata_props.extend(other.graph.initializer[1].metadata_props)
    other.graph.initializer[1].CopyFrom(typed)  # in typed fields instead of raw bytes
    assert differences(everything(), other) == []


def test_content_is_compared_bit_by_bit() -> None:
    zero, negative = np.zeros(3, np.float32), np.full(3, -0.0, np.float32)
    assert identical(zero, zero.copy()) and not identical(zero, negative)
    nan = np.full(3, np.nan, np.float32)
    assert identical(nan, nan.copy())
    assert not identical(zero, zero.astype(np.float64)) and not identical(zero, np.zeros((1, 3), np.float32))
    assert identical(values(6, 4).T, values(6, 4).T.copy())
    assert identical(np.array([b"a"], dtype=object), np.array([b"a"], dtype=object))


def test_content_may_be_left_out() -> None:
    other = everything()
    other.graph.initializer[1].raw_data = bytes(128)
    assert list(proto_differences(everything(), other, any_content)) == []
    assert differences(everything(), other) == ["graph.initializer[fc.weight]: other values"]


def test_constants_of_all_graphs() -> None:
    assert [name for name, _ in constants(everything())] == ["conv.weight", "fc.weight", "yes", "else.weight", "then.weight"]


def holding(array: np.ndarray) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.graph.initializer.append(numpy_helper.from_array(array, "a"))
    return model


@given(st.data())
def test_any_changed_element_is_found(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.float32, np.float16, np.int8, np.int64]))
    array = data.draw(st.integers(1, 40).map(lambda size: np.arange(size).astype(dtype)))
    place = data.draw(st.integers(0, array.nbytes - 1))
    bits = array.copy()
    bits.view(np.uint8)[place] ^= data.draw(st.integers(1, 255))
    assert identical(array, array.copy()) and not identical(array, bits)
    assert differences(holding(array), holding(bits)) == ["graph.initializer[a]: other values"]
