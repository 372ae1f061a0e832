"""Every kind of fault once on a tiny network: what docs/measurements/planted_faults.md says of them, found or missed."""

from pathlib import Path

import onnx
import pytest

from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.annotations import PATTERN
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import read_graph
from tests.models.make_int8 import INT8_MASKED, int8_images, int8_pair
from tests.models.make_onnx import MASKED_LAYERS, set_properties
from tests.validate.deployment import OPTIONS, WIDE_GATES, deploy
from tools.faults import FAULTS, Fault
from tools.planted_faults import Case, Finding, find, smallest, table

CERTIFY = CertifyOptions(sample_count=2, grid=8)
BEYOND = "outputs clipped beyond what any sample reaches"
BY_NAME = {fault.name: fault for fault in FAULTS}
# What tells it of a runtime that computes something else than the file, besides the two references of outputs: the layers that
# are named. A residual addition and the images are no layer's own.
NAMED = {
    "one weight 10 % smaller": {"layer1.conv2"},
    "one weight of the other sign": {"layer1.conv2"},
    "one weight 10 % smaller in a layer without a mask": {"stem"},
    "two layers swapped": {"layer1.conv1", "layer1.conv2"},
    "a bias left out": {"layer1.conv2"},
    "the mask of another layer": {"layer1.conv2"},
    "no masks": set(MASKED_LAYERS),
    "channels permuted": {"layer1.conv2"},
    "an extra Relu": {"layer1.conv2"},
    "a residual addition left out": set(),
    "padding on the wrong side": {"layer1.conv2"},
    "FP16 operands where FP32 was claimed": {*MASKED_LAYERS, "stem"},
    "images 2 % brighter": set(),
    "outputs clipped at half their largest value": {"layer1.conv2"},
    BEYOND: set(),
}


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = deploy(tmp_path_factory.mktemp("fp32"))
    return Case(
        folder=made.folder,
        samples=made.samples,
        certificate=made.certificate,
        gates=WIDE_GATES,
        engine=OPTIONS,
        certify=CERTIFY,
    )


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("int8")
    for name, model in zip(("dense", "sparse"), int8_pair(signed=False), strict=True):
        for node in model.graph.node:
            if node.name in INT8_MASKED:
                set_properties(node, {PATTERN: "2:4"} if name == "sparse" else {})
        onnx.save(model, folder / f"{name}.onnx")
        OnnxRuntimeBackend().build(folder / f"{name}.onnx", folder, OPTIONS, name=name)
    images = int8_images()
    samples = Samples(images, evaluate(read_graph(folder / "dense.onnx"), images)["logits"].argmax(1))
    certificate = certify(folder / "dense.onnx", folder / "sparse.onnx", samples, CERTIFY)
    return Case(folder=folder, samples=samples, certificate=certificate, gates=WIDE_GATES, engine=OPTIONS, certify=CERTIFY)


def found(case: Case, name: str, place: str, folder: Path) -> Finding:
    finding = find(case, BY_NAME[name], place, folder)
    assert finding is not None
    return finding


def test_without_a_fault_nothing_is_found(fp32: Case, int8: Case, tmp_path: Path) -> None:
    for case in (fp32, int8):
        assert find(case, Fault(name="none", plant=lambda site: None), "runtime", tmp_path) is None
        harmless = Fault(name="a name", plant=lambda site: setattr(site.model, "producer_name", "another"))
        for place in ("runtime", "plan", "file"):
            (tmp_path / f"{case.precision}-{place}").mkdir()
            finding = find(case, harmless, place, tmp_path / f"{case.precision}-{place}")
            assert finding is not None and finding.found_by == () and finding.named == (), finding.refusal


@pytest.mark.parametrize("name", NAMED)
def test_a_runtime_that_computes_something_else(fp32: Case, tmp_path: Path, name: str) -> None:
    finding = found(fp32, name, "runtime", tmp_path)
    assert set(finding.named) == NAMED[name]
    assert ({"float64", "PyTorch"} <= set(finding.found_by)) == (name != BEYOND)
    assert finding.report is not None and finding.report.verdict == ("pass" if name == BEYOND else "fail")


def test_every_fault_is_tried() -> None:
    assert NAMED.keys() | {"stale batch norm"} == {fault.name for fault in FAULTS if "fp32" in fault.precisions}


def test_statistics_are_not_stale_where_none_were_estimated_anew(fp32: Case, tmp_path: Path) -> None:
    assert find(fp32, BY_NAME["stale batch norm"], "runtime", tmp_path) is None


@pytest.mark.parametrize("name", ["one weight 10 % smaller", "an extra Relu", "two layers swapped"])
def test_a_plan_that_is_not_its_files(fp32: Case, tmp_path: Path, name: str) -> None:
    finding = found(fp32, name, "plan", tmp_path)
    # the layers are compared in an engine built anew, which is sound: the deployed one is found to differ from it
    assert {"rebuilt", "float64", "PyTorch"} <= set(finding.found_by) and "layers" not in finding.found_by
    assert ("weights" in finding.found_by) == (name != "an extra Relu")


@pytest.mark.parametrize("name", ["one weight 10 % smaller", "an extra Relu", "a bias left out"])
def test_a_faulty_export_is_found_by_pytorch_alone(fp32: Case, tmp_path: Path, name: str) -> None:
    finding = found(fp32, name, "file", tmp_path)
    assert finding.found_by == ("PyTorch",), finding.refusal


def test_a_file_that_was_changed_afterwards_is_refused(fp32: Case, tmp_path: Path) -> None:
    finding = found(fp32, "one weight 10 % smaller", "digests", tmp_path)
    assert finding.found_by == ("refused",)
    assert "the sparse engine was built from another sparse ONNX file" in finding.refusal


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS if fault.precisions == ("int8",)])
def test_scales_and_zero_points(int8: Case, tmp_path: Path, name: str) -> None:
    finding = found(int8, name, "runtime", tmp_path)
    # the grid of what conv2 reads is the one that conv1 writes on
    named = "conv2" if "weight" in name else "conv1"
    assert "layers" in finding.found_by and finding.named == (named,)


@pytest.mark.slow
def test_the_smallest_wrong_weight(fp32: Case) -> None:
    k = smallest(fp32)
    # read back, any other number is found; layer by layer it takes more than rounding, in outputs still more
    assert k["weights"] == 24 and 24 > k["layers"] > k["float64"] >= k["PyTorch"] > 1


def test_the_table(fp32: Case, tmp_path: Path) -> None:
    findings = []
    for place, name in (("runtime", "two layers swapped"), ("runtime", BEYOND), ("digests", "one weight 10 % smaller")):
        (tmp_path / f"{place} {name}").mkdir()
        findings.append(found(fp32, name, place, tmp_path / f"{place} {name}"))
    head, _, swapped, clipped, refused = table(findings)
    cells = dict(zip(head.split(" | "), swapped.split(" | "), strict=True))
    assert cells["named"] == "its layers" and cells["verdict"] == "fail"
    assert cells["weights"] == "**2**" and cells["layers"].startswith("**2, ")
    assert "| **missed** (pass) | nothing |" in clipped
    assert "| **refused**: the sparse engine was built from another" in refused
    assert len({line.count("|") for line in (head, swapped, clipped, refused)}) == 1
