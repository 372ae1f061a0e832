"""The campaign without a GPU: planned, made, read by NVIDIA's parser, rehearsed on ONNX Runtime and on stand-ins."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.engine import tensorrt_backend
from masksparse_deploy.engine.driver import DriverAnswer
from masksparse_deploy.engine.inspector import parse_inspector
from masksparse_deploy.engine.select import get_backend
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from masksparse_deploy.forecast.layer_model import LAYER
from masksparse_deploy.profiling.compare import profile_builds
from tests.engine.fake_tensorrt import GPU, INSPECTED, FakeCudart, FakeTensorRT, install
from tests.forecast.machine import DENSE_TACTIC, SPARSE_TACTIC, FakeBackend
from tests.requirements import REPOSITORY, requires
from tests.test_docs import parse as parse_command
from tools import gpu_campaign, gpu_campaign_chain, gpu_campaign_kernels, gpu_campaign_networks, imagenet_networks
from tools.gpu_campaign_kernels import kernel_shapes
from tools.gpu_campaign_record import Machine, Record, run_cases

SMALL = (3, 16, 16, 7, 2)
WIDTHS = ((64, 56), (512, 14), (1024, 14))


def small_network(seed: int = 0) -> onnx.ModelProto:
    """A stem and a 3x3 layer, for 16 x 16 pixels."""
    network = imagenet_networks._Network(seed)
    x = network.relu(network.convolve("image", "stem", (3, 16), 3), "stem")
    x = network.relu(network.convolve(x, "layers.0", (16, 32), 3), "layers.0")
    return network.finish(x, 32, "small")


def small_network_of_images(seed: int = 0) -> onnx.ModelProto:
    """The same with the name of the input that the stand-in for TensorRT knows."""
    model = small_network(seed)
    model.graph.input[0].name = "images"
    model.graph.node[0].input[0] = "images"
    return model


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet_networks, "INPUT_SHAPE", (1, 3, 16, 16))
    monkeypatch.setattr(gpu_campaign_networks, "NETWORKS", {"resnet18": small_network, "resnet50": small_network})
    monkeypatch.setattr(gpu_campaign_networks, "_BATCHES", (2,))
    monkeypatch.setattr(gpu_campaign_kernels, "kernel_shapes", lambda: (SMALL,))


def campaign(folder: Path, *words: str) -> int:
    always = ["--out", str(folder / "campaign.json"), "--work", str(folder / "work"), "--rounds", "20"]
    return gpu_campaign.main([*always, "--golden", str(folder / "golden"), "--measurements", str(folder / "docs"), *words])


def rehearse(folder: Path, *words: str) -> int:
    return campaign(folder, "--backend", "onnxruntime", *words)


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "campaign.json").read_bytes())
    return content


def test_the_sweep_has_what_is_to_be_known() -> None:
    shapes = kernel_shapes()
    assert len(set(shapes)) == len(shapes)
    for axis, wanted in enumerate(({1, 3}, {64, 1024}, {64, 1024}, {7, 56}, {1, 128})):
        assert wanted <= {shape[axis] for shape in shapes}
    assert shapes[0] == (3, 512, 512, 14, 64)


def test_the_first_minutes_answer_the_first_question() -> None:
    """Is there a sparse tactic, and does it win: 3x3 and 1x1, narrow and wide, in both precisions."""
    options = gpu_campaign._parse([])
    names = [case.name for case in gpu_campaign.plan(options)]
    assert names[0] == "int8 3x3 16 to 16 channels 7x7 batch 2"
    assert names.index(names[0]) < names.index("record resnet18 int8") < names.index("tests that need a GPU")
    assert set(kernel_shapes()[:6]) == {(kernel, wide, wide, size, 64) for kernel in (3, 1) for wide, size in WIDTHS}


def test_without_a_gpu_it_exits_with_3_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if TensorRTBackend().status().available:
        pytest.skip("there is a GPU here")
    assert campaign(tmp_path) == 3
    assert "on a machine without an NVIDIA GPU use the backend onnxruntime" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_makes_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign(tmp_path, "--dry-run") == 0
    printed = capsys.readouterr().out
    for line in (
        "record resnet18 int8: dense.onnx 0.2 MiB, int8, 1 eligible layers; sparse.onnx",
        "resnet50 fp16 batch 2: dense.onnx 0.1 MiB, fp16, 1 eligible layers",
        "refit resnet18 fp16: sparse.onnx",
        "int8 3x3 16 to 16 channels 7x7 batch 2: kernel.onnx",
        "11 cases, 0 failed; nothing was run on a GPU",
    ):
        assert line in printed
    assert not (tmp_path / "campaign.json").exists() and not (tmp_path / "work" / "dry").exists()


@requires(tensorrt_rtx=True)
def test_a_dry_run_finds_what_nvidias_parser_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def strange(seed: int = 0) -> onnx.ModelProto:
        model = small_network(seed)
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        relu.op_type, relu.domain = "HardSwosh", "somebodys"
        model.opset_import.add(domain="somebodys", version=1)
        return model

    onnx.save(strange(), tmp_path / "strange.onnx")
    words = ["--dense", str(tmp_path / "strange.onnx"), "--sparse", str(tmp_path / "strange.onnx"), "--only", "strange*"]
    assert campaign(tmp_path, "--dry-run", *words) == 1
    printed = capsys.readouterr().out
    assert "strange batch 64: FAILED: MachineError: NVIDIA's parser does not accept strange.onnx" in printed
    assert "1 cases, 1 failed" in printed


def test_a_rehearsal_times_kernels_and_networks_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--pieces", "networks", "kernels", "refit", "--precisions", "int8", "--only", "*resnet18*", "*3x3*", "--table"]
    assert rehearse(tmp_path, *words) == 0
    page = Path(capsys.readouterr().out.strip())
    found = record(tmp_path)
    kernel = found["cases"]["int8 3x3 16 to 16 channels 7x7 batch 2"]
    assert kernel["dense_ms"] > 0 and kernel["kind"]["in_channels"] == 16 and kernel["picked"] is False
    network = found["cases"]["resnet18 int8 batch 2"]
    assert network["profile"]["dense"]["median_ms"] > 0 and "samples_ms" not in json.dumps(network)
    text = page.read_text()
    assert page.parent == tmp_path / "docs" and page.name.startswith("gpu-")
    assert "**A rehearsal on a CPU" in text and "Failed: 0." in text
    assert f"| resnet18 int8 batch 2 | {network['profile']['dense']['median_ms']:.4f} |" in text
    assert "| int8 3x3 16 to 16 channels 7x7 batch 2 | " in text
    assert "REBUILT" in found["cases"]["refit resnet18 int8"]["outcome"]
    before = (tmp_path / "campaign.json").read_bytes()
    assert rehearse(tmp_path, *words) == 0
    assert (tmp_path / "campaign.json").read_bytes() == before
    assert "resnet18" not in capsys.readouterr().err


def test_a_failure_is_recorded_and_the_rest_still_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--pieces", "golden", "kernels", "--precisions", "int8", "--table"]
    assert rehearse(tmp_path, *words) == 1
    cases = record(tmp_path)["cases"]
    assert "only TensorRT's engines have one" in cases["record resnet18 int8"]["error"]
    assert "dense_ms" in cases["int8 3x3 16 to 16 channels 7x7 batch 2"]
    assert "Failed: 1.\n- record resnet18 int8: ArtifactError" in Path(capsys.readouterr().out.strip()).read_text()
    assert rehearse(tmp_path, *words) == 1
    assert capsys.readouterr().err == ""
    assert rehearse(tmp_path, *words, "--retry") == 1
    assert "record resnet18 int8: ArtifactError" in capsys.readouterr().err


def test_a_case_whose_time_is_up_is_left_and_not_recorded(tmp_path: Path) -> None:
    words = ["--pieces", "networks", "--precisions", "int8", "--only", "*resnet18*", "--seconds", "-1"]
    assert rehearse(tmp_path, *words) == gpu_campaign.NOT_FINISHED
    machine = Machine(
        backend=get_backend("onnxruntime"),
        status=get_backend("onnxruntime").status(),
        engine=EngineOptions(),
        work=tmp_path / "work",
        golden=tmp_path,
        rounds=20,
        builds=3,
        expired=iter([False, False, True, True]).__next__,
    )
    found = Record.open(tmp_path / "campaign.json")
    (network,) = gpu_campaign_networks.network_cases(["int8"], ["resnet18"])
    assert run_cases([network], found, machine, retry=False, say=lambda text: None) == 1
    assert found.cases == {}
    # the engine that was built before the time was up is kept for the next piece
    assert [path.name for path in (tmp_path / "work").rglob("*.engine.json")] == ["dense.engine.json"]


def test_figures_of_two_machines_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--pieces", "kernels", "--precisions", "fp16"]
    assert rehearse(tmp_path, *words) == 0
    content = record(tmp_path)
    content["facts"]["device"]["name"] = "another machine"
    (tmp_path / "campaign.json").write_text(json.dumps(content))
    assert rehearse(tmp_path, *words) == 4
    assert "figures of the two must not be mixed: name another file with --out" in capsys.readouterr().err
    (tmp_path / "campaign.json").write_text("[]")
    assert rehearse(tmp_path, *words) == 4
    assert "is no record of a campaign" in capsys.readouterr().err


def test_wrong_words_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign(tmp_path, "--only", "resnet19*") == 2
    assert "no case is named resnet19*; --dry-run lists all of them" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        campaign(tmp_path, "--rounds", "5")
    assert "argument --rounds: Input should be greater than or equal to 10" in capsys.readouterr().err
    assert campaign(tmp_path, "--prepared", str(tmp_path)) == 2
    assert "holds no files of --prepare" in capsys.readouterr().err


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    module = FakeTensorRT()
    modules: dict[str, Any] = {"tensorrt": module, "cuda.bindings.runtime": FakeCudart()}
    monkeypatch.setattr(tensorrt_backend, "require", lambda name, needed_for: modules[name])
    monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: True)
    monkeypatch.setattr(tensorrt_backend, "installed_versions", lambda *names: {"tensorrt": module.__version__})
    install(monkeypatch, module)
    monkeypatch.setattr(gpu_campaign, "get_backend", lambda name: TensorRTBackend(ask_driver=lambda: GPU))
    monkeypatch.setattr(gpu_campaign_networks, "NETWORKS", {"resnet18": small_network_of_images})
    return module


def test_a_network_that_is_no_graph_is_launched_kernel_by_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_graphs(builds: Any, images: Any, options: Any, profile: ProfileOptions) -> Any:
        if profile.cuda_graph:
            raise MachineError("CUDA: cudaStreamEndCapture failed with 901")
        return profile_builds(builds, images, options, profile)

    monkeypatch.setattr(gpu_campaign_networks, "profile_builds", without_graphs)
    assert rehearse(tmp_path, "--pieces", "networks", "--precisions", "fp16", "--only", "resnet18*") == 0
    (row,) = record(tmp_path)["cases"].values()
    assert row["no_graph_because"] == "CUDA: cudaStreamEndCapture failed with 901"
    assert row["outcome"].endswith("launched without graphs: CUDA: cudaStreamEndCapture failed with 901")


def test_what_tensorrt_tells_is_recorded_for_the_tests(tmp_path: Path, trt: FakeTensorRT) -> None:
    words = ["--pieces", "golden"]
    assert campaign(tmp_path, *words) == 0
    golden = sorted(path.name for path in (tmp_path / "golden").glob("inspector-*"))
    assert golden == [
        f"inspector-10.16.1-resnet18-{precision}-{role}.json" for precision in ("fp16", "int8") for role in ("dense", "sparse")
    ]
    assert (tmp_path / "golden" / golden[0]).read_text() == INSPECTED
    assert parse_inspector((tmp_path / "golden" / golden[0]).read_text())
    facts = record(tmp_path)["facts"]
    assert facts["device"]["name"] == "Fake GPU" and facts["versions"] == {"tensorrt": "10.16.1"}


@pytest.mark.parametrize(("version", "sources"), [("8.6.0", gpu_campaign._KIT_SOURCES), ("10.16.1", None)])
def test_a_kernel_that_gains_is_told_with_its_tactic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, sources: tuple[str, ...] | None
) -> None:
    backend = FakeBackend(lambda model, allowed: 1.0 - 0.4 * allowed)
    backend.version = version
    monkeypatch.setattr(gpu_campaign, "get_backend", lambda name: backend)
    assert campaign(tmp_path, "--pieces", "kernels", "--precisions", "fp16", "--table") == 0
    (row,) = record(tmp_path)["cases"].values()
    assert (row["picked"], row["sparse_tactic"], row["sums"]) == (True, SPARSE_TACTIC, ["fp32", "fp16"])
    # a thousandth of noise in either time
    assert row["speedup"]["ratio"] == pytest.approx(1 / 0.6, rel=2e-3)
    assert all(options.tactic_sources == sources and options.batch == SMALL[-1] for options in backend.options)
    (page,) = (tmp_path / "docs").glob("*.md")
    assert page.name == "gpu-a-fake-GPU.md".lower()
    assert f"| fp32 then fp16 | {SPARSE_TACTIC} |" in page.read_text() and "rehearsal" not in page.read_text()


class TellingBackend(FakeBackend):
    """Tells the times of two tactics of the layer, and of one of the convolution in front."""

    def build(self, onnx_path: Path, folder: Path, options: EngineOptions, *, name: str, **others: Any) -> Any:
        artifact = super().build(onnx_path, folder, options, name=name, **others)
        (folder / f"{name}.build.log").write_text(
            f"--------------- Timing Runner: {LAYER}.weight + {LAYER} + active (CaskConvolution[0x1])\n"
            f"Tactic Name: {DENSE_TACTIC} Tactic: 0x1 Time: 0.03\n"
            + f"Tactic Name: {SPARSE_TACTIC} Tactic: 0x2 Time: 0.02\n"
            * options.sparse_tactics
            + "--------------- Timing Runner: first (CaskConvolution[0x1])\n"
            f"Tactic Name: {SPARSE_TACTIC} Tactic: 0x2 Time: 0.001\n"
        )
        return artifact.model_copy(update={"build_log": f"{name}.build.log"})


def test_the_builders_times_of_the_layer_alone_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TellingBackend(lambda model, allowed: 1.0 - 0.1 * allowed)
    monkeypatch.setattr(gpu_campaign, "get_backend", lambda name: backend)
    assert campaign(tmp_path, "--pieces", "first-kernels", "--precisions", "fp16", "--table") == 0
    (row,) = record(tmp_path)["cases"].values()
    assert row["builder"] == {
        "tactic_count": 2,
        "sparse_count": 1,
        "sparse_ms": 0.02,
        "dense_ms": 0.03,
        "same_formats": True,
        "sparse_tactic": SPARSE_TACTIC,
        "dense_tactic": DENSE_TACTIC,
    }
    (page,) = (tmp_path / "docs").glob("*.md")
    assert "| dense 0.0300, sparse 0.0200 ms; 1 of 2 tactics sparse |" in page.read_text()


def test_an_engine_of_an_earlier_piece_is_not_mistaken_for_this_files(tmp_path: Path, trt: FakeTensorRT) -> None:
    words = ["--pieces", "golden", "--precisions", "int8", "--tactic-sources", "JIT_CONVOLUTIONS"]
    assert campaign(tmp_path, *words) == 0
    trt.plan = None
    (tmp_path / "campaign.json").unlink()
    assert campaign(tmp_path, *words) == 0  # the same file's: nothing is built
    (tmp_path / "campaign.json").unlink()
    dense = tmp_path / "work" / "resnet18-int8" / "dense.onnx"
    onnx.save(small_network_of_images(7), dense)
    assert campaign(tmp_path, *words) == 1
    assert "built no engine" in record(tmp_path)["cases"]["record resnet18 int8"]["error"]


class Commands:
    """Stands in for the command line: every command must parse as the program's own would."""

    def __init__(self) -> None:
        self.lines: list[Sequence[str]] = []

    def __call__(self, words: Sequence[str], accepted: tuple[int, ...] = (0,)) -> dict[str, Any]:
        parse_command(" ".join(["masksparse", *words, "--json"]))
        self.lines.append(words)
        if words[0] == "deploy":
            out = Path(words[words.index("--out") + 1])
            out.mkdir(parents=True)
            for name in gpu_campaign_chain._KEPT:
                (out / name).write_bytes(b"content")
            onnx.save(small_network(), out / "dense.onnx")
            onnx.save(small_network(), out / "sparse.onnx")
        checks = [{"name": "end-to-end", "verdict": "pass"}, {"name": "accuracy drop", "verdict": "inconclusive"}]
        refit = {"seconds": 0.5, "relative_error": 1e-4, "tolerance": 1e-2, "rebuilt": False}
        return {"verdict": "inconclusive", "checks": checks, **refit}


