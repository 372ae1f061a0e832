"""Numbers as statements print them."""

import decimal

__all__ = ["rounded_up"]


def rounded_up(value: float) -> float:
    """`value` >= 0 rounded up to six digits, so that a statement that prints it claims no more than is proved."""
    return float(decimal.Context(prec=6, rounding=decimal.ROUND_CEILING).create_decimal(value))
