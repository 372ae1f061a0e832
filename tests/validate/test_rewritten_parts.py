"""An engine of layers that are computed in parts passes like one of whole layers, and a change in one part is found."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.rewrite.blocks.gather import gather_blocks
from tests.models.make_onnx import MASKED_LAYERS
from tests.validate.deployment import WIDE_GATES, Deployment, deploy, failed, named, set_constant
from tests.validate.test_rewritten import build, validated


def deployment_in_parts(folder: Path) -> Deployment:
    deployment = deploy(folder, pattern=parse_pattern("1x8@0.5"))
    model = ir.load(folder / "sparse.onnx")
    gather_blocks(model, MASKED_LAYERS, part_count=2)
    ir.save(model, folder / "rewritten.onnx")
    build(folder, "rewritten.onnx")
    return deployment


def test_an_engine_in_parts_passes_all_checks(tmp_path: Path) -> None:
    report = validated(deployment_in_parts(tmp_path), gates=WIDE_GATES.model_copy(update={"sparse_layers": 4}))
    assert report.verdict == "pass"
    assert named(report, "rewritten file").verdict == named(report, "weights of the sparse plan").verdict == "pass"
    assert [layer.verdict for layer in report.layers] == ["pass"] * len(MASKED_LAYERS)
    for layer in report.survival:
        # the parts have names of their own, so that what the plan holds of the layer is left to the checks of weights
        assert (layer.engine.state, layer.runs_sparse) == ("not checked", True)
        assert (
            layer.engine.why
            == "it is computed by other operators: see the checks of the rewritten file and of the plan's weights"
        )


def test_a_weight_changed_in_one_part_is_found(tmp_path: Path) -> None:
    deployment = deployment_in_parts(tmp_path)

    def nudge(weight: np.ndarray) -> np.ndarray:
        weight[0, 0, 0, 0] = np.nextafter(weight[0, 0, 0, 0], np.float32(9))
        return weight

    model = onnx.load(tmp_path / "rewritten.onnx")
    set_constant(model, "layer1.conv2.weight/groups/part1", nudge)
    onnx.save(model, tmp_path / "rewritten.onnx")
    build(tmp_path, "rewritten.onnx")
    report = validated(deployment)
    assert failed(report) == {"rewritten file"}
    assert "Concat layer1.conv2: its weights are not the sparse file's, in 1 of " in named(report, "rewritten file").detail
