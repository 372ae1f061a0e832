"""Baking ONNX files of any origin: what a faulty pass writes is found, and the report tells the rest."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.bake import from_file
from masksparse_deploy.bake.from_file import bake_file
from masksparse_deploy.bake.lint import lint
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import sha256_file
from tests.bake.baking import bake
from tests.bake.file_models import (
    rich_masks,
    rich_model,
)

# The checker ------------------------------------------------------------------------------------------------------------------


class Faulty:
    """Stands for a pass that does something else than it says."""

    def __init__(self, fault: Callable[[onnx.ModelProto], None]) -> None:
        self._fault = fault

    def __call__(self, *arguments: object, **named: object) -> object:
        written = self._original(*arguments, **named)
        path = arguments[1]
        assert isinstance(path, Path)
        if path.name == "sparse.onnx":
            proto = onnx.load(path)
            self._fault(proto)
            onnx.save(proto, path)
        return written

    _original = staticmethod(from_file.write_model)


def tensor(proto: onnx.ModelProto, index: int) -> np.ndarray:
    return numpy_helper.to_array(proto.graph.initializer[index]).copy()


def put_weight_back(proto: onnx.ModelProto) -> None:
    array = tensor(proto, 0)
    array[~rich_masks().layers["conv.weight"].keep] = 1
    proto.graph.initializer[0].raw_data = array.tobytes()


def change_kept_weight(proto: onnx.ModelProto) -> None:
    array = tensor(proto, 1)
    array[rich_masks().layers["fc.weight"].keep] *= np.float32(1.0000001)
    proto.graph.initializer[1].raw_data = array.tobytes()


def negative_zero(proto: onnx.ModelProto) -> None:
    array = tensor(proto, 1)
    array[~rich_masks().layers["fc.weight"].keep] = -0.0
    proto.graph.initializer[1].raw_data = array.tobytes()


def change_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute[0].f = 1.25


def drop_annotation(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].ClearField("metadata_props")


def rename_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 8


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (put_weight_back, r"initializer\[conv\.weight\]: other values"),
        (change_kept_weight, r"initializer\[fc\.weight\]: other values"),
        (negative_zero, r"initializer\[fc\.weight\]: other values"),
        (change_attribute, r"graph\.node\[own\]\.attribute\[alpha\]\.f"),
        (drop_annotation, r"graph\.node\[conv\]\.metadata_props\[author\]"),
        (rename_opset, r"opset_import\[com\.example\]\.version"),
    ],
)
def test_faults_are_found_before_anything_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[onnx.ModelProto], None], finding: str
) -> None:
    monkeypatch.setattr(from_file, "write_model", Faulty(fault))
    with pytest.raises(ArtifactError, match=f"does not conform to its masks .*{finding}"):
        bake(rich_model(), rich_masks(), tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_report_tells_what_was_written(tmp_path: Path) -> None:
    report = bake(rich_model(), rich_masks(), tmp_path)
    out = tmp_path / "out"
    assert BakeReport.read(out / "bake.json") == report
    assert (report.origin, report.probe_sha256, report.opset) == ("onnx", None, 18)
    assert report.dense_sha256 == sha256_file(out / "dense.onnx")
    assert report.sparse_sha256 == sha256_file(out / "sparse.onnx")
    assert str(tmp_path) not in json.dumps(report.model_dump(mode="json"))
    assert [layer.layer for layer in report.layers] == ["conv", "fc"]
    assert lint(out / "sparse.onnx").ok and lint(out / "dense.onnx").ok


def test_progress_is_told(tmp_path: Path) -> None:
    onnx.save(rich_model(), tmp_path / "in.onnx")
    told: list[str] = []
    bake_file(
        tmp_path / "in.onnx",
        rich_masks(),
        BakeOptions(),
        out=tmp_path / "out",
        progress=lambda description, done, total: told.append(description),
    )
    assert told == ["reading", "masking", "converting", "writing", "checking", "baked"]
