"""What a forecast concludes, in words."""

from masksparse_deploy.core.artifacts.timing import Speedup

__all__ = ["FP32_ONLY", "NO_SPARSE_KERNELS", "judge"]

NO_SPARSE_KERNELS = (
    "this runtime has no 2:4 kernels and multiplies zeros like other weights: 1.00x; 1xN blocks and masked positions can be "
    "faster in it ('masksparse rewrite' measures that)"
)
FP32_ONLY = (
    "no layer computes in FP16 or INT8, and FP32 has no sparse kernels: 1.00x; give --precision fp16 or int8 to forecast the "
    "network in that precision"
)


def judge(estimate: Speedup | None, trial: Speedup | None, threshold: float) -> tuple[bool, str]:
    """Whether the threshold may be reached, and why: by the trial where there is one, as it is measured, else by the estimate.

    What the interval does not exclude is worth a look: only an upper end below the threshold is a no.
    """
    decisive = trial or estimate
    if decisive is None:
        return True, "the layers' gains add up to more than the network takes, so that they tell nothing: run it with a trial"
    what = "the network with half of its weights cut was timed at" if trial else "the network is estimated at"
    interval = decisive.interval
    found = f"{what} {decisive.ratio:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"
    if interval.high < threshold:
        return False, f"don't bother: {found}, below the threshold of {threshold:.2f}x"
    if interval.low >= threshold:
        return True, f"worth it: {found}, and the threshold is {threshold:.2f}x"
    return True, f"it may be worth it: {found}, and the threshold of {threshold:.2f}x lies within"
