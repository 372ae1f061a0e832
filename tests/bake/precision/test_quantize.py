"""INT8 files: what is written, what is kept, and what is refused."""

import functools
import importlib.util
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from masksparse_deploy.bake.export import export_onnx
from masksparse_deploy.bake.lower_opset import lower_opset
from masksparse_deploy.bake.precision import calibration
from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.bake.precision.quantized_check import check_quantized, float_layers
from masksparse_deploy.bake.twins import structural_differences
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.reader import weighted_layers
from samples.own_loop.run import IMAGE_SHAPE, small_network
from tests.bake.precision.quantized_models import (
    images,
    in_opset,
    network,
    outputs,
    parsed,
    quantized_pair,
    quantized_tensors,
    stored,
)
from tests.models.cifar_resnet import CifarResNet
from tests.models.make_onnx import MASKED_LAYERS, residual_masks, residual_pair, set_properties
from tests.models.tiny_cnn import EXAMPLE_SHAPE, tiny_cnn
from tests.requirements import REPOSITORY

OPSETS = pytest.mark.parametrize("opset", [17, 20])
DIGITS = REPOSITORY / "samples" / "digits"
SHAPES = {"tiny": EXAMPLE_SHAPE, "cifar": (3, 16, 16), "digits": (1, 8, 8), "own_loop": IMAGE_SHAPE}


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


@OPSETS
def test_the_file_conforms_and_its_integers_are_sparse(opset: int) -> None:
    dense, sparse = quantized_pair(opset)
    assert check_quantized(parsed(dense)) == ()
    assert check_quantized(parsed(sparse), residual_masks()) == ()
    for layer in MASKED_LAYERS:
        name = f"{layer}.weight"
        levels = stored(sparse, name)
        if opset == 17:
            levels = np.rint(levels / stored(sparse, f"{name}_scale").reshape(-1, 1, 1, 1)).astype(np.int8)
        assert levels.dtype == np.int8
        groups = np.moveaxis(levels, 1, -1).reshape(-1, 4)
        assert (np.count_nonzero(groups, axis=1) <= 2).all()
        assert not levels[~residual_masks().layers[name].keep].any()


@OPSETS
def test_weights_are_within_half_a_step(opset: int) -> None:
    original, quantized = residual_pair()[1], quantized_pair(opset)[1]
    for layer in (*MASKED_LAYERS, "stem", "fc"):
        weight = stored(original, f"{layer}.weight")
        steps = stored(quantized, f"{layer}.weight_scale").reshape(-1, *[1] * (weight.ndim - 1))
        found = stored(quantized, f"{layer}.weight").astype(np.float32) * (1 if opset == 17 else steps)
        # Rounding in float32 may move a tie by the spacing of numbers as large as 127 steps, 127 * 2^-24 of a step
        assert (np.abs(found - weight) <= steps * (0.5 + 1e-5)).all()
        largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
        np.testing.assert_array_equal(stored(quantized, f"{layer}.weight_scale"), largest / np.float32(127))
        assert not np.signbit(found[weight == 0]).any()


@OPSETS
def test_both_twins_are_one_graph(opset: int) -> None:
    dense, sparse = quantized_pair(opset)
    assert structural_differences(parsed(dense), parsed(sparse)) == ()


@OPSETS
def test_nothing_is_lost(opset: int) -> None:
    original = in_opset(residual_pair()[1], opset)
    original.opset_import.append(onnx.helper.make_opsetid("com.example", 3))
    original.doc_string = "a network"
    original.graph.node[0].doc_string = "the first layer"
    initializers(original)["stem.weight"].doc_string = "its weight"
    before = original.SerializeToString(deterministic=True)
    quantized = quantize(original, images())
    assert original.SerializeToString(deterministic=True) == before
    for field in ("opset_import", "metadata_props", "doc_string", "ir_version", "producer_name"):
        assert getattr(quantized, field) == getattr(original, field), field
    assert (quantized.graph.input, quantized.graph.output) == (original.graph.input, original.graph.output)
    assert quantized.graph.name == original.graph.name
    found = {node.name: node for node in quantized.graph.node}
    for node in original.graph.node:
        assert found[node.name].output == node.output and found[node.name].attribute == node.attribute
        assert found[node.name].doc_string == node.doc_string
        kept = {entry.key: entry.value for entry in node.metadata_props}
        assert kept.items() - {entry.key: entry.value for entry in found[node.name].metadata_props}.items() <= {
            (keys.DENSITY, kept.get(keys.DENSITY))
        }
    for name, tensor in initializers(original).items():
        ours = initializers(quantized)[name]
        assert {entry.key for entry in tensor.metadata_props} == {entry.key for entry in ours.metadata_props}
        assert tensor.doc_string == ours.doc_string
        if name.endswith("bias"):
            assert numpy_helper.to_array(ours).tobytes() == numpy_helper.to_array(tensor).tobytes()


