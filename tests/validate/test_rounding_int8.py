"""The bound of INT8 layers against kernels in NumPy: any order of summation, exact integers, every rounding the wrong way."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksparse_deploy.graph.reader import weighted_layers
from masksparse_deploy.validate.arithmetic import ARITHMETICS
from masksparse_deploy.validate.rounding_int8 import exact_output, int8_reference, overflow, tail_slope
from masksparse_deploy.validate.units import Grid, unit_of
from tests.validate.int8_layers import (
    dequantized,
    float_kernel,
    int8_layer,
    integer_kernel,
    integer_sums,
    on_grid,
    random_levels,
    worst_kernel,
    worst_on_grid,
)

INTEGERS, FLOATS = ARITHMETICS["int8"], ARITHMETICS["int8 in fp32"]
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, terms=st.integers(1, 80), unsigned=st.booleans(), reach=st.sampled_from([4.0, 0.5]))
def test_integer_kernels_stay_within(seed, terms, unsigned, reach):
    layer = int8_layer(seed, terms=terms, unsigned=unsigned, reach=reach)
    levels = random_levels(seed, layer, 8, terms, layer.x_point)
    output = int8_reference(layer.unit, dequantized(levels, layer.x_step), {}, INTEGERS)
    for y in (integer_kernel(layer, levels), worst_on_grid(layer, worst_kernel(layer, levels, None, seed), seed)):
        assert (np.abs(y - output.clamped) <= output.allowed).all()
        assert (np.abs(y - output.nearest) <= output.moved).all()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, terms=st.integers(1, 80), unsigned=st.booleans())
def test_any_order_of_summation_in_fp32_stays_within(seed, terms, unsigned):
    layer = int8_layer(seed, terms=terms, unsigned=unsigned)
    x = dequantized(random_levels(seed, layer, 8, terms, layer.x_point), layer.x_step)
    y = float_kernel(layer, x, np.random.default_rng(seed).permutation(terms))
    output = int8_reference(layer.unit, x, {}, FLOATS)
    assert (np.abs(y - output.clamped) <= output.allowed).all()
    assert (np.abs(y - output.nearest) <= output.moved).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    tail=st.sampled_from(
        [("Relu",), ("Add",), ("Add", "Relu"), ("Clip",), ("LeakyRelu",), ("LeakyRelu", "Add"), ("Relu", "Add")]
    ),
)
def test_what_is_fused_behind_the_layer_stays_within(seed, tail):
    layer = int8_layer(seed, tail=tail)
    levels = random_levels(seed, layer, 8, 24, 0)
    others = {"r.dq": dequantized(random_levels(seed + 1, layer, 8, 6, 0), layer.y_step)} if "Add" in tail else {}
    assert layer.unit.others == tuple(others)
    output = int8_reference(layer.unit, dequantized(levels, layer.x_step), others, INTEGERS)
    value = worst_kernel(layer, levels, None, seed)
    signs = np.random.default_rng(seed + 2).choice([-1, 1], value.shape) * 2.0**-24
    for op in tail:
        if op == "Add":
            value = (value + others["r.dq"].astype(np.float64) * (1 + signs)) * (1 - signs)
        elif op == "LeakyRelu":
            value = np.where(value < 0, 1.5 * value * (1 + signs), value)
        else:
            value = np.clip(value, 0 if op == "Relu" else -20 * layer.y_step, None if op == "Relu" else 20 * layer.y_step)
    y = worst_on_grid(layer, value, seed)
    assert (np.abs(y - output.clamped) <= output.allowed).all()
    assert (np.abs(y - output.nearest) <= output.moved).all()


def test_the_bound_is_nearly_reached():
    layer = int8_layer(0, terms=64)
    levels = random_levels(0, layer, 500, 64, 0)
    output = int8_reference(layer.unit, dequantized(levels, layer.x_step), {}, INTEGERS)
    y = integer_kernel(layer, levels)
    # half a step and the error, of which the bias is nearly all: about 1/1000 of a step; some of 3,000 outputs are that close
    assert 0.99 < (np.abs(y - output.clamped) / output.allowed).max() <= 1
    # all but those in the middle between two levels can only be the nearest one
    assert (output.moved > 0.5 * layer.y_step).mean() < 0.01


@pytest.mark.parametrize(
    "fault",
    [
        lambda layer, levels: integer_kernel(layer, levels + 1),
        lambda layer, levels: on_grid(layer, integer_sums(layer, levels) * (layer.x_step * layer.steps * 1.01) / layer.y_step),
        lambda layer, levels: on_grid(
            layer, (levels @ layer.levels.T.astype(np.int64)) * (layer.x_step * layer.steps) / layer.y_step
        ),
        lambda layer, levels: integer_kernel(layer, levels) + layer.y_step,
        lambda layer, levels: (
            np.floor(integer_sums(layer, levels) * (layer.x_step * layer.steps).astype(np.float64) / layer.y_step)
            * layer.y_step
        ),
    ],
    ids=["input zero point", "scale of one percent more", "bias left out", "output zero point", "rounding down"],
)
def test_planted_faults_leave_the_bound(fault):
    layer = int8_layer(1)
    levels = np.clip(random_levels(1, layer, 64, 24, 0), -126, 126)
    output = int8_reference(layer.unit, dequantized(levels, layer.x_step), {}, FLOATS)
    assert (np.abs(integer_kernel(layer, levels) - output.clamped) <= output.allowed).all()
    assert (np.abs(fault(layer, levels) - output.clamped) > output.allowed).any()


def test_what_is_clamped_is_known():
    layer = int8_layer(2, reach=0.5)
    levels = random_levels(2, layer, 50, 24, 0)
    output = int8_reference(layer.unit, dequantized(levels, layer.x_step), {}, INTEGERS)
    y = integer_kernel(layer, levels)
    outside = np.abs(output.exact) > 127.5 * layer.y_step
    assert outside.any() and not outside.all()
    # outside the range the deviation from the real number is |z| - 127 s on the positive side, inside half a step
    assert np.abs(y - output.exact)[output.exact > 127.5 * layer.y_step] == pytest.approx(
        (output.exact - 127 * np.float64(layer.y_step))[output.exact > 127.5 * layer.y_step], rel=1e-5
    )
    assert (np.abs(y - output.exact)[~outside] <= 0.51 * layer.y_step).all()


def test_outputs_in_floating_point_have_no_grid():
    layer = int8_layer(3, quantized=False)
    levels = random_levels(3, layer, 20, 24, 0)
    output = int8_reference(layer.unit, dequantized(levels, layer.x_step), {}, INTEGERS)
    assert (layer.unit.output, layer.unit.grid) == ("layer.out", None)
    error = np.abs(worst_kernel(layer, levels, None, 3) - output.exact)
    assert (error <= output.allowed).all()
    on_integers = integer_sums(layer, levels) * (layer.x_step * layer.steps).astype(np.float64)
    # the biases on their grid: up to half of its step, which the bound consists of mostly
    assert 0.3 < (np.abs(on_integers - output.exact) / output.allowed).max() <= 1


def test_an_exact_kernel_has_no_error():
    layer = int8_layer(4, tail=("Relu",))
    x = dequantized(random_levels(4, layer, 5, 24, 0), layer.x_step)
    exact, bounded = exact_output(layer.unit, x, {}), int8_reference(layer.unit, x, {}, INTEGERS)
    assert not exact.error.any()
    np.testing.assert_array_equal(exact.exact, bounded.exact)


def test_sums_that_leave_int32():
    # 127 * 128 * n: 133,144 terms are the most that never reach 2^31, with 127 for both factors
    layer = int8_layer(5, terms=24)
    assert overflow(layer.unit) is None
    wide = 300_000
    graph = layer.graph
    constants = {**graph.constants, "w": np.full((6, wide), 127, np.int8)}
    changed = type(graph)(**{**{name: getattr(graph, name) for name in graph.__dataclass_fields__}, "constants": constants})
    (large,) = weighted_layers(changed)
    reason = overflow(unit_of(changed, large))
    assert reason is not None and "more than INT32 holds" in reason


@pytest.mark.parametrize(
    ("tail", "attributes", "expected"),
    [
        (("Sigmoid",), {}, "behind it stands Sigmoid"),
        (("Relu", "Tanh"), {}, "behind it stands Tanh"),
        ((), {"alpha": 2.0}, "alpha and beta are not 1"),
        (("Relu",), {}, None),
    ],
)
def test_what_is_not_covered_is_named(tail, attributes, expected):
    obstacle = int8_layer(6, tail=tail, **attributes).unit.obstacle
    assert obstacle is None if expected is None else obstacle is not None and expected in obstacle


def test_slopes_above_one_count():
    assert tail_slope(int8_layer(7, tail=("LeakyRelu",)).unit) == 1.5
    assert tail_slope(int8_layer(7, tail=("Relu", "Add")).unit) == 1.0


def test_a_grid():
    grid = Grid(step=0.5, zero_point=3, low=0, high=10)
    assert grid.nearest(np.array([0.25, 0.75, -7.0, 9.0])).tolist() == [0.0, 1.0, -1.5, 3.5]
    assert grid.clamp(np.array([0.3, -7.0, 9.0])).tolist() == [0.3, -1.5, 3.5]
    assert grid.reach == 3.5


@pytest.mark.parametrize("name", ["layer.out", "r.dq"])
def test_an_addition_that_broadcasts_is_not_covered(name: str) -> None:
    """An element would be in the output many times, and count once in the bounds of mask and grids."""
    made = int8_layer(6, tail=("Add",))
    assert "Add" in [node.op for node in made.unit.tail]
    graph = replace(made.graph, shapes={**made.graph.shapes, name: (None, 1)})
    unit = unit_of(graph, made.unit.layer)
    assert (unit.tail, unit.grid, unit.output) == ((), None, "layer.out")
    assert unit.obstacle == "behind it stands Add, whose rounding in an INT8 kernel the bound does not cover"
