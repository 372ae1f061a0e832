"""What the builder is asked for in each version, against stand-ins; and the whole path with NVIDIA's own builder on the CPU."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, UsageError
from masksparse_deploy.engine.source import Source, read_source
from masksparse_deploy.engine.tensorrt_build import BuiltPlan, build_plan
from masksparse_deploy.engine.tensorrt_log import kept_messages
from masksparse_deploy.engine.tensorrt_versions import numpy_type
from tests.engine.fake_tensorrt import FakeTensorRT, install
from tests.requirements import requires

OPTIONS = EngineOptions(backend="tensorrt", batch=4, workspace_mib=64)
VERSIONS = ("8.6.0", "10.16.1", "11.4.0")


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    module = FakeTensorRT(request.param)
    install(monkeypatch, module)
    return module


def build(trt: Any, source: Source, options: EngineOptions = OPTIONS, **arguments: Any) -> BuiltPlan:
    with kept_messages(trt) as (logger, messages):
        return build_plan(trt, logger, messages, source, options, name="dense", **arguments)


def half(path: Path, folder: Path) -> Path:
    """The same file with weights in float16 (types of the graph are left alone: only the weights are looked at)."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, folder / "half.onnx")
    return folder / "half.onnx"


def test_the_network_is_strongly_typed_where_it_can_be(dense_onnx: Path, trt: FakeTensorRT) -> None:
    assert build(trt, read_source(dense_onnx)).plan == b"plan"
    assert ("network", {"8.6.0": 1, "10.16.1": 2, "11.4.0": 1}[trt.__version__]) in trt.log
    assert ("set", "sparse") in trt.log
    assert ("clear", "tf32") in trt.log
    assert ("pool", "workspace", 64 << 20) in trt.log
    assert ("profiling_verbosity", "detailed") in trt.log
    assert ("shape", "images", (1, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8)) in trt.log
    assert not any(("set", flag) in trt.log for flag in ("fp16", "refit", "compatible"))
    # a second context, as for the times of layers, would find the range of shapes taken; later versions share it anyway
    assert (("preview", "sharing", True) in trt.log) == (trt.__version__ == "8.6.0")


def test_types_of_tensors_as_numpy_has_them() -> None:
    assert numpy_type(FakeTensorRT("10.16.1"), "bf16").name == "bfloat16"
    for version in VERSIONS:
        assert numpy_type(FakeTensorRT(version), "float16") == np.float16


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_rows_that_are_added_are_refused(dense_onnx: Path, tmp_path: Path, trt: FakeTensorRT, reduction: str) -> None:
    model = onnx.load(dense_onnx)
    ends = [
        onnx.numpy_helper.from_array(array, name)
        for name, array in (("to", np.zeros((1, 1), np.int64)), ("row", np.ones(1, np.float32)))
    ]
    data = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "data")
    model.graph.initializer.extend([data, *ends])
    model.graph.node.append(
        onnx.helper.make_node("ScatterND", ["data", "to", "row"], ["sum"], name="rows", reduction=reduction)
    )
    onnx.save(model, tmp_path / "rows.onnx")
    source = read_source(tmp_path / "rows.onnx")
    if reduction == "none":
        assert build(trt, source).plan == b"plan"
    else:
        with pytest.raises(UsageError, match=r"1 ScatterND with a reduction \(rows\) wrong.*rewrite --backend tensorrt"):
            build(trt, source)


def test_a_half_precision_file_sets_the_flag_where_types_are_weak(dense_onnx: Path, tmp_path: Path, trt: FakeTensorRT) -> None:
    source = read_source(half(dense_onnx, tmp_path))
    assert source.precision == "fp16"
    build(trt, source)
    assert (("set", "fp16") in trt.log) == (trt.__version__ == "8.6.0")


def test_options_reach_the_builder(dense_onnx: Path, trt: FakeTensorRT) -> None:
    options = OPTIONS.model_copy(
        update={
            "sparse_tactics": False,
            "tactic_sources": ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"),
            "optimization_level": 5,
            "refit": True,
            "hardware_compatibility": "ampere-plus",
            "version_compatible": True,
            "smallest_batch": 2,
            "largest_batch": 16,
        }
    )
    build(trt, read_source(dense_onnx), options)
    assert ("set", "sparse") not in trt.log
    assert ("sources", 1 << 3 | 1 << 4) in trt.log
    assert ("builder_optimization_level", 5) in trt.log
    assert ("hardware_compatibility_level", "ampere") in trt.log
    assert ("set", "refit") in trt.log
    assert ("set", "compatible") in trt.log
    assert ("shape", "images", (2, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8)) in trt.log


