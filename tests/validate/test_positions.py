"""A deployed network with masked positions, and what validation says of it when something is wrong."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file

from masksparse_deploy.bake.storage import to_proto
from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.baking import BakedPositions, BakeReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.positions import position_masks
from masksparse_deploy.graph.reader import parse_graph, read_graph
from masksparse_deploy.rewrite.rows.grouping import GroupCosts
from masksparse_deploy.rewrite.rows.transform import transform
from masksparse_deploy.validate.layers import comparable, layer_pairs
from masksparse_deploy.validate.positions import CHECK_NAME, check_positions
from masksparse_deploy.validate.rewritten import compared_layers
from tests.models.make_onnx import MASKED_LAYERS, residual_pair
from tests.models.positions import random_positions, with_positions
from tests.validate.deployment import OPTIONS, Deployment, failed, named, set_constant
from tests.validate.test_rewritten import rewrite_report

KEEP, CONSTANT = "layer1.conv1.out.kept_positions", "layer1.conv1.out.dropped_value"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Masks of positions alone in layer1.conv1 and layer2.conv2, with those of weights in the others."""
    folder = tmp_path_factory.mktemp("positions")
    dense, sparse = residual_pair()
    sparse = with_positions(sparse, random_positions())
    for name, model in (("dense", dense), ("sparse", sparse)):
        onnx.save(model, folder / f"{name}.onnx")
        OnnxRuntimeBackend().build(folder / f"{name}.onnx", folder, OPTIONS, name=name)
    graphs = [read_graph(folder / f"{name}.onnx") for name in ("dense", "sparse")]
    images = np.random.default_rng(1).standard_normal((48, 3, 8, 8), dtype=np.float32)
    logits = [evaluate(graph, images)["logits"] for graph in graphs]
    probe = {"images": images[:8], "dense_outputs": logits[0][:8], "sparse_outputs": logits[1][:8]}
    save_file({name: array.astype(np.float32) for name, array in probe.items()}, folder / "probe.safetensors")
    samples = Samples(images, logits[0].argmax(1))
    options = CertifyOptions(sample_count=16, grid=16)
    certificate = certify(folder / "dense.onnx", folder / "sparse.onnx", samples, options)
    return Deployment(folder=folder, samples=samples, certificate=certificate)


@pytest.fixture
def deployment(template: Deployment, tmp_path: Path) -> Deployment:
    """A copy that a test may damage."""
    shutil.copytree(template.folder, tmp_path, dirs_exist_ok=True)
    return Deployment(folder=tmp_path, samples=template.samples, certificate=template.certificate)


def bake_report(folder: Path) -> BakeReport:
    """What baking would have reported of the positions."""
    sparse = read_graph(folder / "sparse.onnx")
    rows = tuple(
        BakedPositions(
            layer=masked.layer,
            node=masked.conv.name,
            where=masked.where.name,
            height=masked.keep.shape[0],
            width=masked.keep.shape[1],
            kept_count=int(masked.keep.sum()),
            mask_sha256=masked.where.metadata["masksparse.positions"],
            keep=np.packbits(masked.keep).tobytes().hex(),
            mac_count=None,
        )
        for masked in position_masks(sparse).values()
    )
    return BakeReport(
        dense_sha256="0" * 64,
        sparse_sha256=sparse.sha256,
        mask_set_sha256="0" * 64,
        probe_sha256=None,
        opset=20,
        precision="fp32",
        statistics_updated=False,
        layers=(),
        skipped=(),
        positions=rows,
    )


def test_a_sound_pair_passes(template: Deployment) -> None:
    report = template.validate(baked=bake_report(template.folder))
    assert report.verdict == "pass", [check for check in report.checks if check.verdict != "pass"]
    assert {layer.layer for layer in report.layers} == set(MASKED_LAYERS)
    for layer in report.layers:
        assert layer.verdict == "pass"
        assert 1e-3 < layer.rounding_ratio < 1
        # By the certificate's own norms, before a Relu, with half of the positions left out
        assert layer.tightness is not None and 1 < layer.tightness < 20
    assert "3 convolutions mask positions" in named(report, CHECK_NAME).detail
    assert "read back from the plan" in named(report, CHECK_NAME).detail


