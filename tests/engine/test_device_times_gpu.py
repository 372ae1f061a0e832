"""Times by CUDA events, graphs, transfers and TensorRT's profiler on a real GPU; skipped without one."""

from pathlib import Path

import numpy as np
import pytest

from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.engine.plans import metadata_path
from masksparse_deploy.engine.protocol import DeviceTimed
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from masksparse_deploy.profiling.builds import provide_builds
from masksparse_deploy.profiling.compare import profile_builds
from masksparse_deploy.profiling.gpu_state import watch_gpu
from tests.requirements import requires

pytestmark = [pytest.mark.gpu, pytest.mark.trt, requires(gpu=True, tensorrt=True)]

# without cuBLAS and cuDNN, as in test_tensorrt_gpu.py
OPTIONS = EngineOptions(backend="tensorrt", batch=4, tactic_sources=("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"))
IMAGES = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)


def test_every_clock_runs(old_opset_onnx: Path, tmp_path: Path) -> None:
    artifact = TensorRTBackend().build(old_opset_onnx, tmp_path, OPTIONS, name="dense")
    with TensorRTBackend().open(metadata_path(tmp_path, "dense")) as session:
        assert isinstance(session, DeviceTimed)
        expected = session.run(IMAGES)["logits"]
        for cuda_graph in (False, True):
            # launching a tiny network takes microseconds, and so does running it; a second would be another unit
            assert 1e-4 < session.time_on_device(IMAGES, cuda_graph=cuda_graph)() < 1e3
        session.prepare_with_transfers(IMAGES)()
        layers = session.layer_times_ms(IMAGES, count=3)
        np.testing.assert_array_equal(session.run(IMAGES)["logits"], expected)
    assert {len(times) for times in layers.values()} == {3}
    assert {layer.name for layer in artifact.layers} & set(layers)


def test_the_gpu_is_watched() -> None:
    with watch_gpu() as watch:
        watch.read("start")
        reading = watch.state.readings[0]
    assert reading.sm_clock_mhz and reading.temperature_c and reading.power_w
    assert watch.state.highest_sm_clock_mhz is not None


def test_three_engines(old_opset_onnx: Path, tmp_path: Path) -> None:
    for name in ("dense", "sparse"):
        TensorRTBackend().build(old_opset_onnx, tmp_path, OPTIONS, name=name)
    dense, sparse = (metadata_path(tmp_path, name) for name in ("dense", "sparse"))
    builds = provide_builds(dense, sparse, old_opset_onnx, old_opset_onnx, tmp_path / "builds", count=2)
    report = profile_builds(builds, IMAGES, OPTIONS, ProfileOptions(rounds=20, cuda_graph=True))
    assert report.clock == "CUDA events, CUDA graphs"
    assert len(report.ratios) == 3 and report.end_to_end is not None and report.gpu is not None
    assert {row.engine for row in report.layers} == {"dense", "forbidden", "sparse"}
