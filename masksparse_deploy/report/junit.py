"""The checks of a validation as JUnit XML, the form in which CI systems read test results."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masksparse_deploy import __version__
from masksparse_deploy.core.artifacts.validation import Check, ValidationReport
from masksparse_deploy.core.files import write_atomic

__all__ = ["StageTime", "junit_xml", "write_junit"]

_DIGESTS = ("sparse_engine_sha256", "dense_engine_sha256", "certificate_sha256", "data_sha256")


@dataclass(frozen=True)
class StageTime:
    """A stage of the chain that ended well: its name, how long it took, and what became of it."""

    name: str
    seconds: float
    status: str


def write_junit(path: Path, report: ValidationReport, *, seconds: float, stages: Sequence[StageTime] = ()) -> None:
    """Write `junit_xml` of the same arguments to `path`, whole or not at all; raises OutputError."""
    write_atomic(path, junit_xml(report, seconds=seconds, stages=stages))


def junit_xml(report: ValidationReport, *, seconds: float, stages: Sequence[StageTime] = ()) -> bytes:
    """One test case for each check and one for the verdict, in UTF-8.

    A check that failed is a failure, a deciding one that is inconclusive an error, so that both are red; one that decides
    nothing is skipped. The verdict is a test case too: there is no red one exactly if the verdict is pass.

    Args:
        report: the validation.
        seconds: how long the command took; single checks are not timed.
        stages: those of the chain that ran before, each a test case with its own time.
    """
    root = ET.Element("testsuites", name="masksparse")
    if stages:
        suite = _suite(root, "masksparse stages", sum(stage.seconds for stage in stages))
        for stage in stages:
            case = _case(suite, stage.name, "masksparse.stages")
            case.set("time", f"{stage.seconds:.3f}")
            ET.SubElement(case, "system-out").text = _printable(stage.status)
    # the stages are part of the command: suites add up to its time
    suite = _suite(root, "masksparse checks", max(0.0, seconds - sum(stage.seconds for stage in stages)))
    properties = ET.SubElement(suite, "properties")
    values = {"masksparse": __version__, "verdict": report.verdict, "validation_sha256": report.digest}
    for name, value in (*values.items(), *((name, getattr(report, name)) for name in _DIGESTS)):
        ET.SubElement(properties, "property", name=name, value=value)
    for check in report.checks:
        _outcome(_case(suite, check.name, "masksparse.checks"), check)
    _verdict(_case(suite, "verdict", "masksparse"), report)
    for suite in root:
        _count(suite)
        suite.set("skipped", str(sum(1 for _ in suite.iter("skipped"))))
    _count(root)
    root.set("time", f"{seconds:.3f}")
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _suite(root: ET.Element, name: str, seconds: float) -> ET.Element:
    return ET.SubElement(root, "testsuite", name=name, time=f"{seconds:.3f}")


def _case(suite: ET.Element, name: str, classname: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=classname, name=_printable(name))


def _outcome(case: ET.Element, check: Check) -> None:
    text = _printable(f"{check.detail}\n{_figures(check)}")
    if check.verdict == "fail":
        _result(case, "failure", check.detail, check.verdict, text)
    elif check.verdict == "inconclusive" and check.decides:
        _result(case, "error", check.detail, check.verdict, text)
    elif check.verdict == "inconclusive":
        _result(case, "skipped", f"decides nothing: {check.detail}", check.verdict, text)
    else:
        ET.SubElement(case, "system-out").text = text


def _verdict(case: ET.Element, report: ValidationReport) -> None:
    if report.verdict == "pass":
        return
    blocking = [c.name for c in report.checks if c.verdict == "fail" or (c.verdict == "inconclusive" and c.decides)]
    message = f"{report.verdict}: {', '.join(blocking) or 'no check decides'}"
    _result(case, "failure" if report.verdict == "fail" else "error", message, report.verdict, _printable(message))


def _result(case: ET.Element, tag: str, message: str, kind: str, text: str) -> None:
    attributes = {"message": _printable(message)} if tag == "skipped" else {"message": _printable(message), "type": kind}
    ET.SubElement(case, tag, attributes).text = text


def _figures(check: Check) -> str:
    known = {"measured": check.measured, "bound": check.bound, "limit": check.tolerance}
    figures = [f"{name} {value:.6g}" for name, value in known.items() if value is not None]
    return f"{', '.join(figures) or 'nothing measured'} ({check.unit})"


def _count(element: ET.Element) -> None:
    """The attributes that tell how many test cases there are, and how many did not end well."""
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        element.set(attribute, str(sum(1 for _ in element.iter(tag))))


def _printable(text: str) -> str:
    """Characters that XML 1.0 cannot hold, not even escaped, as Python would write them."""
    return "".join(character if _is_xml(ord(character)) else ascii(character)[1:-1] for character in text)


def _is_xml(code: int) -> bool:
    # https://www.w3.org/TR/xml/#charsets; carriage returns are left out, because readers turn them into line feeds
    return code in (0x9, 0xA) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
