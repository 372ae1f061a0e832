"""From checks to one verdict."""

from collections.abc import Iterable

from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.validation import Check

__all__ = ["combine_verdicts", "overall_verdict"]


def combine_verdicts(verdicts: Iterable[Verdict]) -> Verdict:
    """`fail` if any failed; `pass` only if there is at least one and all passed; otherwise `inconclusive`."""
    found = set(verdicts)
    if "fail" in found:
        return "fail"
    return "pass" if found == {"pass"} else "inconclusive"


def overall_verdict(checks: Iterable[Check]) -> Verdict:
    """The verdict of a report: a failed check of any kind fails it, and every deciding check must pass.

    A check with `decides` False can only take a pass away by failing; its `inconclusive` is shown and blocks nothing,
    because another check or the digest chain carries what it would have shown.
    """
    return combine_verdicts(check.verdict for check in checks if check.decides or check.verdict == "fail")
