"""Every kind of bad input: a message that names the value and the remedy, the documented exit code, nothing half-written."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from masksparse_deploy.cli.main import run
from tests.project import make_project, masksparse

Spoil = Callable[[Path], None]


def edit(key: str, value: object) -> Spoil:
    """Set "section.key" in deploy.yaml."""

    def spoil(folder: Path) -> None:
        content = yaml.safe_load((folder / "deploy.yaml").read_text())
        section, _, name = key.partition(".")
        content.setdefault(section, {})[name] = value
        (folder / "deploy.yaml").write_text(yaml.safe_dump(content))

    return spoil


def cut(name: str, share: float) -> Spoil:
    """Truncate a file."""

    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return spoil


def checkpoint(change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    """Change the tensors of the checkpoint."""

    def spoil(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return spoil


def not_a_number(state: dict[str, torch.Tensor]) -> None:
    state["block.conv1.weight"][0, 0, 0, 0] = float("nan")


def other_shape(state: dict[str, torch.Tensor]) -> None:
    state["block.conv1.weight"] = torch.zeros(16, 4, 3, 3)


def missing_key(state: dict[str, torch.Tensor]) -> None:
    del state["fc.weight"]


def data_of_shape(*shape: int, labels: int = 10) -> Spoil:
    """Test images of another shape, or labels beyond the model's classes."""

    def spoil(folder: Path) -> None:
        images = np.zeros(shape, np.float32)
        np.savez(folder / "test.npz", images=images, labels=np.arange(len(images)) % labels)

    return spoil


