import gc
from collections.abc import Callable

import numpy as np
import pytest

from masksparse_deploy.core.config import ProfileOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.profiling.sampling import clock_step_ms, sample_rounds
from tests.profiling.machines import READING_S, FakeClock


def recorded_order(options: ProfileOptions) -> list[str]:
    """The order in which three engines are run, warm-up included."""
    calls: list[str] = []

    def engine(name: str) -> Callable[[], None]:
        return lambda: calls.append(name)

    sample_rounds({name: engine(name) for name in "abc"}, options, clock=FakeClock())
    return calls


def test_every_round_runs_every_engine_in_an_order_of_its_own() -> None:
    options = ProfileOptions(rounds=200, inferences_per_round=2, warmup=3, seed=7)
    calls = recorded_order(options)
    assert calls[:9] == [*"aaabbbccc"]
    rounds = np.array(calls[9:]).reshape(200, 3, 2)
    assert (rounds[..., 0] == rounds[..., 1]).all()
    orders = ["".join(row) for row in rounds[..., 0]]
    assert {"".join(sorted(order)) for order in orders} == {"abc"}
    counts = np.array([orders.count(order) for order in sorted(set(orders))])
    # six orders, 200 rounds: 33 each, standard deviation 5.3; five deviations
    assert len(counts) == 6
    assert (np.abs(counts - 200 / 6) < 27).all()
    assert recorded_order(options) == calls
    assert recorded_order(options.model_copy(update={"seed": 8})) != calls


def test_times_are_milliseconds_without_the_warm_up() -> None:
    clock = FakeClock()
    runs = 0

    def infer() -> None:
        nonlocal runs
        runs += 1
        clock.now_s += 5.0 if runs <= 4 else 0.002  # the first four are slow, as after loading

    options = ProfileOptions(rounds=10, inferences_per_round=3, warmup=4)
    times = sample_rounds({"only": infer}, options, clock=clock)["only"]
    assert times.shape == (10, 3)
    # one reading of the clock belongs to each time
    np.testing.assert_allclose(times, 2.0 + 1000 * READING_S, rtol=1e-9)
    assert runs == 34


def test_without_warm_up_the_slow_start_would_be_seen() -> None:
    clock = FakeClock()
    runs = 0

    def infer() -> None:
        nonlocal runs
        runs += 1
        clock.now_s += 5.0 if runs <= 4 else 0.002

    options = ProfileOptions(rounds=10, inferences_per_round=3, warmup=1)
    assert sample_rounds({"only": infer}, options, clock=clock)["only"].max() > 4000


def test_the_garbage_collector_rests_and_returns() -> None:
    seen: list[bool] = []
    options = ProfileOptions(rounds=10, inferences_per_round=1, warmup=1)
    sample_rounds({"only": lambda: seen.append(gc.isenabled())}, options, clock=FakeClock())
    assert not any(seen[1:])
    assert gc.isenabled()

    def breaks() -> None:
        if not gc.isenabled():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_rounds({"only": breaks}, options, clock=FakeClock())
    assert gc.isenabled()


def test_progress_counts_rounds() -> None:
    calls: list[tuple[str, int, int]] = []
    options = ProfileOptions(rounds=10, inferences_per_round=1, warmup=1)
    sample_rounds({"only": lambda: None}, options, clock=FakeClock(), progress=lambda *call: calls.append(call))
    assert calls == [("profile", done, 10) for done in range(11)]


def test_the_step_of_a_clock_is_found() -> None:
    assert clock_step_ms(FakeClock()) == pytest.approx(1000 * READING_S)
    assert clock_step_ms(FakeClock(step_s=1e-3)) == pytest.approx(1.0)
    with pytest.raises(MachineError, match="stood still"):
        clock_step_ms(lambda: 1.0)
