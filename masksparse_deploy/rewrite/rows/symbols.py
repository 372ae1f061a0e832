"""What a row stands for, as a number: equal numbers are equal functions of the network's images.

A row is a vector of channels at one position. It is a position of a tensor that is there as images, a known constant, a sum of
other rows times slices of weights plus a constant, or what an elementwise operator makes of rows. Each is entered once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.files import sha256_bytes

__all__ = ["Symbols"]

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

# Half an ulp of a float32, and what float64 sums of a kernel's products are off by at most, relative to their magnitudes: up to
# 2^14 terms, each of two roundings of 2^-53, and the sum of the rounded ones.
_FLOAT32_ROUNDING = 2.0**-24
_FLOAT64_ROUNDING = 2.0**-38


class Symbols:
    """The rows that are known so far."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._constants: dict[int, tuple[Floats, Floats]] = {}
        self._slices: dict[str, int] = {}
        self._slice_values: list[Floats] = []
        # products of constant rows and slices, and sums of constants: computed once
        self._products: dict[tuple[int, int], int] = {}
        self._totals: dict[tuple[int, ...], int] = {}
        # constants that a sum with these products was entered with
        self._entered: dict[tuple[tuple[int, int], ...], list[int]] = {}
        # row -> its products and its constant
        self._sums: dict[int, tuple[tuple[tuple[int, int], ...], int]] = {}

    def _number(self, key: tuple[Any, ...]) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def pixels(self, tensor: str, count: int) -> Ids:
        """The positions of a tensor that is there as images, in memory order."""
        return np.array([self._number(("pixel", tensor, index)) for index in range(count)], dtype=np.int64)

    def constant(self, values: npt.NDArray[Any], slack: Floats | None = None) -> int:
        """A constant vector, known to within `slack`; stored float32 values are exactly what they are."""
        return self._sum_of((), self._enter(values, slack))

    def constant_value(self, row: int) -> tuple[Floats, Floats] | None:
        """The values of a row that is a constant, and how far they may be off; None for any other."""
        terms, number = self._sums.get(row, (None, -1))
        return self._constants[number] if terms == () else None

    def weight_slice(self, weight: npt.NDArray[Any]) -> int:
        """A slice of weights (in_channels, out_channels), the same for the same bits."""
        weight = np.ascontiguousarray(weight)
        digest = sha256_bytes(f"{weight.dtype}{weight.shape}".encode() + weight.tobytes())
        if digest not in self._slices:
            self._slices[digest] = len(self._slice_values)
            self._slice_values.append(weight.astype(np.float64))
        return self._slices[digest]

    def products(self, rows: Sequence[int], slices: Sequence[int], bias: int) -> int:
        """The sum of rows times slices of weights, and a constant row; rows that are constants become part of the constant."""
        terms: list[tuple[int, int]] = []
        constants = [self._sums[bias][1]]
        for row, piece in zip(rows, slices, strict=True):
            value = self.constant_value(row)
            if value is None:
                terms.append((row, piece))
            elif value[0].any() or value[1].any():
                constants.append(self._product(self._sums[row][1], piece))
        return self._sum_of(tuple(sorted(terms)), self._total(tuple(sorted(constants))))

    def total(self, rows: Sequence[int]) -> int:
        """The sum of rows; sums among them are taken together, so that it does not matter in which parts they came."""
        if not all(row in self._sums for row in rows):
            return self._number(("Add", *sorted(rows)))
        terms = [term for row in rows for term in self._sums[row][0]]
        return self._sum_of(tuple(sorted(terms)), self._total(tuple(sorted(self._sums[row][1] for row in rows))))

    def applied(self, operator: str, rows: Sequence[int]) -> int:
        """What an elementwise operator, told by a text that says all about it, makes of rows."""
        return self._number((operator, *rows))

    def _enter(self, values: npt.NDArray[Any], slack: Floats | None) -> int:
        exact = np.asarray(values, dtype=np.float64)
        slack = np.zeros_like(exact) if slack is None else slack
        number = self._number(("constant", sha256_bytes(exact.tobytes() + slack.tobytes())))
        self._constants.setdefault(number, (exact, slack))
        return number

    def _product(self, constant: int, piece: int) -> int:
        key = constant, piece
        if key not in self._products:
            (values, slack), weight = self._constants[constant], self._slice_values[piece]
            off = slack @ np.abs(weight) + _FLOAT64_ROUNDING * (np.abs(values) @ np.abs(weight))
            self._products[key] = self._enter(values @ weight, off)
        return self._products[key]

    def _total(self, constants: tuple[int, ...]) -> int:
        """The sum of constants. The file may hold any partial sum of them rounded to float32; zeros round nothing."""
        others = tuple(one for one in constants if any(part.any() for part in self._constants[one])) or constants[:1]
        if len(constants) == 1 or (len(others) == 1 and not self._constants[others[0]][1].any()):
            return others[0]
        if constants not in self._totals:
            values = [self._constants[constant][0] for constant in constants]
            slack = sum(self._constants[constant][1] for constant in constants)
            slack = slack + _FLOAT32_ROUNDING * np.sum(np.abs(values), axis=0)
            self._totals[constants] = self._enter(np.sum(values, axis=0), slack)
        return self._totals[constants]

    def _sum_of(self, terms: tuple[tuple[int, int], ...], constant: int) -> int:
        """The number of a sum: that of an earlier one with the same products and a constant that may be the same."""
        entered = self._entered.setdefault(terms, [])
        for other in entered:
            if self._agree(constant, other):
                return self._numbers[("sum", terms, other)]
        entered.append(constant)
        row = self._number(("sum", terms, constant))
        self._sums[row] = terms, constant
        return row

    def _agree(self, one: int, other: int) -> bool:
        if one == other:
            return True
        (first, first_slack), (second, second_slack) = self._constants[one], self._constants[other]
        return first.shape == second.shape and bool((np.abs(first - second) <= first_slack + second_slack).all())
