import errno
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, OutputError, UsageError
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.engine import onnxruntime_backend
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.onnxruntime_session import session_settings
from masksparse_deploy.graph.reader import read_graph

BACKEND = OnnxRuntimeBackend()
OPTIONS = EngineOptions(batch=4, threads=1)
EXPOSED = ("layer1.conv1", "layer2.shortcut")


def images(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8), dtype=np.float32)


def conv_outputs(path: Path) -> tuple[str, ...]:
    return tuple(node.outputs[0] for node in read_graph(path).nodes if node.op == "Conv")


def test_outputs_equal_the_reference(dense_onnx: Path, tmp_path: Path) -> None:
    exposed = conv_outputs(dense_onnx)
    BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense", expose=exposed)
    model = onnx.load(dense_onnx)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    x = images(6)
    names = [output.name for output in model.graph.output]
    expected = dict(zip(names, ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x}), strict=True))
    with BACKEND.open(tmp_path / "dense.engine.json", threads=1) as session:
        outputs = session.run(x)
        assert session.output_names == tuple(names)
    assert list(outputs) == names
    for name in names:
        # sums of at most 288 float32 products, six layers deep: 6 * 288 * 2^-24 = 1e-4 of the largest magnitude
        np.testing.assert_allclose(outputs[name], expected[name], rtol=0, atol=1e-4 * np.abs(expected[name]).max())


def test_batches_do_not_change_the_outputs(dense_onnx: Path, tmp_path: Path) -> None:
    BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    with BACKEND.open(tmp_path / "dense.engine.json", threads=1) as session:
        whole = session.run(images(11))["logits"]
        assert session.input_shape == (None, 3, 8, 8)
        assert whole.shape == (11, 10)
        single = np.concatenate([session.run(images(11)[index : index + 1])["logits"] for index in range(11)])
    # another blocking of the same sums: a few roundings of numbers of order one
    np.testing.assert_allclose(whole, single, rtol=1e-4, atol=1e-4)


def test_a_fixed_batch_is_filled_up(dense_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(dense_onnx)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "fixed.onnx")
    BACKEND.build(tmp_path / "fixed.onnx", tmp_path, EngineOptions(batch=64), name="fixed")
    with BACKEND.open(tmp_path / "fixed.engine.json", threads=1) as session:
        assert session.input_shape == (4, 3, 8, 8)
        assert session.run(images(6))["logits"].shape == (6, 10)


def test_builds_are_deterministic_and_described(dense_onnx: Path, tmp_path: Path) -> None:
    first = BACKEND.build(dense_onnx, tmp_path / "a", OPTIONS, name="dense")
    second = BACKEND.build(dense_onnx, tmp_path / "b", OPTIONS, name="dense")
    assert first == second
    assert (tmp_path / "a" / first.plan).read_bytes() == (tmp_path / "b" / second.plan).read_bytes()
    assert (tmp_path / "a" / "dense.engine.json").read_bytes() == (tmp_path / "b" / "dense.engine.json").read_bytes()
    assert EngineArtifact.read(tmp_path / "a" / "dense.engine.json") == first
    assert first.source_sha256 == sha256_file(dense_onnx)
    assert first.precision == "fp32"
    assert "no 2:4 kernels" in first.sparse_kernels
    assert not list((tmp_path / "a").glob(".*"))


def test_every_weighted_node_is_a_layer_and_the_weights_can_be_read_back(dense_onnx: Path, tmp_path: Path) -> None:
    artifact = BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    source = read_graph(dense_onnx)
    weighted = {
        n.name for n in source.nodes if len(n.inputs) > 1 and n.inputs[1] in source.constants and n.op in ("Conv", "Gemm")
    }
    assert weighted <= {name for layer in artifact.layers for name in layer.onnx_nodes}
    assert all(layer.is_sparse is False for layer in artifact.layers)
    plan = read_graph(tmp_path / artifact.plan)
    for name, array in source.constants.items():
        if array.ndim == 4:
            np.testing.assert_array_equal(plan.constants[name], array)


def test_merged_nodes_are_named_in_order(dense_onnx: Path, tmp_path: Path) -> None:
    artifact = BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    fused = [layer for layer in artifact.layers if layer.tactic == "com.microsoft.FusedConv"]
    assert fused
    nodes = {node.name: node.op for node in read_graph(dense_onnx).nodes}
    assert all([nodes[name] for name in layer.onnx_nodes] == ["Conv", "Relu"] for layer in fused)


def test_prepare_repeats_one_inference(dense_onnx: Path, tmp_path: Path) -> None:
    BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    with BACKEND.open(tmp_path / "dense.engine.json", threads=1) as session:
        infer = session.prepare(images(4))
        assert infer() is None
        infer()


