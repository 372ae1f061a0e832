"""How far one layer of the sparse engine is from the sparse and from the dense file, in parts: mask, rounding, INT8 grids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.certificate import LayerBound
from masksparse_deploy.validate.arithmetic import Arithmetic
from masksparse_deploy.validate.outputs import row_norms
from masksparse_deploy.validate.rounding import rounding_bound
from masksparse_deploy.validate.rounding_int8 import exact_output, int8_reference, tail_slope
from masksparse_deploy.validate.units import Unit

__all__ = ["Deviations", "deviations_of"]

Array = npt.NDArray[Any]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Deviations:
    """One layer on some samples.

    Attributes:
        rounding: |engine - sparse file in float64| for every output element; what an INT8 grid cannot reach is clamped first.
        allowed: its bound.
        deviation: ||engine - dense file|| for each sample, (count,).
        bounds: for "mask", "rounding" and "quantization" what adds up to the bound of `deviation`, each (count,).
        measured: the norms of these parts themselves, each (count,); their sum is `deviation` at least.
    """

    rounding: Values
    allowed: Values
    deviation: Values
    bounds: Mapping[str, Values]
    measured: Mapping[str, Values]


def deviations_of(
    dense: Unit, sparse: Unit, proved: LayerBound, tensors: Mapping[str, Array], arithmetic: Arithmetic
) -> Deviations:
    """Compare what the engine made of its own input with both files.

    With x the layer's input and y the output of the engine, z~ and z the real numbers that the sparse and the dense layer make
    of x (with what is fused with it, up to a QuantizeLinear), y' what the dense file gives for x:

        ||y - y'|| <= ||y - z~|| + ||z~ - z|| + ||z - y'||

    The second is at most difference_norm ||x|| + bias_difference sqrt(positions), what the certificate bounds of the mask. The
    first is rounding; in INT8 the levels of the output's grid that rounding may lead to, and how far the nearest number of
    the grid is from z~, which is known: half a step at most, and what is clamped. The third is 0 but in INT8, where the dense
    file has grids of its own: with x' and r' their numbers nearest to x and to what is added, at most dense_norm ||x' - x|| +
    ||r' - r||, and how far its output's grid is away. An activation that stretches distances counts by its slope.

    Args:
        dense: the unit in the dense file.
        sparse: the unit in the sparse file, the same operators.
        proved: the certificate's bounds of the layer.
        tensors: the engine's tensors by name, (count, ...).
        arithmetic: of the engine's kernel.
    """
    x, y = (tensors[name].astype(np.float64) for name in (sparse.input, sparse.output))
    mask = proved.difference_norm * row_norms(x) + proved.bias_difference * np.sqrt(proved.output_positions)
    if sparse.precision != "int8":
        allowed = rounding_bound(sparse.layer, x, arithmetic)
        # what stands behind a floating-point layer rounds nothing, and moves no two numbers apart
        exact, dense_exact = (exact_output(unit, x, {}).exact for unit in (sparse, dense))
        nothing = np.zeros(len(x))
        return Deviations(
            rounding=np.abs(y - exact),
            allowed=allowed,
            deviation=row_norms(y - dense_exact),
            bounds={"mask": mask, "rounding": row_norms(allowed), "quantization": nothing},
            measured={"mask": row_norms(exact - dense_exact), "rounding": row_norms(y - exact), "quantization": nothing},
        )
    others = {name: tensors[name].astype(np.float64) for name in sparse.others}
    output = int8_reference(sparse, x, others, arithmetic)
    # what the dense file makes of the same numbers: without any grid, and on its own ones
    plain = exact_output(dense, x, others)
    moved = {
        name: dense.grids[name].nearest(values) for name, values in {sparse.input: x, **others}.items() if name in dense.grids
    }
    file = exact_output(dense, moved.get(sparse.input, x), {**others, **moved})
    slope = tail_slope(dense)
    requantized = slope * proved.dense_norm * row_norms(moved.get(sparse.input, x) - x)
    for name, values in others.items():
        requantized = requantized + slope * row_norms(moved.get(name, values) - values)
    own_grid = row_norms(output.nearest - output.exact)
    return Deviations(
        rounding=np.abs(y - output.clamped),
        allowed=output.allowed,
        deviation=row_norms(y - file.nearest),
        bounds={
            "mask": slope * mask,
            "rounding": row_norms(output.moved),
            "quantization": own_grid + row_norms(file.nearest - file.exact) + requantized,
        },
        measured={
            "mask": row_norms(output.exact - plain.exact),
            "rounding": row_norms(y - output.nearest),
            "quantization": own_grid + row_norms(plain.exact - file.nearest),
        },
    )
