"""Valid small ONNX files of many kinds, with masks for some of their weights: what mutations start from."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from tests.models.make_onnx import residual_masks, residual_pair

__all__ = ["SEEDS", "Seed", "seed_named"]

Array = npt.NDArray[Any]

_TWO_FOUR = NMPattern(n=2, m=4)
_IMAGE = [1, 8, 6, 6]


@dataclass(frozen=True, eq=False, kw_only=True)
class Seed:
    """A valid file, what lies beside it, masks that can be baked into it, and the shape of its input."""

    model: bytes
    masks: MaskSet
    beside: Mapping[str, bytes] = field(default_factory=dict)
    input_shape: tuple[int, ...] = (1, 8, 6, 6)


@functools.cache
def seed_named(name: str) -> Seed:
    """The seed of that name in `SEEDS`."""
    return SEEDS[name]()


def _values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _masks(weights: Mapping[str, tuple[Array, int]]) -> MaskSet:
    """Magnitude masks for weights, each along the given axis."""
    layers = {
        name: LayerMask(
            weight_name=name,
            keep=_TWO_FOUR.keep_largest(np.abs(array.astype(np.float32)), group_axis=axis),
            group_axis=axis,
            pattern=_TWO_FOUR,
        )
        for name, (array, axis) in weights.items()
    }
    return MaskSet(layers=layers, source_sha256="0" * 64, method="magnitude")


def _model(
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[TensorProto],
    *,
    sparse: Sequence[onnx.SparseTensorProto] = (),
    x: Sequence[int] = _IMAGE,
    rank: int = 4,
    element: int = TensorProto.FLOAT,
    **more: Any,
) -> onnx.ModelProto:
    """A checked file from "x" to "y"."""
    graph = helper.make_graph(
        list(nodes),
        "seed",
        [helper.make_tensor_value_info("x", element, list(x))],
        [helper.make_tensor_value_info("y", element, [None] * rank)],
        list(tensors),
        sparse_initializer=list(sparse),
    )
    opsets = [helper.make_opsetid("", 21), *more.pop("opsets", [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)
    onnx.checker.check_model(model)
    return model


def _tensors(**arrays: Array) -> list[TensorProto]:
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def _node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """Inputs separated by blanks; named after its output."""
    return helper.make_node(op, inputs.split(), output.split(), name=f"node_{output.split()[0]}", **attributes)


def _convolution() -> Seed:
    w, fc = _values(8, 8, 3, 3), _values(5, 8, seed=1)
    nodes = [
        _node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
        _node("Relu", "c", "r"),
        _node("GlobalAveragePool", "r", "p"),
        _node("Flatten", "p", "f"),
        _node("Gemm", "f fc", "y", transB=1),
    ]
    model = _model(nodes, _tensors(w=w, b=_values(8), fc=fc), rank=2)
    return Seed(model=model.SerializeToString(), masks=_masks({"w": (w, 1), "fc": (fc, 1)}))


def _residual(*, sparse: bool) -> Seed:
    model = residual_pair(channels=4, classes=3)[sparse]
    return Seed(model=model.SerializeToString(), masks=residual_masks(channels=4, classes=3), input_shape=(1, 3, 8, 8))


def _products() -> Seed:
    """Matrix products, with weights directly, transposed, reshaped, as a Constant node, and shared."""
    a, b, c, d = _values(8, 8), _values(8, 8, seed=1), _values(4, 16, seed=2), _values(8, 8, seed=3)
    nodes = [
        _node("Constant", "", "d", value=numpy_helper.from_array(d, "d")),
        _node("Transpose", "b", "bt", perm=[1, 0]),
        _node("Reshape", "c shape", "cr"),
        _node("Identity", "a", "same"),
        _node("MatMul", "x a", "m1"),
        _node("Gemm", "m1 bt", "m2", transB=1, alpha=0.5),
        _node("MatMul", "m2 cr", "m3"),
        _node("MatMul", "m3 d", "m4"),
        _node("MatMul", "m4 same", "y"),
    ]
    tensors = _tensors(a=a, b=b, c=c, shape=np.array([8, -1], dtype=np.int64))
    model = _model(nodes, tensors, x=[3, 8], rank=2)
    masks = _masks({"a": (a, 0), "b": (b, 0), "d": (d, 0)})
    return Seed(model=model.SerializeToString(), masks=masks, input_shape=(3, 8))


def _other_convolutions() -> Seed:
    """Grouped, depthwise, transposed, one-dimensional and three-dimensional convolutions."""
    g, d, t, one, three = (
        _values(8, 4, 3, 3),
        _values(8, 1, 3, 3),
        _values(8, 4, 2, 2),
        _values(4, 4, 3),
        _values(4, 1, 1, 1, 1),
    )
    nodes = [
        _node("Conv", "x g", "c1", group=2, pads=[1, 1, 1, 1]),
        _node("Conv", "c1 d", "c2", group=8, auto_pad="SAME_UPPER"),
        _node("ConvTranspose", "c2 t", "c3", strides=[2, 2], group=1),
        _node("Reshape", "c3 flat", "r1"),
        _node("Conv", "r1 one", "c4", dilations=[2], pads=[2, 2]),
        _node("Reshape", "c4 deep", "r2"),
        _node("Conv", "r2 three", "y"),
    ]
    shapes = _tensors(flat=np.array([0, 0, -1], dtype=np.int64), deep=np.array([1, 1, 4, 12, 12], dtype=np.int64))
    model = _model(nodes, [*_tensors(g=g, d=d, t=t, one=one, three=three), *shapes], rank=5)
    return Seed(model=model.SerializeToString(), masks=_masks({"g": (g, 1), "t": (t, 0)}))


def _bodies() -> Seed:
    """Weights in the bodies of If, Loop and Scan, and captured there from outside."""
    w, inner = _values(8, 8), _values(8, 8, seed=1)
    y = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 8])
    then = helper.make_graph([_node("MatMul", "x inner", "out")], "then", [], [y], _tensors(inner=inner))
    other = helper.make_graph([_node("MatMul", "x w", "out")], "else", [], [y])
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 8]) for name in ("h", "h2")]
    step = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    alive = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "go2")]
    loop = helper.make_graph(
        [_node("MatMul", "h w", "h2"), _node("Identity", "go", "go2")], "loop", [step, alive[0], state[0]], [alive[1], state[1]]
    )
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8]) for name in ("row", "row2")]
    scan = helper.make_graph([_node("MatMul", "row w", "row2")], "scan", [rows[0]], [rows[1]])
    nodes = [
        _node("If", "choice", "a", then_branch=then, else_branch=other),
        _node("Loop", "count choice a", "b", body=loop),
        _node("Scan", "b", "y", body=scan, num_scan_inputs=1),
    ]
    tensors = [*_tensors(w=w), *_tensors(choice=np.array(True), count=np.array(2, dtype=np.int64))]
    model = _model(nodes, tensors, x=[3, 8], rank=2)
    masks = _masks({"w": (w, 0), "inner": (inner, 0)})
    return Seed(model=model.SerializeToString(), masks=masks, input_shape=(3, 8))


def _functions() -> Seed:
    """Local functions, one calling the other, with an attribute that is handed on."""
    own = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    convolve = helper.make_node("Conv", ["a", "k"], ["b"], name="inner")
    convolve.attribute.add(name="pads", ref_attr_name="pads", type=onnx.AttributeProto.INTS)
    inner = helper.make_function("own", "Inner", ["a", "k"], ["b"], [convolve], own, ["pads"])
    call = helper.make_node("Inner", ["a", "k"], ["c"], domain="own", pads=[1, 1, 1, 1])
    outer = helper.make_function("own", "Outer", ["a", "k"], ["b"], [call, helper.make_node("Relu", ["c"], ["b"])], own)
    w = _values(8, 8, 3, 3)
    node = helper.make_node("Outer", ["x", "w"], ["y"], domain="own", name="call")
    model = _model([node], _tensors(w=w), functions=[inner, outer], opsets=[own[1]])
    return Seed(model=model.SerializeToString(), masks=_masks({"w": (w, 1)}))


def _external() -> Seed:
    """Weights in two files beside the model, one of them with an offset."""
    w, v = _values(8, 8, 3, 3), _values(8, 8, 1, 1, seed=1)
    model = _model([_node("Conv", "x w", "c"), _node("Conv", "c v", "y")], _tensors(w=w, v=v))
    beside: dict[str, bytes] = {}
    for tensor, location, offset in zip(model.graph.initializer, ("one.data", "two.bin"), (0, 64), strict=True):
        beside[location] = b"\0" * offset + tensor.raw_data
        entries = {"location": location, "offset": str(offset), "length": str(len(tensor.raw_data))}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    return Seed(model=model.SerializeToString(), masks=_masks({"w": (w, 1), "v": (v, 1)}), beside=beside)


def _quantized() -> Seed:
    """INT8 weights behind DequantizeLinear, FP32 ones behind both, INT4 ones in blocks, and an integer operator."""
    levels = np.random.default_rng(0).integers(-127, 128, (8, 8, 3, 3), dtype=np.int8)
    w, four = _values(8, 8, 1, 1, seed=1), _values(8, 8, seed=2).astype(ml_dtypes.int4)
    nodes = [
        _node("DequantizeLinear", "levels s z", "a", axis=0),
        _node("Conv", "x a", "c1", pads=[1, 1, 1, 1]),
        _node("QuantizeLinear", "w s z", "q", axis=0),
        _node("DequantizeLinear", "q s z", "b", axis=0),
        _node("Conv", "c1 b", "c2"),
        _node("DequantizeLinear", "four blocks", "d", axis=0, block_size=4),
        _node("QuantizeLinear", "c2 s1 z1", "i"),
        _node("MatMulInteger", "i m", "j"),
        _node("Cast", "j", "f", to=TensorProto.FLOAT),
        _node("Reshape", "f shape", "r"),
        _node("MatMul", "r d", "y"),
    ]
    arrays = {
        "levels": levels,
        "w": w,
        "four": four,
        "s": np.full(8, 0.01, dtype=np.float32),
        "z": np.zeros(8, dtype=np.int8),
        "s1": np.array(0.02, dtype=np.float32),
        "z1": np.array(0, dtype=np.int8),
        "blocks": np.full((2, 8), 0.1, dtype=np.float32),
        "m": np.ones((6, 8), dtype=np.int8),
        "shape": np.array([-1, 8], dtype=np.int64),
    }
    model = _model(nodes, _tensors(**arrays), rank=2)
    return Seed(model=model.SerializeToString(), masks=_masks({"levels": (levels, 1), "w": (w, 1)}))


def _narrow(element: int, *, typed: bool) -> Seed:
    """A weight of another type, in raw_data or in the field of its type, cast to FP32 where it is used."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    w = _values(8, 8, 3, 3).astype(dtype)
    tensor = numpy_helper.from_array(w, "w")
    if typed:
        tensor = helper.make_tensor("w", element, w.shape, w.astype(np.float32).reshape(-1).tolist())
    model = _model([_node("Cast", "w", "f", to=TensorProto.FLOAT), _node("Conv", "x f", "y")], [tensor])
    return Seed(model=model.SerializeToString(), masks=_masks({"w": (w, 1)}))


