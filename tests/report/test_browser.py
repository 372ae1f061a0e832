"""The report in a real browser: silent, self-contained, drawn, and no wider than the screen."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from masksparse_deploy.report.inputs import ReportInputs
from masksparse_deploy.report.render import render_report
from tests.report.artifacts import make_inputs
from tests.report.engine_artifacts import make_profile
from tests.report.validation_artifacts import make_validation

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PLOT_COUNT = 7
CASES = {
    "pass": make_inputs(),
    "fail": make_inputs(validation=make_validation("fail"), profile=make_profile(1.4, 0.02, ("the clock is too coarse",))),
    "nothing": ReportInputs(name="nothing"),
}


@dataclass
class Observed:
    """What a page did besides showing itself, and what it shows."""

    messages: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    verdict: str = ""
    plot_count: int = 0

    @property
    def complaints(self) -> list[str]:
        return self.messages + self.errors + self.requests


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        reason = "there is no chromium on the path; install the package chromium"
        if os.environ.get("MASKSPARSE_REQUIRE_CHROMIUM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        # a container has neither a user namespace for the sandbox nor a GPU
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def observe(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> Observed:
    seen = Observed()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: seen.messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri(), wait_until="load")
    page.wait_for_timeout(200)  # plots are drawn by the end of loading; a late request would come in this time
    verdict = page.locator("#verdict")
    seen.verdict = verdict.inner_text() if verdict.count() and verdict.is_visible() else ""
    seen.plot_count = page.locator(".plot:has(svg.main-svg)").count()
    if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        seen.errors.append(f"wider than the screen of {width} pixels")
    page.close()
    return seen


@pytest.mark.parametrize(
    ("case", "width", "scheme"),
    [("pass", 1280, "light"), ("pass", 390, "dark"), ("fail", 390, "light"), ("nothing", 1280, "dark")],
)
def test_report(browser, tmp_path, case, width, scheme):
    path = tmp_path / "report.html"
    path.write_text(render_report(CASES[case]), encoding="utf-8")
    seen = observe(browser, path, width=width, scheme=scheme)
    assert seen.complaints == []
    assert seen.verdict.splitlines()[0] == {"pass": "Pass", "fail": "Fail", "nothing": "Not finished"}[case]
    assert seen.plot_count == (0 if case == "nothing" else PLOT_COUNT)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("Plotly.newPlot(holder", "Plotly.newPlod(holder", "newPlod is not a function"),
        ("JSON.parse(document", "(console.warn('odd'), JSON).parse(document", "warning: odd"),
        ("</footer>", '</footer><img src="https://example.com/pixel.png" alt="">', "example.com"),
        ("</footer>", '<p style="width: 900px">wide</p></footer>', "wider than the screen"),
    ],
    ids=["broken script", "console message", "request", "too wide"],
)
def test_planted_faults_are_seen(browser, tmp_path, before, after, complaint):
    html = render_report(make_inputs())
    assert before in html
    path = tmp_path / "report.html"
    path.write_text(html.replace(before, after), encoding="utf-8")
    assert any(complaint in seen for seen in observe(browser, path, width=390).complaints)
