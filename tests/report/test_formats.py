import pytest

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.report.formats import MINUS, TIMES, figures, interval, milliseconds, percent, signed, times


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0"),
        (1.0, "1"),
        (0.01234, "0.0123"),
        (12.345, "12.3"),
        (1234.5, "1,230"),
        (-2.5, f"{MINUS}2.5"),
        (7.3e6, f"7.30 {TIMES} 10⁶"),
        (3.1e-7, f"3.10 {TIMES} 10⁻⁷"),
        (-3.1e-7, f"{MINUS}3.10 {TIMES} 10⁻⁷"),
    ],
)
def test_figures(value, text):
    assert figures(value) == text


def test_the_other_formats():
    assert percent(0.9949748, 2) == "99.50 %"
    assert (signed(0.5), signed(-0.1675), signed(-0.001)) == ("+0.50", f"{MINUS}0.17", "0.00")
    assert (milliseconds(2.0), milliseconds(0.0123), milliseconds(1234.5)) == ("2.00 ms", "0.0123 ms", "1,234 ms")
    assert (milliseconds(99.94), milliseconds(99.96)) == ("99.9 ms", "100 ms")
    assert (times(1.416), times(4e6)) == (f"1.42{TIMES}", f"4.00 {TIMES} 10⁶{TIMES}")
    assert interval(Interval(low=-0.012, high=0.5, confidence=0.95), 2, 100) == f"{MINUS}1.20 to 50.00"
