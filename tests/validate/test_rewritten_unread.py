"""An engine without channels that nobody reads passes; layers whose tensors it has no more are named, and faults are found."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.rewrite.blocks.gather import gather_blocks
from masksparse_deploy.rewrite.blocks.unread import leave_out_unread
from tests.models.make_onnx import MASKED_LAYERS
from tests.validate.deployment import deploy, failed, named, set_constant
from tests.validate.test_rewritten import build, validated


def test_an_engine_without_unread_channels_is_validated(tmp_path: Path) -> None:
    deployment = deploy(tmp_path, pattern=parse_pattern("1x8@0.75"))
    model = ir.load(tmp_path / "sparse.onnx")
    known = {value.name for node in model.graph for value in node.outputs}
    gather_blocks(model, MASKED_LAYERS[:3])  # what the fourth reads is computed whole
    leave_out_unread(model, known, 1)
    fewer = [node.name for node in model.graph if keys.HELD_CHANNELS in node.metadata_props]
    ir.save(model, tmp_path / "rewritten.onnx")
    build(tmp_path, "rewritten.onnx")
    report = validated(deployment)
    assert report.verdict == "pass" and named(report, "weights of the sparse plan").verdict == "pass"
    assert fewer == ["layer1.conv1"]
    (layer,) = (layer for layer in report.survival if layer.layer in fewer)
    assert (layer.engine.state, layer.runs_sparse) == ("not checked", True)
    assert layer.engine.why.startswith("it computes only output channels that are read: see the checks of the rewritten file")
    assert "2 of 4 changed layers were not compared" in named(report, "layers in another form").detail

    forged = onnx.load(tmp_path / "rewritten.onnx")
    set_constant(forged, "layer1.conv1.weight/groups/read", lambda weight: np.nextafter(weight, np.float32(9)))
    onnx.save(forged, tmp_path / "rewritten.onnx")
    build(tmp_path, "rewritten.onnx")
    report = validated(deployment)
    assert failed(report) == {"rewritten file"}