def test_validation_and_refit_go_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = Commands()
    monkeypatch.setattr(gpu_campaign_chain, "_command", commands)
    sample = tmp_path / "samples" / "digits"
    sample.mkdir(parents=True)
    arrays = "np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, np.int64)"
    (sample / "data.py").write_text(f"import numpy as np\n\ndef test():\n    return {arrays}\n")
    monkeypatch.setattr(gpu_campaign_chain, "REPOSITORY", tmp_path)
    assert campaign(tmp_path, "--prepare", str(tmp_path / "prepared")) == 0
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == ["digits-fp16", "digits-int8"]
    assert (tmp_path / "prepared" / "digits-int8" / "test.npz").stat().st_size > 0
    assert not (tmp_path / "prepared" / "digits-int8" / "chain").exists()
    words = ["--pieces", "validation", "refit", "--precisions", "int8", "--prepared", str(tmp_path / "prepared"), "--table"]
    assert rehearse(tmp_path, *words) == 0
    assert [words[0] for words in commands.lines] == ["deploy"] * 2 + ["build", "build", "validate"] * 2 + ["build", "refit"]
    page = Path(capsys.readouterr().out.splitlines()[-1]).read_text()
    assert "| validate digits-int8 | inconclusive, 2 checks; accuracy drop: inconclusive |" in page
    assert "| refit resnet18 int8 | 0.50 s, error 0.0001 of at most 0.01, not rebuilt |" in page