def test_leaving_positions_out_is_attributed_to_the_masks(template: Deployment) -> None:
    attribution = template.validate().attribution
    assert attribution is not None and attribution.output is not None
    # Weights and biases are those of the dense network: all but FP32's rounding is what the masks leave out
    for parts in (attribution.output, *(layer.parts for layer in attribution.layers)):
        assert parts.mask == pytest.approx(parts.total, rel=1e-4)
        assert parts.new_values == 0
        assert parts.mask > 0.05


def test_a_plan_that_computes_other_positions(deployment: Deployment) -> None:
    deployment.change_plan(lambda model: set_constant(model, KEEP, lambda keep: ~keep))
    report = deployment.validate()
    assert report.verdict == "fail"
    assert failed(report) >= {CHECK_NAME, "sparse engine against float64", "sparse engine against PyTorch"}
    assert "layer1.conv1: the plan masks other positions than the file" in named(report, CHECK_NAME).detail


def test_a_plan_that_holds_zeros_instead_of_the_bias(deployment: Deployment) -> None:
    deployment.change_plan(lambda model: set_constant(model, CONSTANT, np.zeros_like))
    report = deployment.validate()
    assert failed(report) >= {CHECK_NAME, "sparse engine against float64"}
    assert "layer1.conv1: dropped positions hold something else in the plan" in named(report, CHECK_NAME).detail


def test_a_plan_that_computes_all_positions(deployment: Deployment) -> None:
    def bypass(model: onnx.ModelProto) -> None:
        where = next(node for node in model.graph.node if node.op_type == "Where")
        replacement = onnx.helper.make_node("Identity", [where.input[1]], list(where.output), name=where.name)
        where.CopyFrom(replacement)

    deployment.change_plan(bypass)
    report = deployment.validate()
    assert CHECK_NAME in failed(report)
    assert "the plan has no Where of stored constants behind it" in named(report, CHECK_NAME).detail


def test_a_plan_that_masks_another_layer(deployment: Deployment) -> None:
    def bypass(model: onnx.ModelProto) -> None:
        wheres = {node.name: node for node in model.graph.node if node.op_type == "Where"}
        wheres["layer1.conv2.positions"].input[1] = wheres["layer1.conv1.positions"].input[1]

    deployment.change_plan(bypass)
    report = deployment.validate()
    assert failed(report) >= {CHECK_NAME, "sparse engine against float64"}
    assert "layer1.conv2: its mask is behind another operator in the plan" in named(report, CHECK_NAME).detail


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "the file masks positions, and the bake report has none of it"),
        (
            lambda rows: (rows[0].model_copy(update={"node": "gone"}), *rows[1:]),
            "gone: the bake report has masked positions of",
        ),
        (lambda rows: (rows[0].model_copy(update={"keep": "ff0f"}), *rows[1:]), "the file masks other positions than the bake"),
    ],
)
def test_a_file_that_is_not_as_baked(change, message: str, template: Deployment) -> None:  # type: ignore[no-untyped-def]
    report = bake_report(template.folder)
    baked = report.model_copy(update={"positions": change(report.positions)})
    check = check_positions(read_graph(template.folder / "sparse.onnx"), None, baked, is_rewritten=False)
    assert check.verdict == "fail"
    assert re.search(message, check.detail)


def test_a_file_whose_dropped_positions_hold_no_bias(template: Deployment) -> None:
    model = onnx.load(template.folder / "sparse.onnx")
    set_constant(model, CONSTANT, np.zeros_like)
    check = check_positions(parse_graph(model.SerializeToString(), name="sparse.onnx"), None, None, is_rewritten=False)
    assert check.verdict == "fail"
    assert "something else than the bias of layer1.conv1" in check.detail


def test_a_certificate_that_leaves_a_masked_layer_out(template: Deployment) -> None:
    layers = tuple(layer for layer in template.certificate.layers if layer.node != "layer1.conv1")
    certificate = template.certificate.model_copy(update={"layers": layers})
    graphs = [read_graph(template.folder / f"{name}.onnx") for name in ("dense", "sparse")]
    with pytest.raises(ArtifactError, match=r"the certificate has no bound for the layer layer1\.conv1"):
        layer_pairs(graphs[0], graphs[1], certificate)


