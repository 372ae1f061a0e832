"""Changes to the messages of an ONNX file: any field to an extreme value, and those that readers trust most."""

from collections.abc import Callable, Iterator, Mapping, MutableSequence
from random import Random
from typing import Any

import onnx
from onnx import TensorProto, helper

__all__ = ["STRUCTURE_MUTATIONS"]

# random, model (changed in place)
StructureMutation = Callable[[Random, onnx.ModelProto], None]

_INTEGERS = (0, 1, -1, 2, -2, 7, 255, 2**16, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1e-45, 3e38, float("nan"), float("inf"), float("-inf"))
_TEXTS = (b"", b" ", b"\x00", b"\xff\xfe", "ä\n\t[red]".encode(), b"../" * 40, b"a" * 300, b"ai.onnx", b"2:4", b"-1", b"1e999")


def _messages(message: Any) -> Iterator[Any]:
    """The message and all inside it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                yield from _messages(inner)


def _of_type(model: onnx.ModelProto, kind: type[Any]) -> list[Any]:
    return [message for message in _messages(model) if isinstance(message, kind)]


def _extreme(random: Random, field: Any) -> Any:
    """A value that the field can hold and nobody expects."""
    widths = {
        field.TYPE_INT32: (-(2**31), 2**31 - 1),
        field.TYPE_INT64: (-(2**63), 2**63 - 1),
        field.TYPE_UINT64: (0, 2**64 - 1),
    }
    if field.type in widths:
        low, high = widths[field.type]
        return random.choice([value for value in _INTEGERS if low <= value <= high])
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return random.choice(_FLOATS)
    if field.type == field.TYPE_ENUM:
        return random.choice(list(field.enum_type.values_by_number))
    text = random.choice(_TEXTS)
    return text.decode(errors="ignore") if field.type == field.TYPE_STRING else text


def _any_field(random: Random, model: onnx.ModelProto) -> None:
    message = random.choice(list(_messages(model)))
    # fields that are not set count too: what is absent in good files is tested least
    field = random.choice(message.DESCRIPTOR.fields)
    if random.random() < 0.2:
        message.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        _change_message(random, message, field)
    elif hasattr(getattr(message, field.name), "append"):
        _change_list(random, getattr(message, field.name), field)
    else:
        setattr(message, field.name, _extreme(random, field))


def _change_message(random: Random, message: Any, field: Any) -> None:
    value = getattr(message, field.name)
    if not hasattr(value, "add"):
        value.SetInParent()
        return
    if value and random.random() < 0.7:
        chosen = random.randrange(len(value))
        if random.random() < 0.5:
            value.add().CopyFrom(value[chosen])
        else:
            del value[chosen]
    else:
        value.add()


def _change_list(random: Random, values: MutableSequence[Any], field: Any) -> None:
    choice = random.randrange(4)
    if choice == 0 or not values:
        values.extend([_extreme(random, field)] * random.choice((1, 1, 2, 100)))
    elif choice == 1:
        del values[random.randrange(len(values)) :]
    else:
        values[random.randrange(len(values))] = _extreme(random, field)


def _several_fields(random: Random, model: onnx.ModelProto) -> None:
    for _ in range(random.randrange(2, 6)):
        _any_field(random, model)


def _dims(random: Random, model: onnx.ModelProto) -> None:
    tensor = random.choice(_of_type(model, TensorProto))
    choice = random.randrange(5)
    if choice == 0:
        tensor.dims.append(random.choice(_INTEGERS))
    elif choice == 1:
        del tensor.dims[:]
    elif choice == 2:
        tensor.dims.extend([1] * random.choice((1, 30, 70)))
    elif choice == 3 and len(tensor.dims) > 1:
        tensor.dims.reverse()
    elif tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(_INTEGERS)


def _declared_shape(random: Random, model: onnx.ModelProto) -> None:
    """What inputs, outputs and value_info claim about their shapes."""
    values = [value for value in _of_type(model, onnx.ValueInfoProto) if value.type.HasField("tensor_type")]
    shape = random.choice(values).type.tensor_type.shape
    if random.random() < 0.3 or not shape.dim:
        shape.dim.add().dim_value = random.choice(_INTEGERS)
    else:
        random.choice(shape.dim).dim_value = random.choice(_INTEGERS)


def _element_type(random: Random, model: onnx.ModelProto) -> None:
    random.choice(_of_type(model, TensorProto)).data_type = random.choice((*range(28), -1, 99))


def _data(random: Random, model: onnx.ModelProto) -> None:
    """Too little data, too much, none, or some in two places."""
    tensor = random.choice(_of_type(model, TensorProto))
    choice = random.randrange(5)
    if choice == 0:
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif choice == 1:
        tensor.raw_data += b"\x01" * random.choice((1, 4, 1000))
    elif choice == 2:
        for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "string_data"):
            tensor.ClearField(name)
    elif choice == 3:
        getattr(tensor, random.choice(("float_data", "int32_data", "int64_data", "double_data"))).append(3)
    else:
        tensor.raw_data = random.choice((b"\xff", b"\x7f", b"\x80")) * len(tensor.raw_data)


def _names(random: Random, model: onnx.ModelProto) -> None:
    """One name for two values, none at all, or two that change places."""
    node = random.choice(_of_type(model, onnx.NodeProto))
    lists = [names for names in (node.input, node.output) if names]
    every = [name for other in _of_type(model, onnx.NodeProto) for name in (*other.input, *other.output)]
    if not lists or random.random() < 0.2:
        node.name = random.choice((*every, ""))
        return
    names = random.choice(lists)
    place = random.randrange(len(names))
    names[place] = random.choice((*every, "", "nowhere"))


def _renamed_tensor(random: Random, model: onnx.ModelProto) -> None:
    tensors = _of_type(model, TensorProto)
    random.choice(tensors).name = random.choice((*(tensor.name for tensor in tensors), "", "x", "y"))


def _inputs(random: Random, model: onnx.ModelProto) -> None:
    """Missing or too many inputs or outputs."""
    node = random.choice(_of_type(model, onnx.NodeProto))
    names = random.choice((node.input, node.output))
    if names and random.random() < 0.6:
        del names[random.randrange(len(names)) :]
    else:
        names.extend([random.choice((*node.input, ""))] * random.choice((1, 1, 40)))


def _cycle(random: Random, model: onnx.ModelProto) -> None:
    """Nodes that wait for one another, or come too early."""
    nodes = model.graph.node
    if random.random() < 0.5 or len(nodes) < 2:
        node = random.choice(nodes)
        node.input.append(node.output[0]) if random.random() < 0.5 else node.input.insert(0, node.output[0])
        return
    order = list(nodes)
    random.shuffle(order)
    del nodes[:]
    nodes.extend(order)


def _loop_of_routes(random: Random, model: onnx.ModelProto) -> None:
    """Identities in a ring, where a weight is looked for."""
    node = random.choice([node for node in model.graph.node if len(node.input) > 1] or list(model.graph.node))
    ring = [helper.make_node("Identity", [f"ring{i}"], [f"ring{(i + 1) % 3}"]) for i in range(3)]
    for proto in ring:
        model.graph.node.insert(0, proto)
    if len(node.input) > 1:
        node.input[1] = "ring0"


def _operator(random: Random, model: onnx.ModelProto) -> None:
    """Another operator over the same inputs, or another domain."""
    operators = (
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity"),
        *("DequantizeLinear", "QuantizeLinear", "Constant", "If", "Loop", "Scan", "QLinearConv", "ConvInteger", "LSTM"),
        *("QLinearMatMul", "MatMulInteger", "DeformConv", "GRU", "Einsum", "Inner", "NoSuchOperator", ""),
    )
    node = random.choice(_of_type(model, onnx.NodeProto))
    if random.random() < 0.8:
        node.op_type = random.choice(operators)
    else:
        node.domain = random.choice(("own", "com.example", "ai.onnx", "ai.onnx.ml", "nowhere"))


def _attribute(random: Random, model: onnx.ModelProto) -> None:
    """perm, axis, group and their like out of range, of another type, twice, or added where nothing reads them."""
    node = random.choice(_of_type(model, onnx.NodeProto))
    names = ("perm", "axis", "axes", "group", "transB", "block_size", "pads", "strides", "kernel_shape", "to", "allowzero")
    present = [attribute.name for attribute in node.attribute]
    name = random.choice(present or names) if random.random() < 0.6 else random.choice(names)
    values: tuple[Any, ...] = (
        *_INTEGERS,
        [0, 0, 0, 0],
        [3, 2, 1, 0],
        [0, 1, 2],
        [-1, 9],
        [2**40, 1],
        *_FLOATS,
        "text",
        b"\xff",
        helper.make_tensor("t", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_graph([], "empty", [], []),
    )
    new = helper.make_attribute(name, random.choice(values))
    if random.random() < 0.8:
        for place in reversed([i for i, attribute in enumerate(node.attribute) if attribute.name == name]):
            del node.attribute[place]
    if random.random() < 0.1:
        new.type = random.choice(list(onnx.AttributeProto.AttributeType.values()))
    node.attribute.append(new)


def _long_route(random: Random, model: onnx.ModelProto) -> None:
    """Thousands of operators between a weight and what multiplies by it."""
    nodes = [node for node in model.graph.node if len(node.input) > 1] or list(model.graph.node)
    node = random.choice(nodes)
    if not node.input:
        return
    name = node.input[-1]
    op = random.choice(("Identity", "Transpose", "Cast"))
    attributes: dict[str, Any] = {"to": TensorProto.FLOAT} if op == "Cast" else {}
    length = random.choice((17, 400, 2000))
    route = [
        helper.make_node(op, [name if step == 0 else f"route{step - 1}"], [f"route{step}"], **attributes)
        for step in range(length)
    ]
    node.input[len(node.input) - 1] = f"route{length - 1}"
    old = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*route, *old])


def _functions(random: Random, model: onnx.ModelProto) -> None:
    """Functions that call themselves or one another, twice the same one, or twice as many at every step."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    choice = random.randrange(4)
    if choice == 0:
        bodies = {"F0": ["F0"]}
    elif choice == 1:
        bodies = {"F0": ["F1"], "F1": ["F2"], "F2": ["F0"]}
    elif choice == 2:
        count = random.choice((8, 22, 60))
        bodies = {f"F{i}": [f"F{i + 1}"] * 2 for i in range(count)} | {f"F{count}": ["Relu"]}
    else:
        bodies = {"F0": ["Relu"]}
    for name, calls in bodies.items():
        nodes = [
            helper.make_node(op, [f"v{step}"], [f"v{step + 1}"], domain="" if op == "Relu" else "f")
            for step, op in enumerate(calls)
        ]
        model.functions.append(helper.make_function("f", name, ["v0"], [f"v{len(calls)}"], nodes, opsets))
    if choice == 3:
        model.functions.append(model.functions[-1])
    model.opset_import.append(opsets[1])
    node = model.graph.node[0]
    model.graph.node.insert(0, helper.make_node("F0", ["x"], ["called"], domain="f"))
    if "x" in node.input:
        node.input[list(node.input).index("x")] = "called"


