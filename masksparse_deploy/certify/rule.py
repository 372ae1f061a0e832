"""What a rule of the recursion says about one operator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt

__all__ = ["NoRuleError", "Rule"]

_Number = TypeVar("_Number", float, npt.NDArray[Any])


class NoRuleError(Exception):
    """There is no proved constant for an operator as it is used; the text names it, for the certificate."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """||f(x) - f(y)|| <= the sum, or for a concatenation the root of the sum of squares, of factors[i] ||x_i - y_i||.

    Attributes:
        factors: one for each variable input in order, a number or float64 (count,). Inputs that are constants don't count.
        is_concatenation: whether squares are summed.
        jump: added where a distance is above 0: the height of a step of f, in l2 over a whole sample.
    """

    factors: tuple[Any, ...]
    is_concatenation: bool = False
    jump: float = 0.0

    def combine(self, distances: Sequence[_Number]) -> _Number:
        """The bound of the output's distance, from the bounds of the variable inputs' distances."""
        terms: list[_Number] = [factor * distance for factor, distance in zip(self.factors, distances, strict=True)]
        total: _Number = terms[0] ** 2 if self.is_concatenation else terms[0]
        for term in terms[1:]:
            total = total + (term**2 if self.is_concatenation else term)
        if self.is_concatenation:
            total = total**0.5
        for distance in distances if self.jump else ():
            total = total + self.jump * (distance > 0)
        return total