def _half() -> Seed:
    """A network that computes in FP16."""
    w = _values(8, 8, 3, 3).astype(np.float16)
    model = _model([_node("Conv", "x w", "y")], _tensors(w=w), element=TensorProto.FLOAT16)
    return Seed(model=model.SerializeToString(), masks=_masks({"w": (w, 1)}))


def _sparse() -> Seed:
    """A weight stored as a sparse tensor, one as a sparse Constant."""
    w = np.where(_TWO_FOUR.keep_largest(np.abs(_values(8, 8)), group_axis=0), _values(8, 8), np.float32(0))
    nodes = [
        _node("Constant", "", "v", sparse_value=_sparse_tensor("v", w)),
        _node("MatMul", "x w", "m"),
        _node("MatMul", "m v", "y"),
    ]
    model = _model(nodes, [], sparse=[_sparse_tensor("w", w)], x=[3, 8], rank=2)
    return Seed(model=model.SerializeToString(), masks=_masks({"w": (w, 0)}), input_shape=(3, 8))


def _sparse_tensor(name: str, array: Array) -> onnx.SparseTensorProto:
    flat = array.reshape(-1)
    (places,) = flat.nonzero()
    indices = numpy_helper.from_array(places.astype(np.int64), f"{name}_places")
    return helper.make_sparse_tensor(numpy_helper.from_array(flat[places], name), indices, array.shape)