@OPSETS
def test_the_noted_density_is_that_of_the_integers(opset: int) -> None:
    sparse = residual_pair()[1]
    weight = initializers(sparse)["layer1.conv1.weight"]
    array = numpy_helper.to_array(weight).copy()
    kept = np.flatnonzero(array[0])[:3]
    array[0].reshape(-1)[kept] = -1e-6  # far below half a step: they become 0
    weight.raw_data = array.tobytes()
    graph = parsed(quantize(in_opset(sparse, opset), images()))
    node = next(node for node in graph.nodes if node.name == "layer1.conv1")
    expected = repr(float((np.count_nonzero(array) - 3) / array.size))
    assert node.metadata[keys.DENSITY] == graph.constant_metadata["layer1.conv1.weight"][keys.DENSITY] == expected
    assert not np.signbit(np.asarray(graph.constants["layer1.conv1.weight"], dtype=np.float32)[0].reshape(-1)[kept]).any()


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_the_same_bytes_again_and_nothing_printed(method: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = network("c = Conv (x, w)\n y = Relu (c)", {"w": (8, 4, 3, 3)})
    first, second = (quantize(model, images(shape=(4, 6, 6)), method=method) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert capsys.readouterr().out == ""


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    model = network("y = Conv (x, w)", {"w": (8, 4, 3, 3)})
    quantize(model, images(70, (4, 6, 6)), progress=lambda _, done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def digits_net() -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("digits_model", DIGITS / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: torch.nn.Module = module.digits_net()
    model.load_state_dict(load_file(DIGITS / "model.safetensors"))
    return model


def masked(model: torch.nn.Module) -> list[str]:
    """Zeros by magnitude, 2:4 along the input channels, wherever they can be; names of the weights."""
    pattern, names = NMPattern(n=2, m=4), []
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and module.weight.shape[1] % 4 == 0:
                keep = pattern.keep_largest(np.abs(module.weight.detach().numpy()), group_axis=1)
                module.weight.mul_(torch.from_numpy(keep))
                names.append(f"{name}.weight")
    return names


@functools.cache
def exported(name: str) -> tuple[onnx.ModelProto, list[str]]:
    """A sample network with 2:4 masks in opset 18, not to be changed, and the names of the masked weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = {"tiny": tiny_cnn, "cifar": lambda: CifarResNet(1), "digits": digits_net, "own_loop": small_network}[name]()
    names = masked(model.eval())
    return onnx.load_model_from_string(export_onnx(model, SHAPES[name], opset=18)), names


@OPSETS
@pytest.mark.parametrize("name", SHAPES)
def test_exported_networks(name: str, opset: int) -> None:
    shape = SHAPES[name]
    original, names = exported(name)
    # What these networks use means the same in 18 and in 20
    original = in_opset(original, 18 if opset == 17 else opset)
    if opset == 17:
        lower_opset(original)
    quantized = quantize(original, images(64, shape))
    graph = parsed(quantized)
    assert check_quantized(graph) == ()
    assert set(float_layers(graph).values()) == {"gives float: it is an output of the network"}
    for weight in names:
        levels = np.asarray(graph.constants[weight], dtype=np.float32)
        groups = np.moveaxis(levels, 1, -1).reshape(-1, 4)
        assert (np.count_nonzero(groups, axis=1) <= 2).all(), weight
    batch = images(64, shape)
    expected, found = outputs(original, batch), outputs(quantized, batch)
    # Every layer adds noise of at most half a step in 127, 0.4 %, to its inputs and weights; some ten layers in a row
    assert np.abs(found - expected).max() <= 0.1 * np.abs(expected).max()


def test_real_digits_keep_their_class() -> None:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("digits_data", DIGITS / "data.py")
    assert spec is not None and spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    original, _ = exported("digits")
    test, _ = data.test()
    classes = outputs(original, test).argmax(axis=1)
    for method in ("minmax", "percentile"):
        found = outputs(quantize(original, data.train()[0][:200], method=method), test).argmax(axis=1)
        # Of 599 images; measured are 0 to 2 others
        assert (found != classes).sum() <= 6, method


@OPSETS
def test_readers_see_the_layers_as_before(opset: int) -> None:
    original = {layer.stored_name: layer for layer in weighted_layers(parsed(residual_pair()[1]))}
    found = weighted_layers(parsed(quantized_pair(opset)[1]))
    assert [layer.stored_name for layer in found] == list(original)
    for layer in found:
        before = original[layer.stored_name]
        assert (layer.group_axis, layer.quantized, layer.consumer_count) == (before.group_axis, "int8", 1)
        # Half a step, a 254th of the largest weight of the channel
        np.testing.assert_allclose(layer.weight, before.weight, rtol=0, atol=np.abs(before.weight).max() / 253)
        assert not layer.weight[before.weight == 0].any()


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(exponents=st.lists(st.integers(-149, 127), min_size=4, max_size=4), opset=st.sampled_from([17, 20]))
def test_zeros_stay_and_nothing_overflows_whatever_the_magnitudes(exponents: list[int], opset: int) -> None:
    keep = NMPattern(n=2, m=4).keep_largest(np.random.default_rng(0).random((4, 4, 1, 1)), group_axis=1)
    scale = np.ldexp(np.float32(1), exponents).astype(np.float32)
    array = np.where(keep, images(4, (4, 1, 1)) * scale.reshape(-1, 1, 1, 1), np.float32(0))
    hypothesis.assume(np.isfinite(array).all())
    model = network("y = Conv (x, w)", {"w": (4, 4, 1, 1)}, opset=opset)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    quantized = quantize(model, images(1, (4, 6, 6)))
    graph = parsed(quantized)
    assert check_quantized(graph) == ()
    (layer,) = weighted_layers(graph)
    assert not layer.weight[~keep].any()
    steps = stored(quantized, "w_scale").reshape(-1, 1, 1, 1)
    assert np.isfinite(layer.weight).all()
    assert (np.abs(layer.weight.astype(np.float64) - array) <= 0.501 * steps.astype(np.float64)).all()


def test_models_beyond_what_one_file_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("c = Conv (x, w)\n y = Relu (c)", {"w": (8, 4, 3, 3)})
    expected = quantize(model, images(shape=(4, 6, 6)))
    monkeypatch.setattr(calibration, "_LARGEST_FILE_BYTES", 0)  # weights go to a file of their own
    assert quantize(model, images(shape=(4, 6, 6))) == expected
    assert model.graph.initializer[0].raw_data


def test_a_weight_in_a_constant_node() -> None:
    model = network("y = Conv (x, w)", {"w": (8, 4, 3, 3)})
    tensor = model.graph.initializer.pop()
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], name="kernel", value=tensor))
    quantized = quantize(model, images(shape=(4, 6, 6)))
    assert check_quantized(parsed(quantized)) == ()
    (constant,) = [node for node in quantized.graph.node if node.op_type == "Constant"]
    assert constant.attribute[0].t.data_type == onnx.TensorProto.INT8


def test_a_weight_that_two_layers_read_is_quantized_once() -> None:
    model = network("c = Conv <pads=[1,1,1,1]> (x, w)\n d = Relu (c)\n y = Conv (d, w)", {"w": (4, 4, 3, 3)})
    quantized = quantize(model, images(shape=(4, 6, 6)))
    assert check_quantized(parsed(quantized)) == ()
    assert [node.op_type for node in quantized.graph.node].count("DequantizeLinear") == 3


def test_a_channel_of_zeros_has_a_scale() -> None:
    model = network("y = Conv (x, w)", {"w": (8, 4, 3, 3)})
    array = stored(model, "w").copy()
    array[3] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    quantized = quantize(model, np.zeros((4, 4, 6, 6), np.float32))
    assert stored(quantized, "w_scale")[3] == stored(quantized, "x_scale") == 1
    assert check_quantized(parsed(quantized)) == ()
    assert not outputs(quantized, np.zeros((1, 4, 6, 6), np.float32)).any()


def test_names_that_are_taken() -> None:
    model = network("x_scale = Relu (x)\n y = Conv (x_scale, w)", {"w": (8, 4, 3, 3)})
    quantized = quantize(model, images(shape=(4, 6, 6)))
    assert check_quantized(parsed(quantized)) == ()
    model = network("x_quantized = Conv (x, w)\n y = Relu (x_quantized)", {"w": (8, 4, 3, 3)})
    assert "x_quantized_" in {name for node in quantize(model, images(shape=(4, 6, 6))).graph.node for name in node.output}


def test_functions_are_put_in_first() -> None:
    text = """<ir_version: 9, opset_import: ["" : 20, "own" : 1]> g (float[b,4,6,6] x, float[8,4,3,3] w) => (float[b,8,4,4] y)
    { y = own.block (x, w) }
    <domain: "own", opset_import: ["" : 20]> block (a, k) => (b) { c = Conv (a, k)  b = Relu (c) }"""
    model = onnx.parser.parse_model(text)
    del model.graph.input[1]
    model.graph.initializer.append(numpy_helper.from_array(images(8, (4, 3, 3)), "w"))
    quantized = quantize(model, images(shape=(4, 6, 6)))
    assert check_quantized(parsed(quantized)) == ()
    assert quantized_tensors(quantized) == {"x"}


def test_metadata_of_a_dense_twin_only_gains_reasons() -> None:
    dense = residual_pair()[0]
    quantized = quantize(dense, images())
    added = {entry.key for node in quantized.graph.node for entry in node.metadata_props}
    assert added == {keys.FLOAT_OUTPUT_REASON}


def test_what_is_refused() -> None:
    model = network("y = Conv (x, w)", {"w": (8, 4, 3, 3)})
    batch = images(shape=(4, 6, 6))
    quantized = quantize(model, batch)
    with pytest.raises(UsageError, match=r"quantized already \(QuantizeLinear x_QuantizeLinear\); give the FP32 one"):
        quantize(quantized, batch)
    with pytest.raises(UsageError, match=r"opset 12, in which INT8 weights cannot.*13 or newer"):
        quantize(in_opset(model, 12), batch)
    with pytest.raises(UsageError, match=r"no operator of the model is named convolution"):
        quantize(model, batch, exclude=["convolution"])
    with pytest.raises(UsageError, match=r"images are float32 \(40, 3, 6, 6\), but .* x takes float32 \('any', 4, 6, 6\)"):
        quantize(model, images(shape=(3, 6, 6)))
    with pytest.raises(UsageError, match=r"images are float32 \(0, 4, 6, 6\).*at least one batch"):
        quantize(model, batch[:0])
    with pytest.raises(UsageError, match=r"the images hold NaN or infinite values"):
        quantize(model, np.full((2, 4, 6, 6), np.inf, np.float32))
    with pytest.raises(UsageError, match=r"the network has 2 inputs"):
        quantize(_with_second_input(), batch)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_values_that_are_not_finite(method: Any) -> None:
    model = network("c = Conv (x, w)\n d = Relu (c)\n y = Conv (d, v)", {"w": (8, 4, 3, 3), "v": (4, 8, 3, 3)})
    array = stored(model, "w").copy()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array * np.float32(1e38), "w"))
    with pytest.raises(UsageError, match=r"calibration: d is not finite|ONNX Runtime cannot run the network"):
        quantize(model, images(shape=(4, 6, 6)), method=method)
    array[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    with pytest.raises(UsageError, match=r"is not finite|ONNX Runtime cannot run the network"):
        quantize(model, images(shape=(4, 6, 6)), method=method)


def _with_second_input() -> onnx.ModelProto:
    model = network("c = Conv (x, w)\n y = Add (c, z)", {"w": (8, 4, 3, 3)})
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["b", 8, 4, 4]))
    return model


def test_a_network_that_the_runtime_cannot_run() -> None:
    model = network("c = Conv (x, w)\n y = Relu (c)", {"w": (8, 4, 3, 3)})
    model.graph.node[1].op_type, model.graph.node[1].domain = "unknown", "own"
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    with pytest.raises(UsageError, match=r"ONNX Runtime cannot run the network \(.*unknown"):
        quantize(model, images(shape=(4, 6, 6)))


def test_annotations_of_layers_left_in_float_stay() -> None:
    sparse = residual_pair()[1]
    quantized = quantize(sparse, images(), exclude=["layer1.conv1"])
    graph = parsed(quantized)
    assert float_layers(graph)["layer1.conv1"] == "in float: excluded from quantization"
    assert check_quantized(graph, residual_masks()) == ()
    np.testing.assert_array_equal(stored(quantized, "layer1.conv1.weight"), stored(sparse, "layer1.conv1.weight"))
    set_properties(next(node for node in quantized.graph.node if node.name == "layer1.conv1"), {})
    (finding,) = check_quantized(parsed(quantized))
    assert finding == "layer1.conv1: its weight is in float, and masksparse.float_reason does not say why"