def test_tests_that_cannot_run_or_do_not_end_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--pieces", "tests"]
    monkeypatch.setattr(gpu_campaign_chain, "is_installed", lambda name: False)
    assert rehearse(tmp_path, *words) == 0
    assert record(tmp_path)["cases"]["tests that need a GPU"]["outcome"] == "not run: pytest is not here"
    (tmp_path / "campaign.json").unlink()
    monkeypatch.setattr(gpu_campaign_chain, "is_installed", lambda name: True)
    monkeypatch.setattr(gpu_campaign_chain, "_LONGEST_TESTS_S", 0.01)
    assert rehearse(tmp_path, *words) == 1
    assert "pytest did not end within 0.01 s" in record(tmp_path)["cases"]["tests that need a GPU"]["error"]


def test_the_tests_that_need_a_gpu_run_without_plugins_and_all_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = {
        path for path in (REPOSITORY / "tests").rglob("test_*.py") if re.search(r"pytest\.mark\.(gpu|trt)\b", path.read_text())
    }
    files = {REPOSITORY / name for name in (*gpu_campaign_chain._GPU_TESTS, *gpu_campaign_chain._PYTORCH_TESTS)}
    assert marked - {Path(__file__).resolve()} == files
    monkeypatch.setattr(gpu_campaign_chain, "is_installed", lambda name: name == "pytest")
    # as where pytest's plugins are not installed: the project's settings name options of theirs
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    rehearse(tmp_path, "--pieces", "tests")
    row = record(tmp_path)["cases"]["tests that need a GPU"]
    if TensorRTBackend().status().available:
        assert " passed" in row["outcome"]
    else:
        assert " failed" in row["error"] and "test_every_clock_runs" in row["error"]


def test_what_a_command_says_when_it_fails_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"masksparse build ended with exit code 2: masksparse: ONNX file .*nothing\.onnx"):
        gpu_campaign_chain._command(["build", "--onnx", str(tmp_path / "nothing.onnx"), "--out", str(tmp_path)])


def test_a_driver_without_a_gpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    answer = DriverAnswer(None, "the NVIDIA driver reports no GPU")
    monkeypatch.setattr(gpu_campaign, "get_backend", lambda name: TensorRTBackend(ask_driver=lambda: answer))
    assert campaign(tmp_path) == 3
    assert "the NVIDIA driver reports no GPU" in capsys.readouterr().err