def test_what_a_version_lacks_is_named(dense_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT("8.6.0")
    install(monkeypatch, trt)
    source = read_source(dense_onnx)
    level = OPTIONS.model_copy(update={"hardware_compatibility": "same-compute-capability"})
    with pytest.raises(
        MachineError, match=r"8\.6\.0 has no hardware_compatibility same-compute-capability; it has: AMPERE_PLUS"
    ):
        build(trt, source, level)
    with pytest.raises(MachineError, match=r"no tactic source 'CUBLASS'; it has: EDGE_MASK_CONVOLUTIONS, JIT_CONVOLUTIONS"):
        build(trt, source, OPTIONS.model_copy(update={"tactic_sources": ("CUBLASS",)}))
    trt.lacks = {"builder_optimization_level"}
    with pytest.raises(MachineError, match=r"cannot be configured as asked: builder_optimization_level .* not available"):
        build(trt, source, OPTIONS.model_copy(update={"optimization_level": 3}))
    del trt.HardwareCompatibilityLevel
    with pytest.raises(MachineError, match=r"no hardware_compatibility ampere-plus; it has: none"):
        build(trt, source, OPTIONS.model_copy(update={"hardware_compatibility": "ampere-plus"}))
    del trt.BuilderFlag.FP16
    for precision in ("fp16", "bf16"):
        object.__setattr__(source, "precision", precision)
        with pytest.raises(MachineError, match=f"cannot build a file of precision {precision}"):
            build(trt, source)


def test_nothing_is_printed(dense_onnx: Path, trt: FakeTensorRT, capfd: pytest.CaptureFixture[str]) -> None:
    build(trt, read_source(dense_onnx))
    trt.lacks = {"builder_optimization_level"}
    with pytest.raises(MachineError):
        build(trt, read_source(dense_onnx), OPTIONS.model_copy(update={"optimization_level": 3}))
    assert capfd.readouterr() == ("", "")


def test_what_tensorrt_refuses_is_an_artifact_error(dense_onnx: Path, trt: FakeTensorRT) -> None:
    trt.plan, trt.told = None, (("error", "out of memory"),)
    with pytest.raises(ArtifactError, match="built no engine from the ONNX file: out of memory"):
        build(trt, read_source(dense_onnx))
    trt.parses = False
    with pytest.raises(ArtifactError, match="no importer for Foo"):
        build(trt, read_source(dense_onnx))


def test_exposed_tensors_become_outputs(dense_onnx: Path, trt: FakeTensorRT) -> None:
    build(trt, read_source(dense_onnx, ("stem.out",)))
    assert ("output", "stem.out") in trt.log
    source = read_source(dense_onnx, ("layer1.conv1.out",))
    with pytest.raises(UsageError, match=r"parser removed .* layer1\.conv1\.out"):
        build(trt, source)


def test_progress_is_told_where_the_version_tells(dense_onnx: Path, trt: FakeTensorRT) -> None:
    told: list[tuple[str, int, int]] = []
    build(trt, read_source(dense_onnx), progress=lambda *step: told.append(step))
    phase = "build dense: Timing kernels"
    steps = [(phase, 0, 3), (phase, 1, 3), (phase, 2, 3), (phase, 3, 3)]
    assert told == ([] if trt.__version__ == "8.6.0" else steps)


def test_an_interrupted_build_ends(dense_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()
    install(monkeypatch, trt)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(trt, read_source(dense_onnx), progress=interrupted)


class OnTheProcessor:
    """TensorRT for RTX, which builds without a GPU once it is told for which one."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        builder = self._module.Builder(logger)

        def create_builder_config() -> Any:
            config = builder.create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(self._module.ComputeCapability.SM89, 0)
            return config

        names = ("create_network", "create_optimization_profile", "build_serialized_network")
        members = {name: getattr(builder, name) for name in names}
        return SimpleNamespace(create_builder_config=create_builder_config, **members)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = OnTheProcessor(pytest.importorskip("tensorrt_rtx"))
    install(monkeypatch, module)
    yield module


# TensorRT for RTX warns of calls that do nothing there.
@pytest.mark.filterwarnings("ignore:Use :DeprecationWarning")
@requires(tensorrt_rtx=True)
def test_the_path_with_nvidias_own_parser_and_builder(dense_onnx: Path, real: Any) -> None:
    told: list[tuple[str, int, int]] = []
    options = OPTIONS.model_copy(update={"optimization_level": 2, "tactic_sources": ("JIT_CONVOLUTIONS",), "largest_batch": 8})
    with kept_messages(real) as (logger, messages):
        arguments = {"name": "dense", "progress": lambda *step: told.append(step)}
        built = build_plan(real, logger, messages, read_source(dense_onnx, ("stem.out",)), options, **arguments)
    assert len(built.plan) > 10_000
    assert built.findings == ()
    assert messages.errors == []
    assert any("Parsing node: layer1.conv1 [Conv]" in line for line in messages.lines)
    assert told[-1][1] == told[-1][2] > 0
    with pytest.raises(UsageError, match="removed the tensors to expose"), kept_messages(real) as (logger, messages):
        source = read_source(dense_onnx)
        object.__setattr__(source, "exposed", ("nowhere",))
        build_plan(real, logger, messages, source, options, name="dense")


@pytest.mark.filterwarnings("ignore:Use :DeprecationWarning")
@requires(tensorrt_rtx=True)
def test_nvidias_own_parser_gives_its_reasons(dense_onnx: Path, tmp_path: Path, real: Any) -> None:
    model = onnx.load(dense_onnx)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "HardSwosh", "somebodys"
    model.opset_import.add(domain="somebodys", version=1)
    onnx.save(model, tmp_path / "unknown.onnx")
    with pytest.raises(ArtifactError, match=r"does not accept the ONNX file: .*HardSwosh"):
        build(real, read_source(tmp_path / "unknown.onnx"))
