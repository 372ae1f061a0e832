"""Norms: never below the operator written out as a matrix, and those that the certify stage computes in another way."""

import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest

from masksparse_deploy.certify.operator_norm import convolution_norm as other_norm
from masksparse_deploy.certify.operator_norm import matrix_norm as other_matrix_norm
from masksparse_deploy.checker.norms import Geometry, convolution_norm, matrix_norm
from masksparse_deploy.checker.operators import apply

Array = np.ndarray[Any, Any]


def random_case(generator: np.random.Generator, axes: int, longest: int) -> tuple[Array, Geometry]:
    groups = int(generator.choice([1, 1, 2]))
    channels = groups * int(generator.integers(1, 4)), int(generator.integers(1, 4))
    taps = generator.integers(1, 4, axes)
    strides, dilations = (tuple(int(n) for n in generator.integers(1, 4, axes)) for _ in range(2))
    shortest = int(((taps - 1) * dilations).max()) + 1
    padded = tuple(int(n) for n in generator.integers(shortest, shortest + longest, axes))
    grid = int(generator.choice([4, 8]))
    geometry = Geometry(strides=strides, dilations=dilations, padded=padded, groups=groups, grid=grid)
    return generator.standard_normal((*channels, *taps)), geometry


def written_out(kernel: Array, geometry: Geometry) -> float:
    """The norm of the convolution on its padded input, which every bound is a bound of."""
    shape = (geometry.groups * kernel.shape[1], *geometry.padded)
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=geometry.strides, dilations=geometry.dilations, group=geometry.groups
    )
    units = np.eye(math.prod(shape)).reshape(-1, *shape)
    outputs = apply(node, [units, kernel], opset=20)
    return float(np.linalg.norm(outputs.reshape(len(units), -1), 2))


@pytest.mark.parametrize(("axes", "longest", "count"), [(1, 12, 60), (2, 5, 60), (3, 2, 12)])
def test_a_norm_is_never_below_the_operator_written_out(axes: int, longest: int, count: int) -> None:
    generator = np.random.default_rng(axes)
    for _ in range(count):
        kernel, geometry = random_case(generator, axes, longest)
        norm = convolution_norm(kernel, geometry)
        exact = written_out(kernel, geometry)
        assert norm.value >= exact * (1 - 1e-12), geometry  # both are singular values in float64
        without_padding = Geometry(**{**vars(geometry), "padded": (10**4,) * axes})
        assert convolution_norm(kernel, without_padding).value >= exact * (1 - 1e-12), geometry


@pytest.mark.parametrize(("axes", "longest"), [(1, 40), (2, 20), (3, 3)])
def test_two_computations_of_the_documented_bound_agree_within_the_documented_slack(axes: int, longest: int) -> None:
    generator = np.random.default_rng(axes + 10)
    methods = set()
    for _ in range(60):
        kernel, geometry = random_case(generator, axes, longest)
        own = convolution_norm(kernel, geometry)
        other = other_norm(
            kernel,
            strides=geometry.strides,
            dilations=geometry.dilations,
            groups=geometry.groups,
            padded_size=geometry.padded,
            grid=geometry.grid,
        )
        assert own.value <= other.value <= own.value * (1 + own.slack), geometry
        assert other.method in own.methods, (own, other)
        methods |= own.methods
    assert {"grid", "padded grid", "matrix"} <= methods or axes == 3


def test_a_matrix_has_its_largest_singular_value() -> None:
    matrix = np.random.default_rng(0).standard_normal((7, 4))
    own, other = matrix_norm(matrix), other_matrix_norm(matrix)
    assert own.value == pytest.approx(math.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-1]), rel=1e-12)
    assert own.value <= other.value <= own.value * (1 + own.slack)


def test_a_kernel_of_zeros_has_none() -> None:
    geometry = Geometry(strides=(1, 1), dilations=(1, 1), padded=(5, 5), groups=1, grid=8)
    assert convolution_norm(np.zeros((2, 2, 3, 3)), geometry).value == 0


def test_the_grid_of_the_unpadded_size_is_below_the_operator_sometimes() -> None:
    """The known false bound: it would verify bounds that do not hold, so the test of the norms must be able to see it."""
    generator = np.random.default_rng(0)
    below = 0
    for _ in range(200):
        kernel = generator.standard_normal((1, 1, 3, 3))
        circular = max(
            abs(sum(kernel[0, 0, r, s] * np.exp(2j * np.pi * (r * u + s * v) / 4) for r in range(3) for s in range(3)))
            for u, v in itertools.product(range(4), repeat=2)
        )
        geometry = Geometry(strides=(1, 1), dilations=(1, 1), padded=(6, 6), groups=1, grid=8)
        below += circular < written_out_with_padding(kernel)
        assert convolution_norm(kernel, geometry).value >= written_out_with_padding(kernel) * (1 - 1e-12)
    assert below > 0


def written_out_with_padding(kernel: Array) -> float:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    outputs = apply(node, [np.eye(16).reshape(-1, 1, 4, 4), kernel], opset=20)
    return float(np.linalg.norm(outputs.reshape(16, -1), 2))
