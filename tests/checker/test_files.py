"""Tampering with the ONNX files, where the attacker writes their new digests and a new seal into the certificate."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.checker.errors import DamagedError, UsageError
from masksparse_deploy.checker.findings import Report
from masksparse_deploy.checker.network import read_network
from masksparse_deploy.checker.sources import Sources
from masksparse_deploy.graph.reader import read_graph
from tests.checker.cases import Case, biased_pair, check_content, make_case, random_images
from tests.models.make_onnx import residual_pair


def one_weight(name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[3] += np.float32(0.01)
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return change


def check_changed(
    case: Case, folder: Path, which: str, change: Callable[[onnx.ModelProto], None], *, with_images: bool = True
) -> Report:
    """Check with one file changed and all digests made to fit."""
    model = onnx.load(folder_file := case.folder / f"{which}.onnx")
    change(model)
    changed = folder / folder_file.name
    changed.write_bytes(model.SerializeToString())
    paths = {"dense": case.dense, "sparse": case.sparse, which: changed}
    images = case.images if with_images else None
    content = {**case.content, f"{which}_sha256": read_network(changed).sha256}
    report = check_content(content, Sources(paths["dense"], paths["sparse"], images), folder)
    assert isinstance(report, Report)
    return report


def wrong(report: Report) -> set[str]:
    return {finding.subject for finding in report.findings if finding.status == "wrong"}


@pytest.mark.parametrize("which", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("layer1.conv2.weight", "layer layer1.conv2"),
        ("layer1.conv1.bias", "layer layer1.conv1"),
        ("layer2.conv2.bias", "layer layer2.conv2"),
        ("fc.weight", "layers"),
        ("layer2.shortcut.bias", "layers"),
    ],
)
def test_one_weight_is_caught_without_any_images(case: Case, tmp_path: Path, which: str, name: str, subject: str) -> None:
    assert subject in wrong(check_changed(case, tmp_path, which, one_weight(name), with_images=False))


def test_one_weight_is_caught_by_the_digest_alone(case: Case, tmp_path: Path) -> None:
    model = onnx.load(case.sparse)
    one_weight("layer1.conv2.weight")(model)
    (tmp_path / "sparse.onnx").write_bytes(model.SerializeToString())
    report = check_content(case.content, Sources(case.dense, tmp_path / "sparse.onnx", None), tmp_path)
    assert isinstance(report, Report)
    (finding,) = (finding for finding in report.findings if finding.what == "sparse_sha256")
    assert (finding.status, finding.reason) == ("wrong", "another file")


def test_a_swapped_pair_is_said_to_be_one(case: Case, tmp_path: Path) -> None:
    report = check_content(case.content, Sources(case.sparse, case.dense, None), tmp_path)
    assert isinstance(report, Report)
    reasons = {finding.what: finding.reason for finding in report.findings if finding.status == "wrong"}
    assert reasons["dense_sha256"] == reasons["sparse_sha256"] == "the two files are given in each other's place"


def test_a_swapped_pair_with_swapped_digests_has_other_norms(case: Case, tmp_path: Path) -> None:
    content = case.content
    content["dense_sha256"], content["sparse_sha256"] = content["sparse_sha256"], content["dense_sha256"]
    report = check_content(content, Sources(case.sparse, case.dense, None), tmp_path)
    assert isinstance(report, Report)
    assert "layer layer1.conv1" in wrong(report)


def rename(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = "other"


def restride(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    (attribute,) = (attribute for attribute in node.attribute if attribute.name == "pads")
    attribute.ints[:] = [0, 0, 2, 2]


def reoperate(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Tanh"


def nan(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (rename, "is another one, 'other' (Conv), or used otherwise"),
        (restride, "or used otherwise"),
        (reoperate, "is another one"),
        (nan, "holds NaN or infinite values in "),
    ],
)
def test_files_of_different_graphs_do_not_belong_together(
    case: Case, tmp_path: Path, change: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    report = check_changed(case, tmp_path, "sparse", change)
    (finding,) = (finding for finding in report.findings if finding.what == "files")
    assert finding.reason.startswith("they do not belong together: ")
    assert reason in finding.reason


def test_equal_files_have_no_layers_and_nothing_is_wrong_with_that(tmp_path: Path) -> None:
    dense, _ = residual_pair(channels=8, classes=4)
    case = make_case(tmp_path, (dense, dense), random_images())
    report = check_content(case.content, case.sources(), tmp_path, seal=False)
    assert isinstance(report, Report)
    assert [finding for finding in report.findings if finding.status != "verified"] == []
    listed = {**case.content, "layers": [{**make_layer(), "node": "stem"}]}
    found = check_content(listed, case.sources(), tmp_path)
    assert isinstance(found, Report)
    assert "neither different nor annotated: stem" in {finding.reason for finding in found.findings}


def make_layer() -> dict[str, object]:
    norms = dict.fromkeys(("removed_norm", "difference_norm", "dense_norm", "sparse_norm", "bias_difference"), 0.0)
    return {"layer": "stem", "node": "stem", "initializer": "stem.weight", **norms, "output_positions": 64, "method": "matrix"}


def test_weights_beside_the_file_are_in_the_digest(tmp_path: Path) -> None:
    model = biased_pair()[0]
    path = tmp_path / "outside.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="outside.bin", size_threshold=0)
    digest = read_network(path).sha256
    assert digest == read_graph(path).sha256
    weights = bytearray((tmp_path / "outside.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "outside.bin").write_bytes(weights)
    assert read_network(path).sha256 == read_graph(path).sha256 != digest


def test_names_of_unnamed_nodes_and_constants_behind_operators_are_those_of_the_certificate(tmp_path: Path) -> None:
    dense, sparse = biased_pair()
    for model in (dense, sparse):
        for node in model.graph.node:
            node.name = ""
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "layer1.conv1.weight")
        turned = numpy_helper.to_array(weight).transpose(1, 0, 2, 3)
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned), weight.name))
        reader = next(node for node in model.graph.node if weight.name in node.input)
        reader.input[1] = "turned"
        model.graph.node.insert(0, onnx.helper.make_node("Transpose", [weight.name], ["turned"], perm=[1, 0, 2, 3]))
    case = make_case(tmp_path, (dense, sparse), random_images())
    report = check_content(case.content, case.sources(), tmp_path, seal=False)
    assert isinstance(report, Report)
    assert report.answer == "verified", list(report.lines())
    assert [layer["layer"] for layer in case.content["layers"]][:2] == ["stem", "layer1.conv1"]


def test_files_that_are_none(tmp_path: Path, case: Case) -> None:
    (tmp_path / "cut.onnx").write_bytes(case.dense.read_bytes()[:500])
    with pytest.raises(DamagedError, match=r"cut\.onnx is damaged or not a valid ONNX file"):
        read_network(tmp_path / "cut.onnx")
    with pytest.raises(UsageError, match="does not exist; give the files that the certificate is about"):
        read_network(tmp_path / "none.onnx")


def test_images_of_another_shape_are_refused(case: Case) -> None:
    other = type(case.images)(images=np.zeros((2, 1, 8, 8), np.float32), labels=None)
    with pytest.raises(UsageError, match=r"images have the shape \(2, 1, 8, 8\), the networks take \(count, 3, 8, 8\)"):
        Sources(case.dense, case.sparse, other)


@pytest.mark.parametrize(
    ("domain", "opset", "words"),
    [
        ("", 20, r"its function \.Relu stands for an operator that runtimes have"),
        ("com.microsoft", 20, r"its function com\.microsoft\.Relu stands for an operator"),
        ("own", 17, "its function Relu is written for another opset than the model"),
        (None, 11, "it imports several versions of the standard operators"),
    ],
)
def test_operators_that_runtimes_may_take_for_others_are_refused(
    tmp_path: Path, domain: str | None, opset: int, words: str
) -> None:
    model = residual_pair()[0]
    imported = helper.make_opsetid("", opset)
    if domain is None:
        model.opset_import.append(imported)
    else:
        body = [helper.make_node("Tanh", ["a"], ["b"])]
        model.functions.append(helper.make_function(domain, "Relu", ["a"], ["b"], body, [imported]))
        next(node for node in model.graph.node if node.op_type == "Relu").domain = domain
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(DamagedError, match=words):
        read_network(tmp_path / "model.onnx")
