"""Every number, text, list and key of a certificate is changed, one at a time and in concert, with and without a new seal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masksparse_deploy.checker.document import canonical_json, read_certificate
from masksparse_deploy.checker.errors import DamagedError
from masksparse_deploy.checker.findings import Finding, Report
from masksparse_deploy.checker.texts import data_free_statement, end_to_end_detail, radius_in, samples_statement
from tests.checker.cases import SAMPLE_COUNT, Case, check_content, tampered

Content = dict[str, Any]


def wrong(report: Report | DamagedError) -> list[Finding]:
    assert isinstance(report, Report), report
    return [finding for finding in report.findings if finding.status == "wrong"]


def test_the_certificate_itself_is_verified(case: Case, tmp_path: Path) -> None:
    report = check_content(case.content, case.sources(), tmp_path, seal=False)
    assert isinstance(report, Report)
    assert [finding for finding in report.findings if finding.status != "verified"] == []
    assert (report.answer, report.exit_code) == ("verified", 0)


def test_it_has_layers_of_both_grids(case: Case) -> None:
    """So that what is tampered with matters."""
    assert {layer["method"] for layer in case.content["layers"]} == {"grid", "padded grid"}
    assert all(layer["bias_difference"] > 0 for layer in case.content["layers"][:2])


def test_without_images_only_samples_are_left_out(case: Case, tmp_path: Path) -> None:
    report = check_content(case.content, case.sources(with_images=False), tmp_path, seal=False)
    assert isinstance(report, Report)
    left_out = [finding for finding in report.findings if finding.status != "verified"]
    assert left_out and all(finding.needs_images for finding in left_out)
    assert not any(finding.subject.startswith("layer ") for finding in left_out)
    assert (report.answer, report.exit_code) == ("verified except what needs the images", 0)


@pytest.mark.slow
def test_any_change_breaks_the_seal(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "tampered.json"
    count = 0
    for what, content in tampered(case.content):
        path.write_bytes(canonical_json(content))
        try:
            record = read_certificate(path)
        except DamagedError:
            continue
        assert record.seal_sha256 != record.sealed_sha256, what
        count += 1
    assert count > 400


@pytest.mark.slow
def test_any_change_is_caught_although_sealed_anew(case: Case, tmp_path: Path) -> None:
    sources, missed = case.sources(), []
    changes = [(what, content) for what, content in tampered(case.content) if not what.startswith("seal_sha256")]
    for what, content in changes:
        report = check_content(content, sources, tmp_path)
        if isinstance(report, Report) and report.answer != "wrong":
            missed.append(what)
    assert missed == []
    assert len(changes) > 800


@pytest.mark.slow
def test_without_images_no_change_but_of_a_median_passes(case: Case, tmp_path: Path) -> None:
    """The medians over samples are in no field, and the images are needed to compute them."""
    sources = case.sources(with_images=False)
    for what, content in tampered(case.content):
        report = check_content(content, sources, tmp_path)
        if isinstance(report, Report) and report.answer != "wrong":
            assert what.startswith("seal_sha256") or ".detail: the number" in what, what
            index = int(what.split(".")[1]) if what.startswith("claims") else 0
            assert any(
                finding.needs_images and finding.what == "detail" and finding.subject.endswith(content["claims"][index]["name"])
                for finding in report.findings
            )


def smaller_layer(content: Content) -> None:
    """One layer's bound, and all that follows from it in the layerwise claim."""
    layer = max(content["layers"], key=lambda entry: entry["difference_norm"])
    layer["difference_norm"] = layer["removed_norm"] = layer["difference_norm"] * 0.999
    claim = content["claims"][0]
    worst = max(content["layers"], key=lambda entry: entry["difference_norm"])
    claim["bound"] = worst["difference_norm"]
    claim["tightness"] = claim["bound"] / claim["measured"]


def smaller_data_free(content: Content) -> None:
    claim = content["claims"][1]
    set_bound(claim, claim["bound"] * 0.999)
    claim["statement"] = data_free_statement(radius_in(claim["statement"]) or "", claim["bound"])


