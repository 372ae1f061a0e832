"""The whole chain on a tiny network, through the command line."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.pipeline.stages import STAGES
from tests.project import make_project, masksparse, start

# Times differ from run to run, and so does what is made from them.
TIMED = {"profile.json", "report.html", ".stages/profile.json", ".stages/report.json", ".stages/lock"}


@pytest.fixture(scope="module")
def timed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A project whose chain has run once, and how many seconds that took."""
    config = make_project(tmp_path_factory.mktemp("project"))
    begin = time.monotonic()
    result = masksparse("deploy", config)
    assert result.returncode == 0, result.stderr + result.stdout
    return config, time.monotonic() - begin


@pytest.fixture(scope="module")
def finished(timed_run: tuple[Path, float]) -> Path:
    """A project whose chain has run once."""
    return timed_run[0]


def artifacts(out: Path) -> dict[str, str]:
    """Digests of everything in the output folder that does not hold times."""
    files = {file.relative_to(out).as_posix(): file for file in out.rglob("*") if file.is_file()}
    return {name: sha256_file(file) for name, file in files.items() if name not in TIMED}


def test_every_stage_leaves_its_artifacts(finished: Path) -> None:
    out = finished.parent / "out"
    names = {file.name for file in out.iterdir()}
    assert names >= {
        "masks.safetensors",
        "learn.json",
        "dense.onnx",
        "sparse.onnx",
        "bake.json",
        "dense.engine.json",
        "sparse.engine.json",
        "profile.json",
        "why_not_sparse.json",
        "certificate.json",
        "validation.json",
        "report.html",
    }
    assert not [name for name in names if "partial" in name or "checkpoint" in name]
    assert json.loads((out / "validation.json").read_text())["verdict"] == "pass"


def test_a_second_run_changes_nothing_and_says_so(finished: Path) -> None:
    out = finished.parent / "out"
    before = {file: (file.stat().st_mtime_ns, sha256_file(file)) for file in out.iterdir() if file.is_file()}
    result = masksparse("deploy", finished)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("unchanged") == len(STAGES) - 1  # the report's line is the verdict
    assert before == {file: (file.stat().st_mtime_ns, sha256_file(file)) for file in out.iterdir() if file.is_file()}


def test_nothing_in_the_artifacts_names_a_folder_of_this_machine(finished: Path) -> None:
    out = finished.parent / "out"
    place = str(finished.parent).encode()
    named = [
        file.name for file in out.rglob("*") if file.is_file() and file.name != "report.html" and place in file.read_bytes()
    ]
    assert named == []


@pytest.mark.parametrize(
    ("section", "values", "run_again"),
    [
        ("gates", {"flip_rate": 0.9}, {"validate"}),
        ("certify", {"sample_count": 12}, {"certify", "validate"}),
        ("profile", {"rounds": 21}, {"profile"}),
        ("bake", {"opset": 19}, {"bake", "rewrite", "build", "profile", "certify", "validate"}),
    ],
)
def test_a_changed_option_runs_only_what_depends_on_it(
    tmp_path: Path, finished: Path, section: str, values: dict[str, object], run_again: set[str]
) -> None:
    config = make_project(tmp_path, **{section: values})
    copy_artifacts(finished.parent / "out", tmp_path / "out")
    result = masksparse("deploy", config)
    assert result.returncode == 0, result.stderr
    first_words = {line.split()[0] for line in result.stdout.splitlines() if line[:1].islower() and "unchanged" not in line}
    assert first_words == run_again


def copy_artifacts(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).write_bytes(file.read_bytes())


def test_a_damaged_output_is_made_again(tmp_path: Path, finished: Path) -> None:
    config = make_project(tmp_path)
    copy_artifacts(finished.parent / "out", tmp_path / "out")
    whole = artifacts(tmp_path / "out")
    damaged = tmp_path / "out" / "sparse.onnx"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert masksparse("deploy", config).returncode == 0
    assert artifacts(tmp_path / "out") == whole


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_artifacts(tmp_path: Path, timed_run: tuple[Path, float]) -> None:
    finished, whole_s = timed_run
    config = make_project(tmp_path)
    kills = 0
    while True:
        process = start(["deploy", str(config)])
        try:
            # 0.2, 0.3 and 0.4 of the whole are less than the whole, so that at least three attempts are cut.
            _, error = process.communicate(timeout=(0.2 + 0.1 * kills) * whole_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            assert kills < 30, "the chain does not get on when it is started again"
            continue
        assert process.returncode == 0, error
        break
    assert kills >= 3
    assert artifacts(tmp_path / "out") == artifacts(finished.parent / "out")


def test_until_stops_after_a_stage(tmp_path: Path) -> None:
    result = masksparse("deploy", make_project(tmp_path, mask={"method": "magnitude"}), "--until", "bake")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "sparse.onnx").is_file()
    assert not list((tmp_path / "out").glob("*.engine.json"))
    assert "PASS" not in result.stdout


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    import fcntl

    config = make_project(tmp_path)
    (tmp_path / "out" / ".stages").mkdir(parents=True)
    with (tmp_path / "out" / ".stages" / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        result = masksparse("deploy", config)
    assert result.returncode == 2
    assert "another masksparse process is working in" in result.stderr
