"""What is checked of the files before they are written."""

from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.bake.annotate import Annotate, MarkDense
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.verify import verify_converted, verify_export, with_checkpoints
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph
from tests.bake.file_models import mask_of, mask_set, model_of, values

WEIGHT, BIAS = values(8, 8, 3, 3), values(8, seed=1)
MASK = mask_of("conv.weight", WEIGHT, 1)
MASKS = mask_set(MASK)
TRAINED = {"conv.weight": WEIGHT}


def pair() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A convolution, dense and with its mask."""
    node = helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["y"], name="conv", pads=[1] * 4)
    weights = {"conv.weight": WEIGHT, "conv.bias": BIAS}
    dense, sparse = (ir.from_proto(model_of([node], weights, x=["batch", 8, 6, 6], y=["batch", 8, 6, 6])) for _ in range(2))
    MarkDense()(dense)
    ApplyMasks(MASKS)(sparse)
    Annotate(MASKS)(sparse)
    return ir.to_proto(dense), ir.to_proto(sparse)


def graphs(*models: onnx.ModelProto) -> tuple[Graph, Graph]:
    dense, sparse = (parse_graph(model.SerializeToString(), name="model") for model in models)
    return dense, sparse


def change(model: onnx.ModelProto, name: str, edit: Callable[[np.ndarray], object]) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    edit(array)
    tensor.raw_data = array.tobytes()


def put_one_back(weight: np.ndarray) -> None:
    """One weight that the mask drops, so that one group has three."""
    weight[tuple(np.argwhere(~MASK.keep)[0])] = 1


def swap_filters(weight: np.ndarray) -> None:
    weight[:2] = weight[1::-1]


def lose_the_first(array: np.ndarray) -> None:
    array.flat[0] = np.nan


def rename_node(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = "other"


def test_a_sound_pair() -> None:
    (layer,) = verify_converted(*graphs(*pair()), MASKS, "fp16")
    assert (layer.violation_count, layer.group_count) == (0, WEIGHT.size // 4)
    assert verify_export(*graphs(*pair()), MASKS, TRAINED) == (layer,)


@pytest.mark.parametrize(
    ("which", "name", "edit", "message"),
    [
        (0, "conv.bias", lose_the_first, "constant conv.bias holds values that are not finite"),
        (1, "conv.bias", lose_the_first, "constant conv.bias holds values that are not finite"),
        (1, "conv.weight", put_one_back, "conv.weight"),
        (1, "conv.bias", lambda bias: np.multiply(bias, 2, out=bias), "constant conv.bias changed"),
        (1, "conv.weight", lambda weight: np.multiply(weight, 2, out=weight), "kept weights of conv.weight changed"),
    ],
)
def test_a_fault_of_the_conversion(which: int, name: str, edit: Callable[[np.ndarray], object], message: str) -> None:
    models = pair()
    change(models[which], name, edit)
    with pytest.raises(ArtifactError, match=f"no longer does after the conversion to fp16.*{message}"):
        verify_converted(*graphs(*models), MASKS, "fp16")


def test_values_of_types_that_numpy_lacks_are_looked_at() -> None:
    infinite = np.full(8, np.inf, dtype=ml_dtypes.bfloat16)
    dense, sparse = (replace(graph, constants={**graph.constants, "scale": infinite}) for graph in graphs(*pair()))
    with pytest.raises(ArtifactError, match="constant scale holds values that are not finite"):
        verify_converted(dense, sparse, MASKS, "bf16")


@pytest.mark.parametrize("check", [verify_converted, verify_export])
def test_twins_of_another_structure(check: Callable[..., object]) -> None:
    models = pair()
    rename_node(models[0])
    with pytest.raises(ArtifactError, match="differ in more than values"):
        check(*graphs(*models), MASKS, TRAINED if check is verify_export else "fp16")


@pytest.mark.parametrize(("which", "file"), [(0, "dense"), (1, "sparse")])
def test_an_export_with_values_that_are_not_finite(which: int, file: str) -> None:
    models = pair()
    change(models[which], "conv.bias", lose_the_first)
    with pytest.raises(UsageError, match=r"constant conv\.bias of the exported graph holds 1 values"):
        verify_export(*graphs(*models), MASKS, TRAINED)


@pytest.mark.parametrize(
    ("changed", "name", "edit", "message"),
    [
        ((0, 1), "conv.weight", swap_filters, "is not the trained weight"),
        ((1,), "conv.bias", lambda bias: np.multiply(bias, 2, out=bias), "constant conv.bias changed"),
        ((1,), "conv.weight", lambda weight: np.multiply(weight, 2, out=weight), "kept weights of conv.weight changed"),
        ((1,), "conv.weight", put_one_back, "does not conform to its masks"),
    ],
)
def test_an_export_that_changed_what_it_should_keep(
    changed: tuple[int, ...], name: str, edit: Callable[[np.ndarray], object], message: str
) -> None:
    models = pair()
    for which in changed:
        change(models[which], name, edit)
    with pytest.raises(ArtifactError, match=message):
        verify_export(*graphs(*models), MASKS, TRAINED)


def test_each_stage_has_its_own_count() -> None:
    (sound,) = verify_export(*graphs(*pair()), MASKS, TRAINED)
    exported = sound.model_copy(update={"violation_count": 3})
    converted = sound.model_copy(update={"violation_count": 5})
    (layer,) = with_checkpoints([exported], [converted], MASKS, TRAINED)
    groups = WEIGHT.size // 4
    counts = [(checkpoint.stage, checkpoint.violation_count, checkpoint.group_count) for checkpoint in layer.checkpoints]
    assert counts == [("module", 0, groups), ("onnx", 3, groups), ("converted", 5, groups)]
