from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.graph.evaluate import apply_layer
from masksparse_deploy.graph.model import WeightedLayer
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from masksparse_deploy.validate.arithmetic import ARITHMETICS
from masksparse_deploy.validate.rounding import growth, kept_terms, rounding_bound

HALVES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def _layer(op: str, weight: np.ndarray, bias: np.ndarray | None, shape: list[int], **attributes: int) -> WeightedLayer:
    inputs = ["x", "w"] + (["b"] if bias is not None else [])
    constants = [numpy_helper.from_array(weight, "w")] + ([numpy_helper.from_array(bias, "b")] if bias is not None else [])
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], **attributes)],
        "one layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    (layer,) = weighted_layers(parse_graph(model.SerializeToString(), name="one layer"))
    return layer


def _gemm(seed: int, terms: int, scale: float = 1.0) -> tuple[WeightedLayer, np.ndarray]:
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((5, terms), dtype=np.float32) * np.float32(scale)
    bias = generator.standard_normal(5, dtype=np.float32) * np.float32(scale)
    x = generator.standard_normal((3, terms), dtype=np.float32)
    return _layer("Gemm", weight, bias, [3, terms], transB=1), x


def _in_order(layer: WeightedLayer, x: np.ndarray, order: np.ndarray, dtype: type) -> np.ndarray:
    """The layer term by term, every product and sum rounded to `dtype`."""
    assert layer.bias is not None
    total = np.zeros((len(x), len(layer.weight)), dtype)
    for term in order:
        total = total + x.astype(dtype)[:, term, None] * layer.weight.astype(dtype)[:, term]
    return total + layer.bias.astype(dtype)


def _stored_in_half(layer: WeightedLayer, x: np.ndarray, order: np.ndarray, dtype: type) -> np.ndarray:
    """The layer with its sum in FP32, stored in `dtype`, and the bias added there."""
    total = np.zeros((len(x), len(layer.weight)), np.float32)
    for term in order:
        total = total + x[:, term, None] * layer.weight.astype(np.float32)[:, term]
    return total.astype(dtype) + layer.bias


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), terms=st.integers(1, 60), exponent=st.sampled_from([0, -60, -130]))
def test_any_order_of_summation_stays_within(seed, terms, exponent):
    layer, x = _gemm(seed, terms, 2.0**exponent)
    order = np.random.default_rng(seed).permutation(terms)
    error = np.abs(_in_order(layer, x, order, np.float32) - apply_layer(layer, x))
    assert (error <= rounding_bound(layer, x)).all()


def test_half_precision_leaves_the_bound():
    layer, x = _gemm(0, 60)
    error = np.abs(_in_order(layer, x, np.arange(60), np.float16).astype(np.float64) - apply_layer(layer, x))
    assert (error > rounding_bound(layer, x)).any()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    terms=st.integers(1, 60),
    exponent=st.sampled_from([0, -8, -14]),
    precision=st.sampled_from(["fp16", "bf16"]),
)
def test_layers_that_store_in_half_precision_stay_within(seed, terms, exponent, precision):
    dtype = HALVES[precision]
    layer, x = _gemm(seed, terms, 2.0**exponent)
    layer = replace(layer, weight=layer.weight.astype(dtype), bias=layer.bias.astype(dtype))
    order = np.random.default_rng(seed).permutation(terms)
    engine = _stored_in_half(layer, x, order, dtype).astype(np.float64)
    seen = x.astype(dtype)  # the kernel read x before it was rounded
    error = np.abs(engine - apply_layer(layer, seen))
    assert (error <= rounding_bound(layer, seen, ARITHMETICS[precision])).all()


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 11), ("bf16", 8)])
def test_the_bound_of_half_precision_is_nearly_reached(precision, bits):
    # All three roundings upwards, each by half a unit u: x' = 1 + u is seen as 1, a tie that rounds to even; its product with
    # 1 + 2u, just above the next tie, is stored as 1 + 4u, and adding u + 2u^2 lands just above a tie again: 3u in all, of a
    # bound of 3u times (1 + 2u)(1 + u), the biases and the like, all of the order u.
    u, dtype = 2.0**-bits, HALVES[precision]
    weight, bias = np.array([[1 + 2 * u]], np.float32), np.array([u + 2 * u**2], np.float32)
    layer = _layer("Gemm", weight, bias, [1, 1], transB=1)
    layer = replace(layer, weight=weight.astype(dtype), bias=bias.astype(dtype))
    x = np.array([[1 + u]], np.float32)
    error = np.abs(_stored_in_half(layer, x, np.arange(1), dtype).astype(np.float64) - apply_layer(layer, x.astype(dtype)))
    assert 1 - 10 * u < (error / rounding_bound(layer, x.astype(dtype), ARITHMETICS[precision])).item() <= 1


