"""Whole networks in FP16 and BF16: every weight, every mask, and what they compute."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from masksparse_deploy.bake.annotate import Annotate
from masksparse_deploy.bake.apply import ApplyMasks
from masksparse_deploy.bake.conformity import nonzeros_per_group
from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.graph.evaluate import absolute_layer, apply_layer, evaluate, unsupported_operators
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from samples.own_loop.run import IMAGE_SHAPE, small_network
from tests.bake.precision.float_models import Precision, converted, residual, run
from tests.models.cifar_resnet import resnet20
from tests.models.make_onnx import residual_masks
from tests.models.tiny_cnn import magnitude_masks, tiny_cnn

OPSETS = (17, 18, 20, 22)
DTYPES: dict[Precision, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
# BF16 convolutions came with operator set 22
CASES: list[tuple[Precision, int]] = [*(("fp16", opset) for opset in OPSETS), ("bf16", 22)]
# Layers that can carry 2:4 along their input channels, of each network.
MASKED: dict[str, Callable[[str, tuple[int, ...]], bool]] = {
    "tiny": lambda name, shape: "block.conv" in name,
    "digits": lambda name, shape: shape[1] % 4 == 0,
    "resnet20": lambda name, shape: shape[1] % 4 == 0,
    "own_loop": lambda name, shape: shape[1] % 4 == 0,
}


def digits_net() -> nn.Module:
    path = Path(__file__).parents[3] / "samples" / "digits" / "model.py"
    spec = importlib.util.spec_from_file_location("digits_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.digits_net()
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "tiny": (tiny_cnn, (3, 8, 8)),
    "digits": (digits_net, (1, 8, 8)),
    "resnet20": (resnet20, (3, 32, 32)),
    "own_loop": (small_network, IMAGE_SHAPE),
}


@functools.cache
def exported(name: str, opset: int) -> tuple[onnx.ModelProto, Any]:
    """A network with its masks written in, as baking does it, and the masks."""
    factory, shape = NETWORKS[name]
    model = factory().eval()
    layers = [
        layer
        for layer, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and MASKED[name](layer, tuple(module.weight.shape))
    ]
    masks = magnitude_masks(model, layers)
    graph = ir.from_proto(onnx.load_model_from_string(export_onnx(model, shape, opset=opset)))
    for rewrite in (ApplyMasks(masks), Annotate(masks)):
        rewrite(graph)
    return ir.to_proto(graph), masks


def check_converted(model: onnx.ModelProto, low: onnx.ModelProto, masks: Any, precision: Precision) -> None:
    """2:4 and every value in the written bytes, and nothing else changed but the two casts."""
    before = parse_graph(model.SerializeToString(), name="fp32")
    graph = parse_graph(low.SerializeToString(), name=precision)
    assert unsupported_operators(graph) == ()
    assert (graph.opsets, graph.metadata) == (before.opsets, before.metadata)
    assert (dict(graph.inputs), graph.outputs) == (dict(before.inputs), before.outputs)
    assert list(graph.constants) == list(before.constants)
    assert graph.constant_metadata == before.constant_metadata
    for name, array in before.constants.items():
        expected = array.astype(DTYPES[precision]) if array.dtype == np.float32 else array
        assert graph.constants[name].dtype == expected.dtype, name
        assert graph.constants[name].tobytes() == expected.tobytes(), name
    assert not [name for name, array in graph.constants.items() if array.dtype == np.float32]
    own = [node for node in graph.nodes if node.op != "Cast"]
    assert [(node.name, node.op, node.metadata) for node in own] == [
        (node.name, node.op, node.metadata) for node in before.nodes if node.op != "Cast"
    ]
    assert len(graph.nodes) == len(before.nodes) + 2
    layers = {layer.stored_name: layer for layer in weighted_layers(graph)}
    for name, mask in masks.layers.items():
        assert not layers[name].weight[~mask.keep].any()
        counts = nonzeros_per_group(layers[name].weight, axis=layers[name].group_axis, size=4)
        assert counts.max() == 2, name


def check_outputs(low: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Every layer of an FP16 file, as ONNX Runtime computes it, against float64 on the very inputs the layer got.

    On x86 the runtime has no FP16 convolutions or products: it computes them in FP32, n products with an error of n 2^-24
    |W||x| at most, and rounds the result to FP16: 2^-11 of it, or 2^-25 below the normal numbers. It also joins casts, so
    that a layer may get its input before it was rounded to FP16: 2^-11 |W||x|.
    """
    graph = parse_graph(low.SerializeToString(), name="fp16")
    layers = weighted_layers(graph)
    names = list(dict.fromkeys(name for layer in layers for name in (layer.node.inputs[0], layer.node.outputs[0])))
    exposed = onnx.ModelProto()
    exposed.CopyFrom(low)
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in names)
    images = np.random.default_rng(5).standard_normal((4, *shape), dtype=np.float32)
    tensors = dict(zip(names, run(exposed, images, names), strict=True))
    for layer in layers:
        x, y = tensors[layer.node.inputs[0]], tensors[layer.node.outputs[0]].astype(np.float64)
        term_count = int(np.prod(layer.weight.shape[1:]))
        exact = apply_layer(layer, x)
        relative = 2.0**-11 + (term_count + 2) * 2.0**-24
        allowed = 2.0**-11 * np.abs(y) + 2.0**-25 + relative * absolute_layer(layer, x)
        assert bool((np.abs(y - exact) <= allowed).all()), layer.node.name
    (logits,) = run(low, images)
    assert logits.dtype == np.float32
    # Each of at most 20 layers in a row rounds 2^-11 of its largest output; gains of the networks here are near one.
    reference = evaluate(graph, images)[graph.outputs[0]]
    np.testing.assert_allclose(logits, reference, rtol=0, atol=20 * 2.0**-11 * np.abs(reference).max())


