import numpy as np
import pytest

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.timing import Speedup
from masksparse_deploy.profiling.conditions import (
    check_clock,
    check_control,
    check_drift,
    check_independence,
    check_round_count,
    check_same_arithmetic,
    machine_details,
)


def control(low: float, high: float) -> Speedup:
    return Speedup(ratio=(low + high) / 2, interval=Interval(low=low, high=high, confidence=0.95))


@pytest.mark.parametrize(("low", "high"), [(0.95, 1.05), (1.01, 1.05), (1.02, 1.05), (0.9, 0.98), (0.93, 1.06)])
def test_a_control_near_one_is_accepted(low: float, high: float) -> None:
    assert check_control(control(low, high)) is None


@pytest.mark.parametrize(("low", "high"), [(1.021, 1.05), (0.9, 0.979)])
def test_a_biased_control_is_reported_with_its_figures(low: float, high: float) -> None:
    message = check_control(control(low, high))
    assert message is not None
    assert f"[{low:.3f}, {high:.3f}]" in message


@pytest.mark.parametrize(("low", "high"), [(0.986, 1.235), (0.9, 1.04)])
def test_a_control_too_wide_to_tell_anything_is_reported(low: float, high: float) -> None:
    message = check_control(control(low, high))
    assert message is not None
    assert "cannot tell engines apart" in message


def test_engines_that_do_the_same_must_take_the_same_time() -> None:
    assert check_same_arithmetic(control(0.98, 1.03)) is None
    message = check_same_arithmetic(control(1.46, 2.72))
    assert message is not None
    assert "no layer runs a sparse kernel" in message
    assert "[1.460, 2.720]" in message


def test_drift_between_the_halves() -> None:
    steady, slower = np.full((10, 3), 2.0), np.full((10, 3), 2.5)
    assert check_drift(np.concatenate([steady, steady])) is None
    message = check_drift(np.concatenate([steady, slower]))
    assert message is not None
    assert "from 2 ms" in message
    assert "to 2.5 ms" in message
    assert check_drift(np.concatenate([slower, steady])) is None  # 20 % exactly
    assert check_drift(np.concatenate([slower, steady]), limit=0.19) is not None


def test_a_coarse_clock() -> None:
    assert check_clock(0.01, 1.0) is None
    message = check_clock(1.0, 3.0)
    assert message is not None
    assert "steps of 1 ms" in message


def test_too_few_rounds() -> None:
    # 1 - 2^(1 - 6) = 0.969, 1 - 2^(1 - 5) = 0.9375
    assert check_round_count(6, 0.95) is None
    message = check_round_count(5, 0.95)
    assert message is not None
    assert "at least 6" in message


def test_dependent_rounds() -> None:
    assert check_independence(np.random.default_rng(0).standard_normal(100)) is None
    message = check_independence(np.arange(100.0))
    assert message is not None
    assert "correlated" in message


def test_machine_details_are_text() -> None:
    assert all(isinstance(value, str) and value for value in machine_details().values())