def test_the_spacing_of_half_precision_near_zero_counts():
    # x' = 2^-25 is seen as 0, its product with a weight just above 1 is stored as 2^-24
    weight = np.array([[1 + 2.0**-10]], np.float16)
    layer = _layer("Gemm", weight, np.zeros(1, np.float16), [1, 1], transB=1)
    x = np.array([[2.0**-25]], np.float32)
    error = _stored_in_half(layer, x, np.arange(1), np.float16).astype(np.float64) - apply_layer(layer, x.astype(np.float16))
    # the bound: (1 + 2^-10) 2^-25 for the input and 3 * 2^-25 for what is stored; all else is relative, 2^-10 at most
    assert error == 2.0**-24
    assert rounding_bound(layer, x.astype(np.float16), ARITHMETICS["fp16"]) == pytest.approx(4 * 2.0**-25, rel=2.0**-9)


def test_sums_kept_in_half_precision_leave_the_bound():
    # a sum of ones in FP16 stays at 2048, where the next number is 2050
    ones = np.ones((1, 3000), np.float16)
    layer = _layer("Gemm", ones, np.zeros(1, np.float16), [1, 3000], transB=1)
    error = np.abs(_in_order(layer, ones, np.arange(3000), np.float16).astype(np.float64) - apply_layer(layer, ones))
    assert (error > rounding_bound(layer, ones, ARITHMETICS["fp16"])).all()


def test_the_bound_is_nearly_reached():
    # 1 and then terms of 2^-24: each is half a unit in the last place, a tie that rounds to even, so all of them are lost
    terms = 3000
    weight, x = np.full((1, terms), 2.0**-24, np.float32), np.ones((1, terms), np.float32)
    weight[0, 0] = 1
    layer = _layer("Gemm", weight, np.zeros(1, np.float32), [1, terms], transB=1)
    error = np.abs(_in_order(layer, x, np.arange(terms), np.float32) - apply_layer(layer, x))
    assert 0.99 < (error / rounding_bound(layer, x)).max() <= 1


def test_zeros_do_not_count():
    weight = np.zeros((2, 4, 3, 3), np.float32)
    weight[0, :2] = 1
    weight[1, 0, 0, 0] = 1
    layer = _layer("Conv", weight, None, [1, 4, 5, 5], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    assert kept_terms(layer).tolist() == [18, 1]
    bound = rounding_bound(layer, np.ones((1, 4, 5, 5), np.float32))
    # in the middle: (n + 2) u times n ones, with n = 18 and 1; corrections by u and 2^-53 are far below 1e-5
    assert bound[0, :, 2, 2] == pytest.approx([20 * 18 * 2**-24, 3 * 2**-24], rel=1e-5)


@pytest.mark.parametrize(
    ("op", "attributes", "transposed"), [("Gemm", {"transB": 1}, False), ("Gemm", {}, True), ("MatMul", {}, True)]
)
def test_output_channels_are_found(op, attributes, transposed):
    weight = np.array([[1, 2, 3], [0, 0, 4]], np.float32)
    layer = _layer(op, weight.T.copy() if transposed else weight, None, [1, 3], **attributes)
    assert kept_terms(layer).tolist() == [3, 1]
    assert rounding_bound(layer, np.ones((1, 3), np.float32)).shape == (1, 2)


def test_growth():
    assert growth(np.array([1, 1000]), 2.0**-24) == pytest.approx([2.0**-24, 1000 * 2.0**-24], rel=1e-4)
    counts = np.array([2, 1000])
    gamma = counts * 2.0**-24 / (1 - counts * 2.0**-24)
    assert ((counts * 2.0**-24 < growth(counts, 2.0**-24)) & (growth(counts, 2.0**-24) < gamma)).all()


def _cut(values: np.ndarray, bits: int) -> np.ndarray:
    """float32 without its last bits: 13 leave the 10 of TF32."""
    return ((values.astype(np.float32).view(np.uint32) >> bits) << bits).view(np.float32)


def _tensor_core(layer: WeightedLayer, x: np.ndarray, order: np.ndarray, dtype: type, operand_bits: int = 0) -> np.ndarray:
    """Sums of exact products, cut off at every step to what `dtype` holds, as tensor cores may do; the bias likewise."""
    assert layer.bias is not None
    weight = _cut(layer.weight, operand_bits).astype(np.float64)
    seen = _cut(x, operand_bits).astype(np.float64)
    total = np.zeros((len(x), len(weight)))
    for term in order:
        total = _toward_zero(total + seen[:, term, None] * weight[:, term], dtype)
    return _toward_zero(total + layer.bias.astype(np.float64), dtype)


def _toward_zero(values: np.ndarray, dtype: type) -> np.ndarray:
    rounded = values.astype(dtype)
    too_large = np.abs(rounded.astype(np.float64)) > np.abs(values)
    return np.where(too_large, np.nextafter(rounded, dtype(0)), rounded).astype(np.float64)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), terms=st.integers(1, 60), exponent=st.sampled_from([0, -60, -120]))
