"""Numbers as people read them."""

from masksparse_deploy.core.artifacts.document import Interval

__all__ = ["MINUS", "NOTHING", "TIMES", "along", "count", "figures", "interval", "milliseconds", "percent", "signed", "times"]

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
# Stands where there is no figure.
NOTHING = "\N{EN DASH}"

_LARGE, _SMALL = 1e5, 1e-3
# From here on three significant digits leave none behind the point.
_LARGE_MS = 99.95


def figures(value: float | None, digits: int = 3) -> str:
    """At most `digits` significant digits: 0.0123, 12.3, 1,230; very large and small ones by powers of ten."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if abs(value) >= _LARGE or abs(value) < _SMALL:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_minus(mantissa)} {TIMES} 10{_superscript(int(exponent))}"
    text = f"{float(f'{value:.{digits}g}'):,.10f}".rstrip("0").rstrip(".")
    return _minus(text)


def percent(share: float, digits: int = 1) -> str:
    """A share as "12.3 %"."""
    return f"{100 * share:.{digits}f} %"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, as "+0.12" or "0.00"."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else _minus(text)


def milliseconds(value: float) -> str:
    """A time with three significant digits, in milliseconds."""
    return f"{value:#.3g} ms" if value < _LARGE_MS else f"{value:,.0f} ms"


def times(value: float) -> str:
    """A ratio with a multiplication sign, two digits behind the point where it is small."""
    return f"{value:.2f}{TIMES}" if value < 100 else f"{figures(value)}{TIMES}"


def count(value: int) -> str:
    """An integer with thousands separators."""
    return f"{value:,}"


def along(pattern: str) -> str:
    """A pattern and where it runs, as "2:4 along the input channels"."""
    if pattern.startswith("1x"):
        size = pattern[2:].partition("@")[0].partition("~")[0]
        return f"{pattern} in blocks of {size} output channels"
    outputs = " and along the output channels" if pattern.startswith("T") else ""
    return f"{pattern} along the input channels{outputs}"


def interval(value: Interval, digits: int = 2, scale: float = 1.0) -> str:
    """The two ends, as "0.99 to 1.02", after multiplying by `scale`."""
    low, high = (f"{scale * end:.{digits}f}" for end in (value.low, value.high))
    return f"{_minus(low)} to {_minus(high)}"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


def _superscript(value: int) -> str:
    return str(value).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
