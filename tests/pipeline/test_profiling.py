"""The profile stage on a stand-in for a backend whose builds differ: what is missing is built, what is there is kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.progress import silent
from masksparse_deploy.pipeline import stages
from masksparse_deploy.profiling import builds, compare
from tests.models.make_onnx import residual_pair
from tests.profiling.building import BuildingBackend
from tests.profiling.machines import FakeClock


def test_three_engines_are_built_and_timed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BuildingBackend(FakeClock(), {"dense": 2e-3, "forbidden": 2e-3, "sparse": 1e-3}, build_spread=0.0)
    for module in (builds, compare):
        monkeypatch.setattr(module, "get_backend", lambda name: backend)
    monkeypatch.setattr(stages, "built_from", lambda out: "sparse.onnx")
    for name, model in zip(("dense", "sparse"), residual_pair(), strict=True):
        onnx.save(model, tmp_path / f"{name}.onnx")
        backend.build(tmp_path / f"{name}.onnx", tmp_path, EngineOptions(batch=4), name=name)
    options = ProfileOptions(rounds=10, warmup=1, inferences_per_round=1)
    images = SimpleNamespace(images=np.zeros((4, 3, 8, 8), np.float32))
    config = SimpleNamespace(profile=options)
    job: Any = SimpleNamespace(out=tmp_path, config=config, engine=EngineOptions(batch=4), test=images)
    (stage,) = (stage for stage in stages.STAGES if stage.name == "profile")

    stage.run(job, silent)
    report = ProfileReport.read(tmp_path / "profile.json")
    assert [ratio.conclusion for ratio in report.ratios][:2] == ["faster", "faster"]
    assert len(report.builds) == 9
    assert sorted(path.name for path in (tmp_path / "builds").glob("*.engine.json")) == [
        *("dense-2.engine.json", "dense-3.engine.json"),
        *("forbidden-1.engine.json", "forbidden-2.engine.json", "forbidden-3.engine.json"),
        *("sparse-2.engine.json", "sparse-3.engine.json"),
    ]
    count = len(backend.built)
    stage.run(job, silent)
    assert len(backend.built) == count