def _versions(random: Random, model: onnx.ModelProto) -> None:
    if random.random() < 0.3:
        model.ir_version = random.choice(_INTEGERS)
    elif random.random() < 0.3:
        del model.opset_import[:]
    else:
        random.choice(model.opset_import).version = random.choice((0, -1, 1, 5, 9, 12, 13, 25, 9999, 2**62))


def _annotations(random: Random, model: onnx.ModelProto) -> None:
    """Our own annotations, with lies in them."""
    kinds = (onnx.NodeProto, TensorProto, onnx.GraphProto, onnx.ModelProto)
    owner = random.choice([message for kind in kinds for message in _of_type(model, kind)])
    properties = owner.metadata_props
    texts = (
        "",
        "2:4",
        "4:2",
        "0:0",
        "99999999999999999999:4",
        "1",
        "-1",
        "7",
        "nan",
        "1e999",
        "sparse",
        "dense",
        "2",
        "\n",
        "0" * 64,
    )
    if properties and random.random() < 0.5:
        random.choice(properties).value = random.choice(texts)
        return
    names = ("pattern", "group_axis", "mask_sha256", "density", "dense_reason", "schema_version", "role", "unknown")
    for name in random.sample(names, random.randrange(1, len(names))):
        properties.add(key=f"masksparse.{name}", value=random.choice(texts))


STRUCTURE_MUTATIONS: Mapping[str, StructureMutation] = {
    "any field": _any_field,
    "several fields": _several_fields,
    "dims": _dims,
    "declared shapes": _declared_shape,
    "element type": _element_type,
    "tensor data": _data,
    "names of values": _names,
    "names of tensors": _renamed_tensor,
    "inputs and outputs": _inputs,
    "cycles": _cycle,
    "ring of identities": _loop_of_routes,
    "operators": _operator,
    "attributes": _attribute,
    "long routes": _long_route,
    "functions": _functions,
    "versions": _versions,
    "annotations": _annotations,
}