@pytest.mark.parametrize(("precision", "opset"), CASES)
def test_a_residual_network(precision: Precision, opset: int) -> None:
    model = residual(opset)
    low = converted(model, precision)
    check_converted(model, low, residual_masks(), precision)
    if precision == "fp16":
        check_outputs(low, (3, 8, 8))


def test_an_exported_network() -> None:
    model, masks = exported("tiny", 20)
    low = converted(model, "fp16")
    check_converted(model, low, masks, "fp16")
    check_outputs(low, NETWORKS["tiny"][1])


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "opset"), CASES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_sample_network(name: str, precision: Precision, opset: int) -> None:
    model, masks = exported(name, opset)
    low = converted(model, precision)
    check_converted(model, low, masks, precision)
    if precision == "fp16":
        check_outputs(low, NETWORKS[name][1])


@pytest.mark.parametrize("fault", ["a third weight in a group", "a value rounded otherwise", "a constant left in FP32"])
def test_the_checks_of_these_tests_see_a_fault(fault: str) -> None:
    model = residual(20)
    low = converted(model, "fp16")
    (kernel,) = (tensor for tensor in low.graph.initializer if tensor.name == "layer1.conv1.weight")
    weight = numpy_helper.to_array(kernel).copy()
    if fault == "a third weight in a group":
        weight[0, :4, 0, 0] = 1
    elif fault == "a value rounded otherwise":
        largest = np.unravel_index(np.abs(weight).argmax(), weight.shape)
        weight[largest] = np.nextafter(weight[largest], np.float16(9))
    else:
        weight = weight.astype(np.float32)
        low.graph.node.insert(0, helper.make_node("Cast", ["stored"], [kernel.name], to=TensorProto.FLOAT16, name="cast"))
    kernel.CopyFrom(numpy_helper.from_array(weight, "stored" if weight.dtype == np.float32 else kernel.name))
    with pytest.raises(AssertionError):
        check_converted(model, low, residual_masks(), "fp16")