def test_tf32_stays_within_its_bound(seed, terms, exponent):
    layer, x = _gemm(seed, terms, 2.0**exponent)
    order = np.random.default_rng(seed).permutation(terms)
    error = np.abs(_tensor_core(layer, x, order, np.float32, 13) - apply_layer(layer, x))
    assert (error <= rounding_bound(layer, x, ARITHMETICS["tf32"])).all()


def test_the_bound_of_tf32_is_nearly_reached_and_that_of_fp32_left():
    # 1 + 2^-10 - 2^-23 is cut to 1 in both factors: nearly 2^-10 each, relatively
    weight = np.full((1, 8), 1 + 2.0**-10 - 2.0**-23, np.float32)
    layer = _layer("Gemm", weight, np.zeros(1, np.float32), [1, 8], transB=1)
    error = np.abs(_tensor_core(layer, weight, np.arange(8), np.float32, 13) - apply_layer(layer, weight))
    # of a bound of twice 2^-10, and (n + 2) 2^-23 for the sums, which lose nothing here
    assert 0.99 < (error / rounding_bound(layer, weight, ARITHMETICS["tf32"])).item() <= 1
    assert (error > 100 * rounding_bound(layer, weight)).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), terms=st.integers(1, 60), exponent=st.sampled_from([0, -8, -14]))
def test_sums_in_fp16_stay_within_their_bound(seed, terms, exponent):
    layer, x = _gemm(seed, terms, 2.0**exponent)
    layer = replace(layer, weight=layer.weight.astype(np.float16), bias=layer.bias.astype(np.float16))
    seen = x.astype(np.float16)
    order = np.random.default_rng(seed).permutation(terms)
    error = np.abs(_tensor_core(layer, seen.astype(np.float32), order, np.float16) - apply_layer(layer, seen))
    assert (error <= rounding_bound(layer, seen, ARITHMETICS["fp16 sums"])).all()


def test_sums_in_fp16_of_many_terms_have_a_bound():
    # (1 + u)^n - 1 where n u is above 1: a sum of ones that stays at 2048, of 3,000
    ones = np.ones((1, 3000), np.float16)
    layer = _layer("Gemm", ones, np.zeros(1, np.float16), [1, 3000], transB=1)
    error = np.abs(_in_order(layer, ones, np.arange(3000), np.float16).astype(np.float64) - apply_layer(layer, ones))
    assert (error <= rounding_bound(layer, ones, ARITHMETICS["fp16 sums"])).all()


def test_sums_in_fp16_that_may_be_infinite_have_none():
    # |W| * |x| is 300 * 300 = 90,000, although the sum is 0: halfway it may be beyond 65504
    weight = np.array([[300.0, -300.0], [100.0, -100.0]], np.float16)
    layer = _layer("Gemm", weight, np.zeros(2, np.float16), [1, 2], transB=1)
    x = np.full((1, 2), 150.0, np.float16)
    bound = rounding_bound(layer, x, ARITHMETICS["fp16 sums"])
    assert np.isinf(bound).tolist() == [[True, False]]
    assert np.isfinite(rounding_bound(layer, x, ARITHMETICS["fp16"])).all()


def _blocks(layer: WeightedLayer, x: np.ndarray, block: int) -> np.ndarray:
    """FP32 sums as on the first tensor cores: each block of exact products and the sum so far cut to 24 bits of the largest."""
    terms = x[:, None, :].astype(np.float64) * layer.weight.astype(np.float64)
    total = np.zeros(terms.shape[:2])
    for start in range(0, terms.shape[2], block):
        aligned = np.concatenate([total[..., None], terms[..., start : start + block]], axis=2)
        spacing = 2.0 ** (np.floor(np.log2(np.abs(aligned).max(axis=2, keepdims=True))) - 23)
        total = (np.trunc(aligned / spacing) * spacing).sum(axis=2).astype(np.float32).astype(np.float64)
    return total


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), terms=st.integers(1, 200), block=st.sampled_from([4, 8, 16]))
def test_blocks_that_are_aligned_and_cut_stay_within_the_bound_of_tensor_cores(seed, terms, block):
    layer, x = _gemm(seed, terms)
    layer = replace(layer, weight=layer.weight.astype(np.float16), bias=None)
    seen = x.astype(np.float16)
    error = np.abs(_blocks(layer, seen, block) - apply_layer(layer, seen))
    # what storing in FP16 may add is left out: R alone, as for TF32 without its operands
    assert (error <= rounding_bound(layer, seen, replace(ARITHMETICS["tf32"], operand_unit=0.0))).all()
