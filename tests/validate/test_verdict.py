import pytest

from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.validate.verdict import combine_verdicts, overall_verdict


def _check(verdict: str, decides: bool = True) -> Check:
    return Check(name="a", measured=None, bound=None, tolerance=None, unit="", verdict=verdict, detail="", decides=decides)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "inconclusive"),
        (["pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
    ],
)
def test_combine(verdicts, expected):
    assert combine_verdicts(verdicts) == expected
    assert overall_verdict(_check(verdict) for verdict in verdicts) == expected


def test_a_check_that_does_not_decide_can_only_fail():
    assert overall_verdict([_check("pass"), _check("inconclusive", decides=False)]) == "pass"
    assert overall_verdict([_check("pass"), _check("fail", decides=False)]) == "fail"
    assert overall_verdict([_check("pass", decides=False)]) == "inconclusive"
