"""`masksparse gate` and the options --gates and --junit on the artifacts of a run."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from masksparse_deploy.cli.main import run
from masksparse_deploy.core.config import Gates
from masksparse_deploy.pipeline.config_file import read_config
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.stages import STAGES

WIDE = {"accuracy_drop_points": 100.0, "flip_rate": 1.0}


def gates(folder: Path, **options: object) -> str:
    path = folder / "gates.yaml"
    path.write_text(yaml.safe_dump(options))
    return str(path)


def test_a_run_is_judged_by_a_file(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (finished / "out").iterdir())
    junit = tmp_path / "junit.xml"
    arguments = ["gate", "--run", str(finished / "out"), "--junit", str(junit)]
    assert run([*arguments, "--gates", gates(tmp_path, **WIDE)]) == 0
    assert "PASS" in capsys.readouterr().out
    assert ET.parse(junit).getroot().get("failures") == "0"

    assert run([*arguments, "--gates", gates(tmp_path, **WIDE, sparse_layers=2)]) == 1
    shown = capsys.readouterr().out
    assert "fail sparse layers: 0 of 3 masked layers run a sparse tactic; demanded: 2 layers; this runtime has no 2:4" in shown
    failures = [case.get("name") for case in ET.parse(junit).getroot().iter("testcase") if case.find("failure") is not None]
    assert failures == ["sparse layers", "verdict"]
    # judging changes nothing in the folder
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (finished / "out").iterdir()) == before


def test_options_win_over_the_file(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["gate", "--run", str(finished / "out"), "--gates", gates(tmp_path, **WIDE), "--json"]
    assert run([*arguments, "--flip-rate", "0"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in report["checks"] if check["verdict"] == "fail"] == ["changed predictions"]


def test_the_speedup_is_read_from_the_run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished / "out", folder)
    arguments = ["gate", "--run", str(folder), "--gates", gates(tmp_path, **WIDE, latency_ratio=1000.0), "--json"]
    assert run(arguments) == 1
    measured = json.loads((folder / "profile.json").read_text())
    (check,) = (check for check in json.loads(capsys.readouterr().out)["checks"] if check["name"] == "speedup")
    assert check["verdict"] == ("inconclusive" if measured["invalid_because"] else "fail")
    assert check["measured"] == measured["speedup"]["ratio"]
    (folder / "profile.json").unlink()
    assert run(arguments) == 1
    (check,) = (check for check in json.loads(capsys.readouterr().out)["checks"] if check["name"] == "speedup")
    assert (check["verdict"], check["measured"]) == ("inconclusive", None)


def test_an_error_leaves_no_results_of_an_earlier_run(finished: Path, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    arguments = ["gate", "--junit", str(junit), "--gates", gates(tmp_path, **WIDE), "--run"]
    assert run([*arguments, str(finished / "out")]) == 0
    assert junit.is_file()
    assert run([*arguments, str(tmp_path)]) == 2
    assert not junit.exists()


def test_a_name_that_is_no_xml_file_is_refused_and_nothing_removed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = gates(tmp_path, **WIDE)
    (tmp_path / "folder.xml").mkdir()
    for path in (file, str(tmp_path / "folder.xml")):
        assert run(["gate", "--run", str(finished / "out"), "--junit", path]) == 2
        assert f"--junit {path}: give the path of a file that ends in .xml, as out/junit.xml" in capsys.readouterr().err
        assert Path(path).exists()


def test_there_are_no_checks_without_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["deploy", "deploy.yaml", "--until", "bake", "--junit", str(tmp_path / "junit.xml")]) == 2
    assert "--until bake gives none; leave one of them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("flip_rates: 0.1", 2, "gates.yaml: flip_rates: unknown key; did you mean 'flip_rate'?"),
        ("flip_rate: 2", 2, "gates.yaml: flip_rate: input should be less than or equal to 1, not 2"),
        ("sparse_layers: 0", 2, "gates.yaml: sparse_layers: input should be greater than or equal to 1, not 0"),
        ("latency_ratio: 1.2x", 2, "gates.yaml: latency_ratio: input should be a valid number, not '1.2x'"),
        ("gates: {flip_rate: 0.1}", 2, "gates.yaml: gates: unknown key"),
        ("- flip_rate", 2, "gates.yaml: holds list, not keys like 'accuracy_drop_points' and 'flip_rate'"),
        ("confidence: 0.9", 2, "the gates set confidence to 0.9, and the run measured with 0.95"),
    ],
)
def test_mistakes_are_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int, message: str
) -> None:
    (tmp_path / "gates.yaml").write_text(text)
    assert run(["gate", "--run", str(finished / "out"), "--gates", str(tmp_path / "gates.yaml")]) == code
    assert message in capsys.readouterr().err


def test_the_chain_judges_new_times_only_if_a_gate_reads_them(finished: Path) -> None:
    (stage,) = (stage for stage in STAGES if stage.name == "validate")
    config = read_config(finished / "deploy.yaml")

    def files(gates: Gates) -> set[str]:
        options = config.model_copy(update={"gates": gates})
        job = Job(config=options, folder=finished, out=finished / "out", command="", config_text="")
        return set(stage.inputs(job)["files"])

    assert files(Gates(latency_ratio=1.0)) - files(Gates()) == {"profile.json"}


def test_validate_takes_the_file_too(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = finished / "out"
    named = {"--certificate": "certificate.json", "--probe": "probe.safetensors", "--bake-report": "bake.json"}
    named |= {f"--{name}-engine": f"{name}.engine.json" for name in ("dense", "sparse")}
    named |= {f"--{name}-onnx": f"{name}.onnx" for name in ("dense", "sparse")} | {"--profile": "profile.json"}
    inputs = [word for option, name in named.items() for word in (option, str(out / name))]
    arguments = ["validate", *inputs, "--data", str(finished / "test.npz"), "--threads", "1", "--batch", "16"]
    arguments += ["--out", str(tmp_path / "validation.json"), "--junit", str(tmp_path / "junit.xml")]
    assert run([*arguments, "--gates", gates(tmp_path, **WIDE, sparse_layer_share=0.5), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in report["checks"] if check["verdict"] == "fail"] == ["sparse layers"]
    cases = [case.get("name") for case in ET.parse(tmp_path / "junit.xml").getroot().iter("testcase")]
    assert cases == [*(check["name"] for check in report["checks"]), "verdict"]
