"""Taking times: several engines in turn, in random order, on one clock."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.config import ProfileOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.progress import Progress, silent

__all__ = ["Clock", "Timer", "clock_step_ms", "sample_rounds", "sample_timers", "stopwatch"]

# Seconds from an arbitrary start, as time.perf_counter.
Clock = Callable[[], float]

# Runs one inference to its end and returns its time in milliseconds.
Timer = Callable[[], float]

_LONGEST_PROBE = 200_000
_STEPS_SEEN = 20
_MS_PER_S = 1000.0


def clock_step_ms(clock: Clock) -> float:
    """The smallest step that the clock makes between two readings, in milliseconds; looks at up to 20 steps.

    Raises:
        MachineError: the clock stood still over 200,000 readings.
    """
    steps: list[float] = []
    previous = clock()
    for _ in range(_LONGEST_PROBE):
        now = clock()
        if now > previous:
            steps.append(now - previous)
            previous = now
            if len(steps) == _STEPS_SEEN:
                break
    if not steps:
        raise MachineError(f"the clock stood still over {_LONGEST_PROBE:,} readings, so that no time can be measured with it")
    return _MS_PER_S * min(steps)


def stopwatch(infer: Callable[[], None], clock: Clock) -> Timer:
    """A timer of an inference that does not tell its time itself: the clock is read directly before and after."""

    def timed() -> float:
        start = clock()
        infer()
        return _MS_PER_S * (clock() - start)

    return timed


def sample_rounds(
    engines: Mapping[str, Callable[[], None]], options: ProfileOptions, *, clock: Clock, progress: Progress = silent
) -> dict[str, npt.NDArray[np.float64]]:
    """`sample_timers` of engines that are timed by one clock, in seconds."""
    return sample_timers({name: stopwatch(infer, clock) for name, infer in engines.items()}, options, progress=progress)


def sample_timers(
    timers: Mapping[str, Timer],
    options: ProfileOptions,
    *,
    between: Callable[[int], None] = lambda rounds_done: None,
    progress: Progress = silent,
) -> dict[str, npt.NDArray[np.float64]]:
    """Time every engine `inferences_per_round` times in each round.

    The engines' order within a round is drawn anew for every round, so that neither slow changes of the machine nor what
    one engine leaves behind in the caches favours one of them. Before the first round each runs `warmup` times untimed.

    Args:
        timers: name -> a function that runs one inference to its end and tells its time.
        options: rounds, inferences a round, warm-up runs and the seed of the order.
        between: called after each round with the number of rounds done, while nothing is timed.
        progress: told after each round.

    Returns:
        For each engine its times, float64 (rounds, inferences_per_round), milliseconds, in the order they were taken.
    """
    order = np.random.default_rng(options.seed)
    names = list(timers)
    times = {name: np.zeros((options.rounds, options.inferences_per_round)) for name in names}
    for name in names:
        for _ in range(options.warmup):
            timers[name]()
    progress("profile", 0, options.rounds)
    with _collector_paused():
        for number in range(options.rounds):
            for index in order.permutation(len(names)):
                name = names[index]
                timer, row = timers[name], times[name][number]
                for position in range(options.inferences_per_round):
                    row[position] = timer()
            between(number + 1)
            progress("profile", number + 1, options.rounds)
    return times


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from running within a timed inference."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
