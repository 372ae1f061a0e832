"""Each sample runs from its folder as its README says, and keeps what the project promises."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.project import masksparse_process
from tests.requirements import REPOSITORY

DIGITS = REPOSITORY / "samples" / "digits"
OWN_LOOP = REPOSITORY / "samples" / "own_loop"

# Stands in for torchvision and timm, which hand over a network and are asked for weights by name.
STAND_IN = """
from torch import nn
def network(**options):
    print("asked for", sorted(options.items()))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
def resnet18(weights=None):
    return network(weights=weights)
def create_model(name, pretrained=False):
    return network(name=name, pretrained=pretrained)
"""


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of the chain of the digits."""
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("digits") / "out"
    checkpoint = (DIGITS / "model.safetensors").read_bytes()
    assert len(checkpoint) < 2_000_000
    result = masksparse_process("deploy", DIGITS / "deploy.yaml", "--out", out, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "PASS" in result.stdout
    assert (DIGITS / "model.safetensors").read_bytes() == checkpoint
    return out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_digits_from_checkpoint_to_verdict(digits_run: Path) -> None:
    learned = json.loads((digits_run / "learn.json").read_text())
    assert learned["weights_sha256_before"] == learned["weights_sha256_after"]
    convolutions = [layer for layer in learned["layers"] if len(layer["shape"]) == 4]
    assert len(convolutions) >= 8
    assert all(size % 16 == 0 for layer in convolutions for size in layer["shape"][:2])
    assert any(layer["shape"][2:] == [1, 1] for layer in convolutions)

    accuracy = json.loads((digits_run / "validation.json").read_text())["accuracy"]
    assert accuracy["dense_correct"] / accuracy["total"] >= 0.99
    assert accuracy["drop_points"] <= 0.5

    # docs/attribution.md: half the outputs' norm is the mask's, statistics estimated anew undo most of it, rounding is nothing
    parts = json.loads((digits_run / "validation.json").read_text())["attribution"]["output"]
    assert parts["sparsity"] < 0.5 * parts["mask"] < 0.5 and parts["total"] < 0.25
    assert parts["quantization"] == 0 < parts["rounding"] < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_digits_with_new_weights_under_the_same_masks(digits_run: Path, tmp_path: Path) -> None:
    weights = tmp_path / "new.safetensors"
    trained = subprocess.run([sys.executable, DIGITS / "fine_tune.py", weights], capture_output=True, text=True, timeout=300)
    assert trained.returncode == 0, trained.stderr
    new = ["--weights", weights, "--run", digits_run, "--out", tmp_path / "out"]
    result = masksparse_process("update", DIGITS / "deploy.yaml", *new, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The masks need not be learned again" in result.stdout
    report = json.loads((tmp_path / "out" / "update.json").read_text())
    assert report["relearn"] is False and len(report["masks"]) == 11
    assert report["dense_correct_new"] - report["sparse_correct_new"] <= 6
    # the update moved the network less than the masks do
    layerwise = [comparison["layerwise"] for comparison in report["comparisons"]]
    assert layerwise[1] < layerwise[0] / 2
    assert layerwise[2] <= layerwise[0] + layerwise[1]


@pytest.mark.slow
def test_digits_in_fp16_and_its_certificate_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    result = masksparse_process("deploy", DIGITS / "fp16.yaml", "--out", tmp_path / "out", timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "out" / "bake.json").read_text())
    assert (report["precision"], report["opset"], len(report["layers"])) == ("fp16", 17, 10)
    assert all(row["weight_overflow_count"] == row["output_overflow_count"] == 0 for row in report["ranges"] if row["weight"])
    layers = json.loads((tmp_path / "out" / "validation.json").read_text())["layers"]
    assert len(layers) == 11
    assert all(layer["verdict"] == "pass" for layer in layers)
    parts = json.loads((tmp_path / "out" / "validation.json").read_text())["attribution"]["output"]
    assert 1e-4 < parts["quantization"] < 1e-3
    monkeypatch.setenv("PYTHONPATH", str(DIGITS))  # as from the sample's folder, where its README runs the check
    out = tmp_path / "out"
    files = ["--dense", out / "dense.onnx", "--sparse", out / "sparse.onnx", "--data", "data:test"]
    checked = masksparse_process("certify", "--check", out / "certificate.json", *files)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.endswith("0 wrong, 0 not checked; the certificate is verified\n")


@pytest.mark.slow
def test_digits_in_int8(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = masksparse_process("deploy", DIGITS / "int8.yaml", "--out", tmp_path / "out", timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert report["verdict"] == "pass"
    assert [layer["verdict"] for layer in report["layers"]] == ["pass"] * 11
    # half a step of each grid, and next to nothing for the kernels
    assert all(0.98 < layer["rounding_ratio"] <= 1 for layer in report["layers"])
    checks = {check["name"]: check["verdict"] for check in report["checks"]}
    assert checks["kernels of the engine with exposed layers"] == checks["weights of the sparse plan"] == "pass"


@pytest.mark.slow
def test_digits_with_transposable_masks(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = masksparse_process(
        "deploy", DIGITS / "transposable.yaml", "--until", "bake", "--out", tmp_path / "out", timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    learned = json.loads((tmp_path / "out" / "learn.json").read_text())
    assert (learned["pattern"], learned["method"], len(learned["layers"])) == ("T2:4", "transposable + batch norm", 10)
    assert learned["weights_sha256_before"] == learned["weights_sha256_after"]
    assert masksparse_process("lint", tmp_path / "out" / "sparse.onnx", "--transposable").returncode == 0
    # The dense twin has no layer that could be.
    dense = masksparse_process("lint", tmp_path / "out" / "dense.onnx", "--transposable")
    assert dense.returncode == 1
    assert "no layer conforms to a pattern, so none is transposable" in dense.stdout


@pytest.mark.slow
def test_digits_with_masked_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    config = yaml.safe_load((DIGITS / "positions.yaml").read_text())
    # a few steps instead of 15 epochs: what is tested is the way into the engine
    config["mask"].update(max_steps=40, epochs=3)
    config["model"]["weights"] = str(DIGITS / "model.safetensors")
    config["gates"] = {"accuracy_drop_points": 100, "flip_rate": 1.0}
    (tmp_path / "positions.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("PYTHONPATH", str(DIGITS))
    out = tmp_path / "out"
    result = masksparse_process("deploy", tmp_path / "positions.yaml", "--out", out, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "8 convolutions compute 256 of 320 output positions (80.0 %)" in result.stdout
    report = json.loads((out / "validation.json").read_text())
    checks = {check["name"]: check["verdict"] for check in report["checks"]}
    assert report["verdict"] == checks["masked positions"] == "pass"
    assert len(report["layers"]) == 12
    rewrite = json.loads((out / "rewrite.json").read_text())
    assert len(rewrite["layers"]) == 8 and all(layer["reason"] for layer in rewrite["layers"])
    linted = masksparse_process("lint", out / "sparse.onnx")
    assert linted.returncode == 0
    assert "positions of blocks.0.conv1: conforming: 13 of 8 x 8 positions hold the bias" in linted.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_digits_with_blocks(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "out"
    result = masksparse_process("deploy", DIGITS / "blocks.yaml", "--out", out, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((out / "validation.json").read_text())
    assert report["verdict"] == "pass"
    assert all(layer["lost_at"] is None for layer in report["survival"]) and len(report["survival"]) == 6
    # Which layers are faster over gathered channels is for this machine to say.
    rewrite = json.loads((out / "rewrite.json").read_text())
    assert len(rewrite["layers"]) == 6
    assert all(layer["reason"] and len(layer["times"]) > 1 for layer in rewrite["layers"])
    source = rewrite["rewritten_sha256"] or rewrite["sparse_sha256"]
    assert json.loads((out / "sparse.engine.json").read_text())["source_sha256"] == source
    checks = {check["name"]: check["verdict"] for check in report["checks"]}
    assert checks.get("rewritten file") == ("pass" if rewrite["rewritten_sha256"] else None)
    assert masksparse_process("lint", out / "sparse.onnx").returncode == 0


def own_loop(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(OWN_LOOP / "run.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path or "")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_own_loop_learns_masks_that_can_be_baked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = own_loop("--network", "small", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    magnitude, learned = (
        float(line.split(": ")[1].split("%")[0]) for line in result.stdout.splitlines() if line.startswith("answers with")
    )
    assert learned < magnitude / 2
    assert "network as before, bit for bit: yes" in result.stdout
    # The README shows this output; other processors may round the percentages otherwise.
    shown = (OWN_LOOP / "README.md").read_text(encoding="utf-8")
    fixed = [line for line in result.stdout.splitlines()[:-1] if not line.startswith("answers with")]
    assert [line for line in fixed if line not in shown] == []
    monkeypatch.setenv("PYTHONPATH", str(OWN_LOOP))
    model = ["--factory", "run:small_network", "--weights", tmp_path / "model.safetensors", "--data", "run:unseen_images"]
    baked = masksparse_process("bake", *model, "--masks", tmp_path / "masks.safetensors", "--out", tmp_path)
    assert baked.returncode == 0, baked.stderr
    assert json.loads((tmp_path / "bake.json").read_text())["layers"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--network", "torchvision", "--weights", "IMAGENET1K_V1"], "asked for [('weights', 'IMAGENET1K_V1')]"),
        (
            ["--network", "timm", "--weights", "resnet18.a1_in1k"],
            "asked for [('name', 'resnet18.a1_in1k'), ('pretrained', True)]",
        ),
        ([], "asked for [('weights', None)]"),
    ],
)
def test_own_loop_takes_the_networks_of_others(tmp_path: Path, arguments: list[str], asked: str) -> None:
    for module in ("torchvision/models.py", "timm.py"):
        (tmp_path / module).parent.mkdir(exist_ok=True)
        (tmp_path / module).write_text(STAND_IN)
    (tmp_path / "torchvision" / "__init__.py").touch()
    result = own_loop(*arguments, "--steps", "1", "--out", tmp_path / "out", path=tmp_path)
    assert result.returncode == 0, result.stderr
    assert asked in result.stdout


@pytest.mark.slow
def test_own_loop_has_no_trained_weights_of_its_own(tmp_path: Path) -> None:
    result = own_loop("--network", "small", "--weights", "IMAGENET1K_V1", "--out", tmp_path)
    assert result.returncode == 1
    assert "use --network torchvision or timm with --weights" in result.stderr
