"""`masksparse select`, and its result on the way through `learn` and the chain."""

import json
from pathlib import Path

import pytest

from masksparse_deploy.cli.main import run
from masksparse_deploy.cli.terminal import alone_in
from masksparse_deploy.pipeline.config_file import read_config
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.lock import exclusive
from masksparse_deploy.pipeline.reporting import REPORTED
from masksparse_deploy.pipeline.rewriting import REWRITE
from masksparse_deploy.pipeline.stages import STAGES
from tests.project import FACTORY, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project")).parent


def inputs(project: Path) -> list[str]:
    model = ["--factory", FACTORY, "--weights", str(project / "model.safetensors")]
    data = ["--train", str(project / "train.npz"), "--test", str(project / "test.npz")]
    return [*model, *data, "--batch-size", "32", "--calibration-count", "64"]


def test_a_table_then_masks_for_the_chosen_layers(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["select", *inputs(project), "--points", "100", "--exclude", "block.conv1", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "left dense: block.conv1 (excluded by mask.exclude 'block.conv1')" in told
    assert "2:4 on 2 of 2 eligible layers" in told
    assert "with magnitude masks" in told and "128 test images" in told
    assignment = ["--assignment", str(tmp_path / "selection.json"), "--method", "magnitude"]
    assert run(["learn", *inputs(project), *assignment, "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in report["layers"]] == ["block.conv2", "block.shortcut.0"]


def test_targets_and_json(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "targets.txt").write_text("block.conv*\n")
    options = ["--targets", str(tmp_path / "targets.txt"), "--out", str(tmp_path), "--json"]
    assert run(["select", *inputs(project), *options]) == 0
    told = capsys.readouterr().out
    assert told == (tmp_path / "selection.json").read_text()
    assignment = json.loads(told)["assignment"]
    assert [name for name, layer in sorted(assignment.items()) if layer["pattern"] == "2:4"] == ["block.conv1", "block.conv2"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--points", "-1"], 2, "--points: input should be greater than or equal to 0"),
        (["--targets", "nowhere.txt"], 2, "list of targets nowhere.txt does not exist"),
        (["--assignment", "x"], 2, "No such option"),
    ],
)
def test_mistakes_are_named(
    project: Path, tmp_path: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["select", *inputs(project), "--out", str(tmp_path), *arguments]) == code
    assert words in capsys.readouterr().err


def test_the_chain_learns_again_when_the_assignment_changes(tmp_path: Path) -> None:
    path = make_project(tmp_path, mask={"assignment": "selection.json"})
    job = Job(config=read_config(path), folder=tmp_path, out=tmp_path / "out", command="", config_text="")
    found = []
    for text in ("first", "second", "first"):
        (tmp_path / "selection.json").write_text(text)
        found.append(STAGES[0].inputs(job))
    assert found[0] == found[2] != found[1]


def test_the_chain_learns_again_when_the_gate_of_the_recipe_or_the_validation_images_change(tmp_path: Path) -> None:
    def learned_from(method: str, points: float, images: bytes = b"first") -> dict[str, object]:
        sections: dict[str, dict[str, object]] = {
            "mask": {"method": method},
            "gates": {"accuracy_drop_points": points},
            "data": {"validation": "validation.npz"},
        }
        path = make_project(tmp_path, **sections)
        (tmp_path / "validation.npz").write_bytes(images)
        job = Job(config=read_config(path), folder=tmp_path, out=tmp_path / "out", command="", config_text="")
        return STAGES[0].inputs(job)

    assert learned_from("auto", 1.0) == learned_from("auto", 1.0) != learned_from("auto", 2.0)
    # Other methods never ask for the gate.
    assert learned_from("scores", 1.0) == learned_from("scores", 2.0)
    assert learned_from("scores", 1.0) != learned_from("scores", 1.0, b"second")


def test_the_report_depends_on_a_selection_in_its_folder(project: Path, tmp_path: Path) -> None:
    config = read_config(project / "deploy.yaml")
    job = Job(config=config, folder=project, out=tmp_path, command="", config_text="")
    for name in (*REPORTED, REWRITE):
        (tmp_path / name).write_text(name)
    without = STAGES[-1].inputs(job)
    (tmp_path / "selection.json").write_text("a selection")
    assert STAGES[-1].inputs(job) != without


@pytest.mark.parametrize("verb", ["select", "learn"])
def test_a_folder_in_which_another_command_works_is_left_alone(
    project: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with exclusive(tmp_path):
        assert run([verb, *inputs(project), "--out", str(tmp_path)]) == 2
        assert f"another masksparse process is working in {tmp_path}" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == [".stages"]
        # Of several processes of one launcher the first holds the folder for all.
        monkeypatch.setenv("RANK", "1")
        with alone_in(tmp_path):
            pass