def larger_radius(content: Content) -> None:
    claim = content["claims"][1]
    radius = radius_in(claim["statement"]) or ""
    larger = f"{float(radius) * 1.01:.6g}"
    claim["statement"] = claim["statement"].replace(radius, larger)
    claim["assumptions"] = [text.replace(radius, larger) for text in claim["assumptions"]]


def smaller_hybrid(content: Content) -> None:
    claim = content["claims"][4]
    remark = claim["detail"].partition(" Over")
    set_bound(claim, claim["bound"] * 0.99)
    claim["statement"] = samples_statement(SAMPLE_COUNT, claim["bound"])
    claim["detail"] += "".join(remark[1:])


def all_certified(content: Content) -> None:
    for claim in content["claims"][1:]:
        remark = claim["detail"].partition(" Over")
        claim["certified_count"], claim["status"] = claim["sample_count"], "useful"
        claim["detail"] = end_to_end_detail(claim["certified_count"], claim["sample_count"], None) + "".join(remark[1:])


def nothing_claimed(content: Content) -> None:
    """A claim withdrawn as if there were no rule."""
    content["unsupported"] = ["Relu"]
    content["smallest"] = None
    reason = "The network recursion has no rule for Relu; only the layerwise claim holds for this network."
    nothing = {"statement": "Nothing is claimed.", "method": "none", "assumptions": [], "status": "inconclusive"}
    for claim in content["claims"][1:]:
        for field in ("bound", "measured", "tightness", "certified_count", "sample_count"):
            claim[field] = None
        claim.update(nothing, detail=reason)


def other_data(content: Content) -> None:
    old, new = content["data_sha256"], "0" * 64
    content["data_sha256"] = new
    for claim in content["claims"]:
        claim["assumptions"] = [text.replace(old, new) for text in claim["assumptions"]]


def swapped_layers(content: Content) -> None:
    first, second = content["layers"][1], content["layers"][2]
    for field in ("removed_norm", "difference_norm", "dense_norm", "sparse_norm", "bias_difference"):
        first[field], second[field] = second[field], first[field]


def set_bound(claim: Content, bound: float) -> None:
    claim["bound"] = bound
    claim["tightness"] = bound / claim["measured"]
    claim["detail"] = end_to_end_detail(claim["certified_count"], claim["sample_count"], claim["tightness"])


@pytest.mark.parametrize(
    ("attack", "subject", "what"),
    [
        (smaller_layer, "layer ", "difference_norm"),
        (smaller_data_free, "claim end-to-end, data-free", "bound"),
        (larger_radius, "claim end-to-end, data-free", "bound"),
        (smaller_hybrid, "claim end-to-end, hybrid", "bound"),
        (all_certified, "claim end-to-end, hybrid", "certified_count"),
        (nothing_claimed, "certificate", "unsupported"),
        (other_data, "certificate", "data_sha256"),
        (swapped_layers, "layer ", "difference_norm"),
    ],
)
def test_a_change_in_concert_is_caught_where_it_is(
    case: Case, tmp_path: Path, attack: Callable[[Content], None], subject: str, what: str
) -> None:
    content = case.content
    attack(content)
    found = wrong(check_content(content, case.sources(), tmp_path))
    assert any(finding.subject.startswith(subject) and finding.what == what for finding in found), found


@pytest.mark.parametrize("attack", [smaller_layer, smaller_data_free, larger_radius, nothing_claimed, swapped_layers])
def test_what_does_not_depend_on_samples_is_caught_without_images(
    case: Case, tmp_path: Path, attack: Callable[[Content], None]
) -> None:
    content = case.content
    attack(content)
    assert wrong(check_content(content, case.sources(with_images=False), tmp_path))


def test_a_layer_left_out_is_named(case: Case, tmp_path: Path) -> None:
    content = case.content
    del content["layers"][2]
    content["claims"][0]["statement"] = content["claims"][0]["statement"].replace("5 in all", "4 in all")
    content["claims"][0]["detail"] = content["claims"][0]["detail"].replace("layers: 5", "layers: 4")
    (finding,) = (finding for finding in wrong(check_content(content, case.sources(), tmp_path)) if finding.what == "list")
    assert finding.reason == "left out: layer1.conv2"