def test_layers_that_the_engine_holds_in_another_form_are_named(template: Deployment) -> None:
    graphs = [read_graph(template.folder / f"{name}.onnx") for name in ("dense", "sparse")]
    pairs = layer_pairs(graphs[0], graphs[1], template.certificate)
    sparse = graphs[1]
    hidden = next(pair.sparse.output for pair in pairs if pair.bound.node == "layer1.conv2")
    nodes = tuple(
        dataclasses.replace(node, outputs=tuple(f"{name}.rows" if name == hidden else name for name in node.outputs))
        for node in sparse.nodes
    )
    compared = comparable(pairs, dataclasses.replace(sparse, nodes=nodes))
    left = {pair.bound.node for pair in pairs} - {pair.bound.node for pair in compared}
    assert "layer1.conv2" in left
    assert comparable(pairs, sparse) == pairs

    check = compared_layers(pairs, compared)
    assert (check.verdict, check.decides, check.measured) == ("inconclusive", False, len(left))
    assert "not compared one by one: the rewritten file has no tensor that is their input or output" in check.detail


@pytest.fixture(scope="module")
def rows(template: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """The same with an engine that holds the three masked layers as rows."""
    folder = tmp_path_factory.mktemp("rows")
    shutil.copytree(template.folder, folder, dirs_exist_ok=True)
    model = ir.load(folder / "sparse.onnx")
    transform(model, dict.fromkeys(random_positions(), GroupCosts()))
    onnx.save(to_proto(model), folder / "rewritten.onnx")
    OnnxRuntimeBackend().build(folder / "rewritten.onnx", folder, OPTIONS, name="sparse")
    return Deployment(folder=folder, samples=template.samples, certificate=template.certificate)


def validated(deployment: Deployment) -> ValidationReport:
    arguments = {"rewrite": rewrite_report(deployment.folder), "rewritten_onnx": deployment.folder / "rewritten.onnx"}
    return deployment.validate(**arguments, baked=bake_report(deployment.folder))


def test_layers_held_as_rows_are_compared_as_the_images_they_are(rows: Deployment) -> None:
    report = validated(rows)
    assert report.verdict == "pass", [check for check in report.checks if check.verdict != "pass"]
    assert {layer.node: layer.verdict for layer in report.layers} == dict.fromkeys(MASKED_LAYERS, "pass")
    assert all(1e-3 < layer.rounding_ratio < 1 for layer in report.layers)
    assert "layers in another form" not in {check.name for check in report.checks}
    # what 2:4 drops of their weights is multiplied
    assert {layer.layer: layer.runs_sparse for layer in report.survival} == dict.fromkeys(MASKED_LAYERS, False)
    assert named(report, CHECK_NAME).detail.endswith("see the check of the rewritten file")
    graph = read_graph(rows.folder / "rewritten.onnx")
    assert not {"layer1.conv1.out", "layer1.relu1.out"} & {name for node in graph.nodes for name in node.outputs}


def test_a_weight_of_rows_changed_in_the_plan(rows: Deployment, tmp_path: Path) -> None:
    shutil.copytree(rows.folder, tmp_path, dirs_exist_ok=True)
    deployment = Deployment(folder=tmp_path, samples=rows.samples, certificate=rows.certificate)
    graph = read_graph(tmp_path / "rewritten.onnx")
    name = next(node.inputs[1] for node in graph.nodes if node.op == "Gemm")

    def change(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        array[np.unravel_index(np.abs(array).argmax(), array.shape)] *= 1.01
        return array

    deployment.change_plan(lambda model: set_constant(model, name, change))
    report = validated(deployment)
    assert report.verdict == "fail"
    assert failed(report) >= {"weights of the sparse plan", "sparse engine against float64"}


def test_rows_read_from_elsewhere_in_the_rewritten_file(rows: Deployment, tmp_path: Path) -> None:
    shutil.copytree(rows.folder, tmp_path, dirs_exist_ok=True)
    deployment = Deployment(folder=tmp_path, samples=rows.samples, certificate=rows.certificate)
    model = onnx.load(tmp_path / "rewritten.onnx")
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Gather")
    set_constant(model, name, lambda indices: np.where(np.arange(len(indices)) == 5, indices[6], indices))
    onnx.save(model, tmp_path / "rewritten.onnx")
    OnnxRuntimeBackend().build(tmp_path / "rewritten.onnx", tmp_path, OPTIONS, name="sparse")
    report = validated(deployment)
    assert failed(report) >= {"rewritten file", "sparse engine against float64", "sparse engine against PyTorch"}
