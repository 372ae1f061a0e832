"""The chosen tolerances of comparisons with references, by precision."""

import numpy as np
import pytest

from masksparse_deploy.validate.outputs import check_outputs, probe_tolerance, reference_tolerance

REFERENCE = np.random.default_rng(0).standard_normal((20, 10))


@pytest.mark.parametrize(
    ("precision", "accepted", "refused"),
    [
        ("fp32", 1e-5, 2e-5),
        ("fp16", 5e-3, 1e-2),
        ("bf16", 0.05, 0.1),
        ("int8", 0.05, 0.1),
        # the coarsest of several counts, and what is not known is held to FP32
        ("fp16+fp32", 5e-3, 1e-2),
        ("fp32+int8", 0.05, 0.1),
        ("fp4", 1e-5, 2e-5),
    ],
)
def test_deviations_beyond_the_tolerance_of_their_precision_fail(precision: str, accepted: float, refused: float) -> None:
    tolerance = reference_tolerance(precision)
    # one sample off by a share of the root mean square of all norms, which is what is measured
    scale = np.sqrt(np.mean(np.linalg.norm(REFERENCE, axis=1) ** 2))
    for share, verdict in ((accepted, "pass"), (refused, "fail")):
        outputs = REFERENCE.copy()
        outputs[7, 3] += share * scale
        check = check_outputs("engine", outputs, REFERENCE, against="the file", tolerance=tolerance)
        assert (check.verdict, check.measured) == (verdict, pytest.approx(share))
        assert check.bound is None and "not a bound" in check.detail
    assert probe_tolerance(precision) == 2 * tolerance


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_values_that_are_not_finite_fail_at_any_tolerance(fault: float) -> None:
    outputs = REFERENCE.copy()
    outputs[0, 0] = fault
    check = check_outputs("engine", outputs, REFERENCE, against="the file", tolerance=reference_tolerance("int8"))
    assert check.verdict == "fail" and check.measured is None
