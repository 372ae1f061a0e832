"""Certificates of masked positions: verified by other code, and forged masks and figures are found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.certify import operator_norm, run
from masksparse_deploy.certify.layers import layer_bound
from masksparse_deploy.checker.document import seal_of
from masksparse_deploy.checker.findings import Finding, Report
from masksparse_deploy.checker.network import read_network
from masksparse_deploy.core.files import sha256_bytes
from tests.certify.masked import insert_where, with_random_positions
from tests.certify.networks import random_images, random_pair
from tests.checker.cases import SAMPLE_COUNT, Case, Models, check_content, make_case, tampered


def masked_models(seed: int, *, change: str = "mask", side: str = "sparse", constant: float = 0.0) -> Models:
    kinds = [["conv"], ["strided conv"], ["grouped conv", "Relu"], ["dilated conv"], ["residual"], ["max pool"]][seed % 6]
    dense, sparse = random_pair(kinds, seed, change=change)
    rate = [0.05, 0.2, 0.5, 0.8][seed % 4]
    if side != "sparse":
        dense = with_random_positions(dense, seed + 2, rate=rate, constant=constant)
    if side != "dense":
        sparse = with_random_positions(sparse, seed + 3, rate=rate, constant=constant)
    return dense, sparse


def case_of(folder: Path, models: Models) -> Case:
    return make_case(folder, models, random_images(SAMPLE_COUNT + 1).astype(np.float64))


def findings(case: Case, content: dict[str, Any] | None = None) -> list[Finding]:
    report = check_content(content or case.content, case.sources(), case.folder)
    assert isinstance(report, Report), report
    return [finding for finding in report.findings if finding.status != "verified"]


@pytest.mark.parametrize(
    ("seed", "change", "side", "constant"),
    [
        (0, "nothing", "sparse", 0.0),
        (1, "mask", "sparse", 0.0),
        (2, "everything", "sparse", 0.3),
        (3, "nothing", "dense", 0.3),
        (4, "everything", "both", 0.3),
        (5, "nothing", "both", 0.0),
        (8, "mask", "dense", 0.0),
        (10, "mask", "sparse", 0.3),
    ],
)
def test_certificates_of_masked_positions_are_verified(
    tmp_path: Path, seed: int, change: str, side: str, constant: float
) -> None:
    case = case_of(tmp_path, masked_models(seed, change=change, side=side, constant=constant))
    assert findings(case) == []
    assert all(
        claim["method"].endswith("; masked positions as in section 7 of docs/bounds.md") for claim in case.content["claims"]
    )


def test_the_mask_is_read_from_the_file(tmp_path: Path) -> None:
    dense, _ = random_pair([], 0)
    keep = np.arange(49).reshape(7, 7) % 3 > 0
    (tmp_path / "sparse.onnx").write_bytes(insert_where(dense, "Conv0", keep, offset=0.5).SerializeToString())
    network = read_network(tmp_path / "sparse.onnx")
    ((name, masked),) = network.masks.items()
    assert name == "Conv0.out"
    np.testing.assert_array_equal(masked.kept, keep)
    np.testing.assert_allclose(masked.held, network.constants[network.nodes[0].input[2]] + 0.5)
    assert [node.op_type for node in network.nodes[:1]] == ["Conv"] and network.nodes[0].output[0] == name


# --- forged masks: the certificate is about one mask, the file has another


Forgery = Callable[[onnx.ModelProto, onnx.NodeProto], None]


def arrays_of(model: onnx.ModelProto, name: str) -> tuple[onnx.TensorProto, Any]:
    tensor = next(entry for entry in model.graph.initializer if entry.name == name)
    return tensor, numpy_helper.to_array(tensor).copy()


def one_more_position(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    tensor, keep = arrays_of(model, where.input[0])
    keep[0, 0][tuple(np.argwhere(keep[0, 0])[0])] = False
    tensor.CopyFrom(numpy_helper.from_array(keep, tensor.name))


def other_positions(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    tensor, keep = arrays_of(model, where.input[0])
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(keep[..., ::-1]), tensor.name))


def another_constant(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    tensor, constant = arrays_of(model, where.input[2])
    constant[0, 1] += 0.25
    tensor.CopyFrom(numpy_helper.from_array(constant, tensor.name))


@pytest.mark.parametrize("forgery", [one_more_position, other_positions, another_constant])
def test_forged_masks_are_wrong_although_digests_fit(tmp_path: Path, forgery: Forgery) -> None:
    case = case_of(tmp_path, masked_models(1, change="nothing"))
    model = onnx.load(case.sparse)
    forgery(model, next(node for node in model.graph.node if node.op_type == "Where"))
    onnx.save(model, case.sparse)
    content = case.content
    content["sparse_sha256"] = sha256_bytes(case.sparse.read_bytes())
    content["seal_sha256"] = seal_of(content)
    wrong = {(finding.subject.partition(" ")[0], finding.what) for finding in findings(case, content)}
    assert ("claim", "measured") in wrong  # what the networks compute is another thing
    expected = "bias_difference" if forgery is another_constant else "difference_norm"
    assert ("layer", expected) in wrong or forgery is other_positions  # as many positions may have nearly the same norm


def without_annotation(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    del where.metadata_props[:]


def behind_the_activation(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    index = list(model.graph.node).index(where)
    model.graph.node.insert(index, helper.make_node("Relu", [where.input[1]], ["early"], name="early"))
    where = model.graph.node[index + 1]
    where.input[1] = "early"


def exchanged(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    """The constant where the mask keeps."""
    where.input[1], where.input[2] = where.input[2], where.input[1]


def of_each_channel(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    tensor, keep = arrays_of(model, where.input[0])
    tensor.CopyFrom(numpy_helper.from_array(np.repeat(keep, 4, axis=1), tensor.name))


def read_before(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    last = model.graph.node[-1]
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Relu", [where.input[1]], ["seen"], name="seen"))
    assert last.op_type == "Gemm"


@pytest.mark.parametrize("forgery", [without_annotation, behind_the_activation, exchanged, of_each_channel, read_before])
def test_a_where_of_another_form_makes_another_graph(tmp_path: Path, forgery: Forgery) -> None:
    case = case_of(tmp_path, masked_models(0, change="nothing"))
    model = onnx.load(case.sparse)
    forgery(model, next(node for node in model.graph.node if node.op_type == "Where"))
    onnx.save(model, case.sparse)
    (finding,) = (finding for finding in findings(case) if finding.what == "files")
    assert finding.reason.startswith("they do not belong together: ")


def test_a_mask_that_is_broadcast_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, masked_models(0, change="nothing"))
    model = onnx.load(case.sparse)
    where = next(node for node in model.graph.node if node.op_type == "Where")
    tensor, keep = arrays_of(model, where.input[0])
    tensor.CopyFrom(numpy_helper.from_array(keep[:, :, :1], tensor.name))
    onnx.save(model, case.sparse)
    reasons = [finding.reason for finding in findings(case) if finding.what == "files"]
    assert reasons == ["they do not belong together: the mask of 'Conv0.out' has (1, 7) positions, the tensor has (7, 7)"]


def test_a_constant_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    case = case_of(tmp_path, masked_models(0, change="nothing"))
    model = onnx.load(case.sparse)
    where = next(node for node in model.graph.node if node.op_type == "Where")
    tensor, constant = arrays_of(model, where.input[2])
    tensor.CopyFrom(numpy_helper.from_array(constant * np.float32(np.nan), tensor.name))
    onnx.save(model, case.sparse)
    reasons = [finding.reason for finding in findings(case) if finding.what == "files"]
    assert len(reasons) == 1 and "masked positions of 'Conv0.out' hold NaN or infinite values" in reasons[0]


def test_a_where_of_the_networks_own_has_no_rule(tmp_path: Path) -> None:
    """In both files, and no mask of positions: nothing is claimed end to end, and the checker agrees."""
    dense, _ = random_pair([], 0)
    keep = np.arange(49).reshape(7, 7) % 3 > 0
    masked = insert_where(dense, "Conv0", keep)
    for node in masked.graph.node:
        del node.metadata_props[:]
    case = case_of(tmp_path, (masked, masked))
    assert case.content["unsupported"] == ["Where with a computed parameter"]
    assert findings(case) == []


# --- tampered figures


@pytest.mark.slow
def test_any_change_of_a_layer_or_claim_is_caught(tmp_path: Path) -> None:
    case = case_of(tmp_path, masked_models(1))
    sources, missed, count = case.sources(), [], 0
    for what, content in tampered(case.content):
        if not what.startswith(("layers.0", "claims.0", "claims.1.bound", "claims.1.method", "claims.4.bound")):
            continue
        report, count = check_content(content, sources, tmp_path), count + 1
        if isinstance(report, Report) and report.answer != "wrong":
            missed.append(what)
    assert missed == []
    assert count > 60


# --- faults planted in the certify stage


def test_a_forgotten_mask_is_found_although_the_certificate_is_consistent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of layers without their dropped positions: of K - K~ alone."""
    monkeypatch.setattr(run, "layer_bound", lambda *arguments: layer_bound(*arguments[:-1]))
    wrong = {(finding.subject.partition(" ")[0], finding.what) for finding in findings(case_of(tmp_path, masked_models(1)))}
    assert {("layer", "difference_norm"), ("layer", "removed_norm")} <= wrong


def test_neighbours_that_are_forgotten_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = operator_norm.perron_bound
    monkeypatch.setattr(operator_norm, "perron_bound", lambda kept, sizes: true(kept, {(0, 0): sizes[0, 0]}))
    wrong = findings(case_of(tmp_path, masked_models(6, change="nothing")))
    assert any(finding.reason == "below what can be proved here" for finding in wrong)