def test_a_changed_plan_is_refused_with_both_digests(dense_onnx: Path, tmp_path: Path) -> None:
    artifact = BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    plan = tmp_path / artifact.plan
    plan.write_bytes(plan.read_bytes() + b"\0")
    with pytest.raises(ArtifactError) as error, BACKEND.open(tmp_path / "dense.engine.json"):
        pass
    assert artifact.plan_sha256 in str(error.value)
    assert sha256_file(plan) in str(error.value)
    plan.unlink()
    with pytest.raises(ArtifactError, match="is missing"), BACKEND.open(tmp_path / "dense.engine.json"):
        pass


def test_an_engine_of_another_backend_or_folder_is_refused(dense_onnx: Path, tmp_path: Path) -> None:
    artifact = BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    path = tmp_path / "other.engine.json"
    artifact.model_copy(update={"backend": "tensorrt"}).write(path)
    with pytest.raises(UsageError, match="open it with tensorrt"), BACKEND.open(path):
        pass
    artifact.model_copy(update={"plan": "../dense.plan.onnx"}).write(path)
    with pytest.raises(ArtifactError, match="not a file beside it"), BACKEND.open(path):
        pass


@pytest.mark.parametrize("content", [b"", b"not ONNX at all", None], ids=["empty", "text", "truncated"])
def test_a_damaged_file_is_refused_and_leaves_nothing(dense_onnx: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(dense_onnx.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ArtifactError, match=r"bad\.onnx"):
        BACKEND.build(path, tmp_path / "out", OPTIONS, name="bad")
    assert not (tmp_path / "out").exists()


def test_an_operator_the_runtime_does_not_know_is_refused(dense_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(dense_onnx)
    model.graph.node[0].domain = "nobody.knows"
    model.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    onnx.save(model, tmp_path / "custom.onnx")
    with pytest.raises(ArtifactError, match="ONNX Runtime refuses"):
        BACKEND.build(tmp_path / "custom.onnx", tmp_path / "out", OPTIONS, name="custom")
    assert list((tmp_path / "out").iterdir()) == []


def test_wrong_names_and_shapes_are_usage_errors(dense_onnx: Path, tmp_path: Path) -> None:
    name = conv_outputs(dense_onnx)[0]
    with pytest.raises(UsageError, match=f"did you mean '{name}'"):
        BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense", expose=(name + "x",))
    with pytest.raises(UsageError, match="does not exist"):
        BACKEND.build(tmp_path / "none.onnx", tmp_path, OPTIONS, name="dense")
    BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    with BACKEND.open(tmp_path / "dense.engine.json", threads=1) as session:
        for wrong in (np.zeros((2, 4, 8, 8), np.float32), np.zeros((3, 8, 8), np.float32), images(0)):
            with pytest.raises(UsageError, match=r"it takes \(count, 3, 8, 8\)"):
                session.run(wrong)


@pytest.mark.parametrize("options", [{}, {"batch": 0}, {"batch": "many"}])
def test_metadata_without_a_batch_is_damaged(dense_onnx: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense").model_copy(update={"options": options}).write(
        tmp_path / "dense.engine.json"
    )
    message = "not a positive number; run 'masksparse build' again"
    with pytest.raises(ArtifactError, match=message), BACKEND.open(tmp_path / "dense.engine.json"):
        pass


def test_an_input_of_bytes_is_a_usage_error(dense_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(dense_onnx)
    name = model.graph.input[0].name
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for node in model.graph.node:
        node.input[:] = ["as_float" if entry == name else entry for entry in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Cast", [name], ["as_float"], name="cast", to=onnx.TensorProto.FLOAT))
    onnx.save(model, tmp_path / "bytes.onnx")
    BACKEND.build(tmp_path / "bytes.onnx", tmp_path, OPTIONS, name="bytes")
    with pytest.raises(UsageError, match=r"input is a tensor\(uint8\)"), BACKEND.open(tmp_path / "bytes.engine.json"):
        pass


def test_a_full_disk_is_an_output_error(dense_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OutputError, match="no space left"):
        BACKEND.build(dense_onnx, tmp_path / "out", OPTIONS, name="dense")
    assert list((tmp_path / "out").iterdir()) == []


def test_two_rival_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*names: str) -> dict[str, str]:
        return dict.fromkeys(names, "1.31.1")

    assert BACKEND.status().available
    monkeypatch.setattr(onnxruntime_backend, "installed_versions", both)
    status = BACKEND.status()
    assert not status.available
    assert "pip uninstall onnxruntime onnxruntime-gpu" in status.reason
    with pytest.raises(MachineError, match="are both installed"):
        BACKEND.build(Path("any.onnx"), Path("any"), OPTIONS, name="any")


def test_progress_ends_at_the_total(dense_onnx: Path, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    BACKEND.build(dense_onnx, tmp_path, OPTIONS, name="dense", progress=lambda *call: calls.append(call))
    assert calls[0] == ("build dense", 0, 2)
    assert calls[-1] == ("build dense", 2, 2)


def test_idle_threads_leave_the_cores_to_the_next_engine() -> None:
    # Spinning threads of engines timed in turn made one of ten inferences five times as long.
    settings = session_settings(onnxruntime, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, threads=2)
    assert settings.get_session_config_entry("session.force_spinning_stop") == "1"
