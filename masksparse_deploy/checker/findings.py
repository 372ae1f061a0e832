"""What the checker says: one finding for each statement of a certificate, and the answer that follows from all of them."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "Report", "Status", "verdict"]

Status = Literal["verified", "wrong", "not checked"]
Answer = Literal["verified", "verified except what needs the images", "wrong", "not verifiable"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One statement.

    Attributes:
        subject: what it is about: the file, a layer, a claim.
        what: which of the subject's fields or properties.
        status: "verified" only if the checker came to the same result on its own.
        recorded: what the certificate says; None where it is a property rather than a value.
        found: what the checker found.
        reason: why it is wrong or not checked.
        needs_images: not checked only because there were no images.
    """

    subject: str
    what: str
    status: Status
    recorded: Any = None
    found: Any = None
    reason: str = ""
    needs_images: bool = False


def verdict(holds: bool) -> Status:
    """The status of a statement that was checked."""
    return "verified" if holds else "wrong"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings of one run."""

    findings: tuple[Finding, ...]

    @property
    def answer(self) -> Answer:
        """In words: wrong if anything is, not verifiable if anything was not checked for another reason than no images."""
        if not self.findings or any(finding.status == "wrong" for finding in self.findings):
            return "wrong" if self.findings else "not verifiable"
        left_out = [finding for finding in self.findings if finding.status == "not checked"]
        if not all(finding.needs_images for finding in left_out):
            return "not verifiable"
        return "verified except what needs the images" if left_out else "verified"

    @property
    def exit_code(self) -> int:
        """0 if everything that can be checked with what was given is verified, else 1."""
        return 0 if self.answer.startswith("verified") else 1

    def to_json(self) -> str:
        """The answer, counts and all findings, for machines."""
        content = {
            "kind": "certificate-check",
            "schema_version": 1,
            "answer": self.answer,
            "counts": self._counts(),
            "findings": [asdict(finding) for finding in self.findings],
        }
        return json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False)

    def lines(self) -> Iterator[str]:
        """For people: a line for each subject and outcome, and one that sums up."""
        for subject in dict.fromkeys(finding.subject for finding in self.findings):
            of_subject = [finding for finding in self.findings if finding.subject == subject]
            grouped: dict[tuple[str, str], list[str]] = {}
            for finding in of_subject:
                why = "" if finding.status == "verified" else _explained(finding)
                grouped.setdefault((finding.status, why), []).append(finding.what)
            for (status, why), whats in grouped.items():
                yield f"{status:<11}  {subject}: {', '.join(whats)}" + (f": {why}" if why else "")
        counts = self._counts()
        yield ", ".join(f"{count} {status}" for status, count in counts.items()) + f"; the certificate is {self.answer}"

    def _counts(self) -> dict[str, int]:
        statuses: tuple[Status, ...] = ("verified", "wrong", "not checked")
        return {status: sum(finding.status == status for finding in self.findings) for status in statuses}


def _explained(finding: Finding) -> str:
    if finding.recorded is None and finding.found is None:
        return finding.reason
    values = f"recorded {_shown(finding.recorded)}, found {_shown(finding.found)}"
    return f"{values} ({finding.reason})" if finding.reason else values


def _shown(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else "nothing" if value is None else str(value)
