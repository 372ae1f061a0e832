"""What a GPU's state tells about a timing run; each function returns a sentence with the figures, or None."""

from masksparse_deploy.core.artifacts.gpu_state import GpuReading, GpuState

__all__ = ["check_shared", "check_throttled"]

# Reasons for low clocks that come and go with load and heat; the others are settings, the same for every engine.
_THROTTLES = ("power cap", "hardware slowdown", "heat (software)", "heat (hardware)", "power brake", "board limit")


def check_throttled(state: GpuState) -> str | None:
    """The GPU lowered its clocks: the faster engine may have been slowed more."""
    hit = [reading for reading in state.readings if _throttles(reading)]
    if not hit:
        return None
    reasons = sorted({reason for reading in hit for reason in _throttles(reading)})
    clocks = [reading.sm_clock_mhz for reading in state.under_load if reading.sm_clock_mhz is not None]
    between = f"; clocks between {min(clocks)} and {max(clocks)} MHz" if clocks else ""
    highest = f" of at most {state.highest_sm_clock_mhz}" if clocks and state.highest_sm_clock_mhz is not None else ""
    return (
        f"the GPU throttled in {len(hit)} of {len(state.readings)} readings ({', '.join(reasons)}{between}{highest}): cool it, "
        "or fix lower clocks that it can hold (nvidia-smi --lock-gpu-clocks), and run again"
    )


def check_shared(state: GpuState) -> str | None:
    """Other processes computed, or may have, on the same GPU."""
    counts = [reading.other_process_count or 0 for reading in state.readings]
    if not any(counts):
        return None
    return (
        f"up to {max(counts)} other compute processes were on the GPU, seen in {sum(map(bool, counts))} of {len(counts)} "
        "readings: stop them, or take another GPU (CUDA_VISIBLE_DEVICES), and run again"
    )


def _throttles(reading: GpuReading) -> tuple[str, ...]:
    return tuple(reason for reason in reading.clock_limits or () if reason in _THROTTLES)
