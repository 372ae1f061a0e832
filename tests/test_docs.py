"""The commands that the documentation shows exist, with the options it gives them, and its links lead somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

from masksparse_deploy.cli.main import VERBS, cli
from tests.requirements import REPOSITORY

PAGES = sorted(
    page for pattern in ("*.md", "docs/**/*.md", "samples/**/*.md", "tests/golden/*.md") for page in REPOSITORY.glob(pattern)
)


def commands(text: str) -> list[str]:
    """Every `masksparse ...` command line in code blocks, continued lines joined."""
    found = []
    # Other languages are matched, too, or their end would be taken for a beginning.
    for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
        if language not in ("", "bash", "console", "sh"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            line = line.removeprefix(".venv/bin/")
            if line.startswith("masksparse "):
                found.append(line.partition("  #")[0])
    return found


def parse(line: str) -> None:
    """Parse a command line as the program would, without running it; raises what the user would see."""
    words = shlex.split(re.split(r"\s[|>]\s|\s&&\s", line)[0])[1:]
    if words[0].startswith("-"):
        return
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, f"no verb {words[0]!r}"
    if set(words) & {"--help", "-h"}:
        return
    command.make_context(words[0], words[1:])


ALL = [(page, line) for page in PAGES for line in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page.relative_to(REPOSITORY)}:{line[:60]}" for page, line in ALL])
def test_a_documented_command_parses(page: Path, line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", ["masksparse lnit a.onnx", "masksparse lint", "masksparse lint a.onnx --jason"])
def test_a_wrong_command_is_caught(line: str) -> None:
    with pytest.raises((click.ClickException, AssertionError)):
        parse(line)


def test_every_verb_is_documented() -> None:
    shown = {line.split()[1] for _, line in ALL}
    assert set(VERBS) - shown == set()


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_the_configuration_in_the_readme_is_the_samples() -> None:
    sample = (REPOSITORY / "samples" / "digits" / "deploy.yaml").read_text(encoding="utf-8")
    assert f"```yaml\n{sample}```" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
