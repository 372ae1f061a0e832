"""JUnit XML as CI systems read it: element and attribute names, counts, and nothing red that is green or green that is red."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from masksparse_deploy.core.artifacts.validation import Check, ValidationReport
from masksparse_deploy.core.errors import OutputError
from masksparse_deploy.report.junit import StageTime, junit_xml, write_junit
from masksparse_deploy.validate.verdict import overall_verdict
from tests.report.validation_artifacts import make_check, make_validation

# What the schema of Jenkins' xUnit plugin (junit-10.xsd) allows, as far as GitLab and the readers on GitHub know it too:
# element -> (children, required attributes, optional attributes).
SCHEMA = {
    "testsuites": ({"testsuite"}, set(), {"name", "tests", "failures", "errors", "time"}),
    "testsuite": (
        {"properties", "testcase"},
        {"name", "tests"},
        {"failures", "errors", "skipped", "time", "timestamp", "hostname"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, set()),
    "testcase": ({"skipped", "error", "failure", "system-out"}, {"name", "classname"}, {"time"}),
    "failure": (set(), set(), {"type", "message"}),
    "error": (set(), set(), {"type", "message"}),
    "skipped": (set(), set(), {"message"}),
    "system-out": (set(), set(), set()),
}


def breaches(element: ET.Element) -> list[str]:
    """What a reader of the schema would not understand, and counts that are not those of the test cases."""
    children, required, optional = SCHEMA[element.tag]
    found = [f"{element.tag}: child {child.tag}" for child in element if child.tag not in children]
    found += [f"{element.tag}: attribute {name}" for name in set(element.keys()) - required - optional]
    found += [f"{element.tag}: no {name}" for name in required - set(element.keys())]
    if element.tag == "testsuite":
        for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            if element.get(attribute) != str(len(element.findall(f".//{tag}"))):
                found.append(f"{attribute} is {element.get(attribute)}")
    if element.tag == "testcase" and sum(child.tag in ("failure", "error", "skipped") for child in element) > 1:
        found.append("several outcomes")
    return found + [breach for child in element if child.tag in SCHEMA for breach in breaches(child)]


def validation(*checks: Check) -> ValidationReport:
    return make_validation().model_copy(update={"checks": checks, "verdict": overall_verdict(checks)})


def written(report: ValidationReport, **options: object) -> ET.Element:
    root = ET.fromstring(junit_xml(report, **{"seconds": 1.5, **options}))
    assert breaches(root) == []
    return root


def outcome(root: ET.Element, name: str) -> str:
    (case,) = [case for case in root.iter("testcase") if case.get("name") == name]
    return case[0].tag if len(case) else "passed"


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_a_report_keeps_to_the_schema(verdict: str) -> None:
    report = make_validation(verdict)
    root = written(report, stages=[StageTime("learn", 1.25, "done"), StageTime("bake", 0.0, "unchanged")])
    stages, checks = root
    assert [case.get("name") for case in checks.iter("testcase")] == [*(check.name for check in report.checks), "verdict"]
    assert [(case.get("name"), case.get("time")) for case in stages] == [("learn", "1.250"), ("bake", "0.000")]
    assert [float(suite.get("time", "")) for suite in root] == [1.25, 0.25]
    assert root.get("time") == "1.500"
    digests = {entry.get("name"): entry.get("value") for entry in checks.iter("property")}
    assert digests["sparse_engine_sha256"] == report.sparse_engine_sha256
    assert digests["validation_sha256"] == report.digest


def test_a_breach_of_the_schema_is_caught() -> None:
    content = junit_xml(make_validation(), seconds=1.0).decode()
    assert breaches(ET.fromstring(content)) == []
    assert breaches(ET.fromstring(content.replace("classname=", "class="))) != []
    assert breaches(ET.fromstring(content.replace('tests="', 'tests="1'))) != []
    assert breaches(ET.fromstring(content.replace("system-out", "failure"))) != []


def test_each_verdict_of_a_check_is_shown_as_what_it_means() -> None:
    root = written(
        validation(
            make_check("sound"),
            make_check("broken", "fail", detail="one layer is outside its bound"),
            make_check("open", "inconclusive", detail="more samples are needed"),
            make_check("information", "inconclusive", decides=False),
            make_check("broken information", "fail", decides=False),
        )
    )
    shown = {name: outcome(root, name) for name in ("sound", "broken", "open", "information", "broken information")}
    assert shown == {
        "sound": "system-out",
        "broken": "failure",
        "open": "error",
        "information": "skipped",
        "broken information": "failure",
    }
    failure = root.find(".//failure")
    assert failure is not None and failure.get("message") == "one layer is outside its bound"
    assert failure.text is not None and "measured 3.1e-07, limit 1.52588e-05 (relative)" in failure.text


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([make_check("a")], "passed"),
        ([make_check("a"), make_check("b", "inconclusive", decides=False)], "passed"),
        ([make_check("a"), make_check("b", "fail", decides=False)], "failure"),
        ([make_check("a"), make_check("b", "inconclusive")], "error"),
        ([make_check("a", decides=False)], "error"),
        ([], "error"),
    ],
)
def test_something_is_red_exactly_if_the_verdict_is_not_pass(checks: list[Check], verdict: str) -> None:
    report = validation(*checks)
    root = written(report)
    assert outcome(root, "verdict") == verdict
    is_red = root.find(".//failure") is not None or root.find(".//error") is not None
    assert is_red == (report.verdict != "pass")
    assert (int(root.get("failures", "")) + int(root.get("errors", "")) > 0) == is_red


def test_names_of_layers_cannot_break_the_file() -> None:
    hostile = 'a"/></testcase><failure/>&amp;<![CDATA[]]>\x00\x1b[31m\ufffe\r\u202eb'
    root = written(validation(make_check(hostile, "fail", detail=f"outside their bounds: {hostile}")))
    case = next(root.iter("testcase"))
    name = case.get("name", "")
    assert name.startswith('a"/></testcase><failure/>&amp;<![CDATA[]]>\\x00\\x1b[31m\\ufffe\\r')
    assert len(case) == 1 and case[0].tag == "failure"
    assert root.get("tests") == "2"


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "junit.xml"
    write_junit(path, make_validation(), seconds=1.0)
    assert ET.parse(path).getroot().tag == "testsuites"
    assert [entry.name for entry in path.parent.iterdir()] == ["junit.xml"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another output folder"):
        write_junit(tmp_path / "file" / "junit.xml", make_validation(), seconds=1.0)