def pickled_code(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return (os.system, (f"touch {folder / 'run-by-the-checkpoint'}",))

    torch.save({"state_dict": Evil()}, folder / "model.pth")
    edit("model.weights", "model.pth")(folder)


DEPLOY: list[tuple[str, Spoil, int, str]] = [
    ("missing checkpoint", lambda folder: (folder / "model.safetensors").unlink(), 2, "masksparse: checkpoint "),
    ("truncated checkpoint", cut("model.safetensors", 0.5), 4, "model.safetensors is damaged"),
    ("empty checkpoint", cut("model.safetensors", 0.0), 4, "model.safetensors is damaged"),
    ("checkpoint with code in it", pickled_code, 4, "model.pth"),
    ("NaN weights", checkpoint(not_a_number), 4, "block.conv1.weight"),
    ("weights of another shape", checkpoint(other_shape), 2, "block.conv1.weight"),
    ("a missing weight", checkpoint(missing_key), 2, "fc.weight"),
    ("images of another size", data_of_shape(20, 1, 8, 8), 2, "channels"),
    ("labels beyond the classes", data_of_shape(20, 3, 8, 8, labels=11), 2, "10"),
    ("truncated data", cut("train.npz", 0.5), 4, "train.npz is damaged"),
    ("no such factory", edit("model.factory", "tests.models.tiny_cnn:tinny_cnn"), 2, "no callable 'tinny_cnn'"),
    ("no such module", edit("model.factory", "modle:net"), 2, "modle:net"),
    ("channels that do not divide", edit("mask.include", ["conv"]), 2, "3"),
    ("a layer that is not there", edit("mask.exclude", ["blok.*"]), 2, "blok.*"),
    ("a bad pattern", edit("mask.pattern", "4:2"), 2, "4:2"),
    ("an unknown key", edit("gates.accuracy_drop", 1), 2, "did you mean 'accuracy_drop_points'"),
    ("a wrong type", edit("engine.batch", "many"), 2, "engine.batch"),
    ("a backend that is not here", edit("engine.backend", "tensorrt"), 3, "TensorRT"),
]


@pytest.mark.parametrize(("spoil", "code", "words"), [case[1:] for case in DEPLOY], ids=[case[0] for case in DEPLOY])
def test_deploy(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Spoil, code: int, words: str) -> None:
    config = make_project(tmp_path, mask={"method": "magnitude"})
    spoil(tmp_path)
    refused(["deploy", config], code, words, capsys)
    assert not (tmp_path / "run-by-the-checkpoint").exists()
    assert half_written(tmp_path) == []


def test_a_backend_that_is_not_here_is_told_before_anything_is_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_project(tmp_path, mask={"method": "magnitude"}, engine={"backend": "tensorrt"})
    refused(["deploy", config], 3, "nothing was run: to learn here and build on another machine, add --until bake", capsys)
    assert not (tmp_path / "out").exists()
    assert run(["deploy", str(config), "--until", "bake"]) == 0
    assert (tmp_path / "out" / "sparse.onnx").is_file()


def refused(arguments: list[str | Path], code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the command line; it ends with this exit code and a message, not with the lines of a bug."""
    assert run([str(argument) for argument in arguments]) == code
    told = " ".join(capsys.readouterr().err.split())
    assert words.lower() in told.lower()
    assert "Traceback" not in told


def half_written(folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*") if "partial" in file.name]


def other_weights(folder: Path) -> None:
    checkpoint(lambda state: state["block.conv2.weight"].mul_(1.5))(folder)


def swap_onnx(folder: Path) -> None:
    (folder / "out" / "sparse.onnx").write_bytes((folder / "out" / "dense.onnx").read_bytes())


def other_plan(folder: Path) -> None:
    plan = folder / "out" / "sparse.plan.onnx"
    plan.write_bytes(plan.read_bytes() + b"\0")


LINT = ["lint", "out/sparse.onnx"]
BAKE = "bake --factory tests.models.tiny_cnn:tiny_cnn --weights model.safetensors --masks out/masks.safetensors --data test.npz"
BAKE_ONNX = "bake --onnx out/dense.onnx --masks out/masks.safetensors"
CERTIFY = "certify --dense out/dense.onnx --sparse out/sparse.onnx --data test.npz --out new/certificate.json"
PROFILE = "profile --dense out/dense.engine.json --sparse out/sparse.engine.json --data test.npz --out new/profile.json"
VALIDATE = (
    "validate --dense-engine out/dense.engine.json --sparse-engine out/sparse.engine.json --dense-onnx out/dense.onnx "
    "--sparse-onnx out/sparse.onnx --certificate out/certificate.json --data test.npz --out new/validation.json"
)

VERBS: list[tuple[str, str, Spoil, int, str]] = [
    ("lint: missing file", "lint none.onnx", lambda folder: None, 2, "none.onnx does not exist"),
    ("lint: truncated file", "lint out/sparse.onnx", cut("out/sparse.onnx", 0.7), 4, "sparse.onnx is damaged"),
    ("lint: not ONNX", "lint deploy.yaml", lambda folder: None, 4, "not a valid ONNX file"),
    ("bake: missing masks", BAKE + " --out new", lambda f: (f / "out/masks.safetensors").unlink(), 2, "does not exist"),
    ("bake: truncated masks", BAKE + " --out new", cut("out/masks.safetensors", 0.6), 4, "masks.safetensors is damaged"),
    ("bake: masks for other weights", BAKE + " --out new", other_weights, 4, "masksparse learn"),
    ("bake: INT8 without images", BAKE + " --precision int8 --out new", lambda folder: None, 2, "give --calibration"),
    ("bake: BF16 before opset 22", BAKE + " --precision bf16 --out new", lambda folder: None, 2, "use bake.opset 22"),
    ("bake: two models", BAKE + " --onnx out/dense.onnx --out new", lambda folder: None, 2, "either as --factory"),
    ("bake: no model", "bake --masks out/masks.safetensors --out new", lambda folder: None, 2, "or as --onnx"),
    (
        "bake: an ONNX file in another opset",
        BAKE_ONNX + " --opset 22 --out new",
        lambda folder: None,
        2,
        "leave the option out",
    ),
    ("bake: images for an ONNX file", BAKE_ONNX + " --data test.npz --out new", lambda folder: None, 2, "leave the option out"),
    ("bake: a folder below a file", BAKE + " --out deploy.yaml/new", lambda folder: None, 3, "cannot be written"),
    ("build: truncated ONNX", "build --onnx out/sparse.onnx --out new", cut("out/sparse.onnx", 0.7), 4, "sparse.onnx"),
    ("build: missing ONNX", "build --onnx none.onnx --out new", lambda folder: None, 2, "none.onnx does not exist"),
    ("profile: plan changed", PROFILE, other_plan, 4, "digest"),
    ("profile: truncated metadata", PROFILE, cut("out/dense.engine.json", 0.5), 4, "not valid JSON"),
    ("certify: truncated ONNX", CERTIFY, cut("out/dense.onnx", 0.5), 4, "dense.onnx is damaged"),
    ("certify: data of another shape", CERTIFY, data_of_shape(20, 1, 8, 8), 2, "3"),
    ("validate: ONNX of another engine", VALIDATE, swap_onnx, 4, "digest"),
    ("validate: plan changed", VALIDATE, other_plan, 4, "digest"),
    (
        "validate: one network before its conversion",
        VALIDATE + " --dense-fp32 out/dense.onnx",
        lambda folder: None,
        2,
        "only one of --dense-fp32 and --sparse-fp32 was given; give both files, or none",
    ),
    ("report: empty folder", "report empty", lambda f: (f / "empty").mkdir(), 2, "empty"),
]


@pytest.mark.parametrize(("line", "spoil", "code", "words"), [case[1:] for case in VERBS], ids=[case[0] for case in VERBS])
def test_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Path, line: str, spoil: Spoil, code: int, words: str
) -> None:
    for file in finished.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(finished)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    spoil(tmp_path)
    files = ("model.safetensors", "test.npz", "none.onnx", "deploy.yaml", "empty", "new")
    arguments = [str(tmp_path / word) if word.startswith(("out/", *files)) else word for word in line.split()]
    refused([*arguments], code, words, capsys)
    assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())
    assert half_written(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of its own with the given options; skips where that is not permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine does not permit mounting a small file system")
        mounted.append(place)
        return place

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_output_folder(tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    config = make_project(tmp_path / "project", mask={"method": "magnitude"})
    result = masksparse("deploy", config, "--out", small_disk("ro,size=1m") / "out")
    assert result.returncode == 3, result.stderr
    assert "Read-only file system" in result.stderr
    assert "choose an output folder that you may write to" in result.stderr


@pytest.mark.parametrize("size_kib", [4, 48, 96])
def test_a_full_disk_at_several_stages(tmp_path: Path, small_disk: Callable[[str], Path], size_kib: int) -> None:
    config = make_project(tmp_path / "project", mask={"method": "magnitude"})
    disk = small_disk(f"size={size_kib}k")
    result = masksparse("deploy", config, "--out", disk / "out")
    assert result.returncode == 3, result.stderr
    assert "no space left on the device while writing" in result.stderr
    assert "Traceback" not in result.stderr
    assert half_written(disk) == []


def test_the_chain_does_not_run_under_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["deploy", str(tmp_path / "deploy.yaml")]) == 2
    assert "runs in one process, and a launcher started 2; under the launcher run 'masksparse learn'" in capsys.readouterr().err