def _everything_else() -> Seed:
    """A custom domain, operators whose weights are not looked into, other value types, and what exporters leave."""
    w, k = _values(8, 8, 3, 3), _values(8, 8, seed=1)
    nodes = [
        helper.make_node("Special", ["x", "u"], ["s"], domain="com.example", name="special", mode="fast", levels=[1, 2]),
        _node("Conv", "s w b", "c"),
        _node("SequenceConstruct", "c c", "list"),
        _node("SequenceAt", "list first", "at"),
        _node("Reshape", "at shape", "r"),
        _node("Einsum", "r k", "e", equation="ij,jk->ik"),
        _node("Constant", "", "text", value_string="hello"),
        _node("Constant", "", "numbers", value_floats=[1.0, 2.0]),
        _node("Gemm", "e k numbers8", "y", transA=0, beta=2.0),
    ]
    arrays = {
        "w": w,
        "u": _values(8, 8, seed=2),
        "b": _values(8),
        "k": k,
        "first": np.array(0, dtype=np.int64),
        "shape": np.array([-1, 8], dtype=np.int64),
        "numbers8": _values(8),
        "names": np.array(["a", "b"], dtype=object),
    }
    model = _model(nodes, _tensors(**arrays), rank=2, opsets=[helper.make_opsetid("com.example", 3)])
    helper.set_model_props(model, {"author": "somebody", "masksparse.note": "not a key of ours"})
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 8, "height", "width"]))
    annotation = model.graph.quantization_annotation.add(tensor_name="c")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="first")
    return Seed(model=model.SerializeToString(), masks=_masks({"w": (w, 1)}))


_NARROW = {
    name: getattr(TensorProto, name)
    for name in (
        *("DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT64", "INT4", "UINT4"),
        *("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"),
    )
}

SEEDS: Mapping[str, Callable[[], Seed]] = {
    "convolution": _convolution,
    "residual": functools.partial(_residual, sparse=False),
    "residual baked": functools.partial(_residual, sparse=True),
    "products": _products,
    "other convolutions": _other_convolutions,
    "bodies": _bodies,
    "functions": _functions,
    "external": _external,
    "quantized": _quantized,
    "half": _half,
    "sparse": _sparse,
    "everything else": _everything_else,
    **{f"{name} raw": functools.partial(_narrow, element, typed=False) for name, element in _NARROW.items()},
    **{f"{name} typed": functools.partial(_narrow, element, typed=True) for name, element in _NARROW.items()},
}
