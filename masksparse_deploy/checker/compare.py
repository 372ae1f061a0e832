"""Comparing what a certificate says with what the checker found, and how much two correct computations may differ."""

import math
from typing import Any

from masksparse_deploy.checker.findings import Finding, verdict

__all__ = ["above", "between", "equal"]

# Both sides compute in float64; sums of up to 10^5 terms are off by less than this.
_ROUNDING = 1e-10


def equal(subject: str, what: str, recorded: Any, found: Any, *, rounding: float = _ROUNDING) -> Finding:
    """Text and counts must be the same, numbers but for their rounding."""
    if isinstance(recorded, float) and isinstance(found, float):
        same = math.isclose(recorded, found, rel_tol=rounding, abs_tol=0.0)
    else:
        same = recorded == found
    return Finding(subject=subject, what=what, status=verdict(same), recorded=recorded, found=found)


def above(subject: str, what: str, recorded: float, found: float, *, slack: float) -> Finding:
    """A bound must not be below what the checker found, nor further above than the documented slack."""
    reason, ok = "", found <= recorded <= found * (1 + slack)
    if recorded < found:
        reason = "below what can be proved here"
    elif not ok:
        reason = "true, but not the figure that the documented method gives"
    return Finding(subject=subject, what=what, status=verdict(ok), recorded=recorded, found=found, reason=reason)


def between(printed: float, value: float, *, slack: float, digits: int) -> bool:
    """Whether a number printed with so many digits may be `value`, or up to (1 + slack) times as much."""
    low, high = (float(f"{value * factor:.{digits}g}") for factor in (1 - _ROUNDING - slack, 1 + _ROUNDING + slack))
    return low <= printed <= high
