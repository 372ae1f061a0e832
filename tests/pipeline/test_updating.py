"""New weights under the masks of a finished run, through the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from masksparse_deploy.cli.main import run
from masksparse_deploy.core.artifacts.certificate import DATA_FREE, Certificate
from masksparse_deploy.core.artifacts.updating import UpdateReport
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.pipeline.update_report import Certified, grown_layers, is_within_layerwise
from masksparse_deploy.pipeline.updating import AGAINST_DENSE, AGAINST_MASKED
from tests.project import make_project

State = dict[str, torch.Tensor]


def moved(folder: Path, share: float, *, seed: int = 0) -> Path:
    """A checkpoint with every weight moved by normal noise of `share` of its tensor's spread."""
    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    new = {
        name: tensor + share * tensor.std() * torch.randn(tensor.shape, generator=generator) if tensor.ndim > 1 else tensor
        for name, tensor in state.items()
    }
    save_file(new, folder / f"moved-{share}.safetensors")
    return folder / f"moved-{share}.safetensors"


def update(config: Path, weights: Path, out: Path, *options: str) -> UpdateReport:
    assert run(["update", str(config), "--weights", str(weights), "--out", str(out), *options]) == 0
    return UpdateReport.read(out / "update.json")


def digests(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_file(file) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a finished run with magnitude masks and statistics of their own."""
    config = make_project(tmp_path_factory.mktemp("project"), mask={"method": "magnitude"})
    assert run(["deploy", str(config)]) == 0
    return config


@pytest.fixture(scope="module")
def updated(finished: Path) -> tuple[Path, Path, UpdateReport]:
    """The old folder, the new one, and the report of a move by a fiftieth."""
    folder = finished.parent
    before = digests(folder / "out")
    report = update(finished, moved(folder, 0.02), folder / "new")
    assert digests(folder / "out") == before
    return folder / "out", folder / "new", report


def test_the_masks_stay_and_the_rest_is_made_for_the_new_weights(updated: tuple[Path, Path, UpdateReport]) -> None:
    old, new, report = updated
    before, after = read_mask_set(old / "masks.safetensors"), read_mask_set(new / "masks.safetensors")
    assert {name: mask.digest for name, mask in before.layers.items()} == {n: mask.digest for n, mask in after.layers.items()}
    assert before.source_sha256 != after.source_sha256
    assert (report.masks_old_sha256, report.masks_new_sha256) == (before.digest, after.digest)
    assert report.statistics == "re-estimated"
    assert before.statistics.keys() == after.statistics.keys()
    assert any(not np.array_equal(array, after.statistics[name]) for name, array in before.statistics.items())
    names = {file.name for file in new.iterdir()}
    assert names >= {"dense.onnx", "sparse.engine.json", "profile.json", "validation.json", "report.html", AGAINST_DENSE}
    assert "What the new weights changed" in (new / "report.html").read_text()


def test_bounds_against_all_three_networks_are_above_what_is_measured(updated: tuple[Path, Path, UpdateReport]) -> None:
    old, new, report = updated
    images = np.load(old.parent / "test.npz")["images"]
    sparse = outputs(new / "sparse.onnx", images)
    others = (new / "dense.onnx", old / "sparse.onnx", old / "dense.onnx")
    assert [comparison.against for comparison in report.comparisons] == [
        "dense, new weights",
        "masked, old weights",
        "dense, old weights",
    ]
    for comparison, other in zip(report.comparisons, others, strict=True):
        distances = np.linalg.norm(sparse - outputs(other, images), axis=1)
        assert len(comparison.claims) == 4
        for claim in comparison.claims:
            # the data-free claim is about all images, the others about the first 16
            measured = distances.max() if claim.name == DATA_FREE else distances[:16].max()
            assert claim.bound is not None and claim.bound >= measured
            assert claim.triangle is None or claim.triangle >= measured
    assert all(claim.triangle is None for comparison in report.comparisons[:2] for claim in comparison.claims)
    assert all(claim.triangle is not None for claim in report.comparisons[2].claims)
    # the update is small, what the masks and new statistics do is not
    assert report.comparisons[1].claims[-1].bound < 0.2 * report.comparisons[2].claims[-1].bound  # type: ignore[operator]


def outputs(path: Path, images: Any) -> Any:
    graph = read_graph(path)
    return evaluate(graph, images)[graph.outputs[0]]


def test_what_the_mask_removes_is_bounded_from_the_old_norm_and_the_update(updated: tuple[Path, Path, UpdateReport]) -> None:
    _, _, report = updated
    masked = [layer for layer in report.layers if layer.removed_norm_old]
    assert len(masked) == 3
    for layer in masked:
        assert layer.removed_norm_new is not None and layer.removed_norm_sum is not None
        assert layer.removed_norm_frobenius is not None
        # both are computed, each at most 2^-13 above its norm
        assert layer.removed_norm_new <= layer.removed_norm_sum * (1 + 2**-13)
        assert layer.removed_norm_sum <= layer.removed_norm_frobenius * (1 + 2**-13)


def test_layers_whose_bound_grew_by_more_are_named(updated: tuple[Path, Path, UpdateReport]) -> None:
    layers = list(updated[2].layers)
    # not the stem, which the mask leaves alone
    old = layers[1].difference_norm_old
    assert old is not None and old > 0
    for factor, grown in ((1.05, ()), (1.2, (layers[1].layer,))):
        layers[1] = layers[1].model_copy(update={"difference_norm_new": factor * old})
        rest = [layer.model_copy(update={"difference_norm_new": layer.difference_norm_old}) for layer in layers[2:]]
        assert grown_layers([layers[1], *rest], growth=0.1) == grown
    fresh = layers[1].model_copy(update={"difference_norm_old": None})
    assert grown_layers([fresh], growth=0.1) == (fresh.layer,)


def test_a_bounded_layer_that_changed_without_a_budget_is_beyond_it(updated: tuple[Path, Path, UpdateReport]) -> None:
    old, new, report = updated
    samples = Samples(np.load(old.parent / "test.npz")["images"])
    folders = [Certified(folder, samples, 0.1) for folder in (old, new)]
    layers = [layer.model_copy(update={"within_layerwise": True}) for layer in report.layers]
    assert is_within_layerwise(layers, ("PRelu slope",), *folders)
    assert not is_within_layerwise(layers[:1], (f"ConvTranspose {layers[1].node}",), *folders)
    assert not is_within_layerwise([layers[0].model_copy(update={"within_layerwise": False})], (), *folders)


@pytest.mark.parametrize(("name", "other"), [(AGAINST_MASKED, "sparse.onnx"), (AGAINST_DENSE, "dense.onnx")])
def test_the_certificates_against_the_old_networks_can_be_checked(
    updated: tuple[Path, Path, UpdateReport], name: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, _ = updated
    files = ["--dense", str(old / other), "--sparse", str(new / "sparse.onnx"), "--data", str(old.parent / "test.npz")]
    assert run(["certify", "--check", str(new / name), *files]) == 0
    assert "0 wrong, 0 not checked" in capsys.readouterr().out
    assert Certificate.read(new / name).sparse_sha256 == sha256_file(new / "sparse.onnx")


def test_a_second_update_changes_nothing_and_a_lost_file_is_made_again(
    finished: Path, updated: tuple[Path, Path, UpdateReport], capsys: pytest.CaptureFixture[str]
) -> None:
    _, new, _ = updated
    weights = finished.parent / "moved-0.02.safetensors"
    before = digests(new)
    (new / AGAINST_MASKED).unlink()
    update(finished, weights, new)
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if "unchanged" in line}
    assert shown == {"masks", "bake", "rewrite", "build", "profile", "certify", "validate", "update"}
    assert {name: digest for name, digest in digests(new).items() if "report" not in name} == {
        name: digest for name, digest in before.items() if "report" not in name
    }


@pytest.mark.slow
def test_the_same_weights_and_statistics_give_the_same_file_and_no_distance(finished: Path, tmp_path: Path) -> None:
    folder = finished.parent
    report = update(finished, folder / "model.safetensors", tmp_path / "same", "--statistics", "keep", "--json")
    assert report.sparse_old_sha256 == report.sparse_new_sha256 == sha256_file(tmp_path / "same" / "sparse.onnx")
    assert report.statistics == "kept"
    assert {claim.bound for claim in report.comparisons[1].claims} == {0.0}
    assert report.within_layerwise and report.within_end_to_end
    assert report.relearn is False
    assert report.advice.startswith("The masks need not be learned again: they keep 100.0% of the norm")
    assert report.sparse_correct_old == report.sparse_correct_new


@pytest.mark.slow
def test_budgets_hold_for_a_tiny_update_and_not_for_other_weights(finished: Path, tmp_path: Path) -> None:
    folder = finished.parent
    near = update(finished, moved(folder, 1e-4), tmp_path / "near", "--statistics", "keep")
    assert near.within_layerwise and near.within_end_to_end and not near.grown
    assert near.end_to_end_old is not None and near.end_to_end_limit == pytest.approx(1.1 * near.end_to_end_old)
    (new_bound,) = (claim.bound for claim in near.comparisons[0].claims if claim.name == DATA_FREE)
    assert new_bound is not None and new_bound <= near.end_to_end_limit
    far = update(finished, moved(folder, 1.0), tmp_path / "far")
    assert not far.within_layerwise and far.within_end_to_end is False
    assert far.relearn is True
    assert far.advice.startswith("Learn the masks again: they keep ")
    aged = [mask.layer for mask in far.masks if mask.aged]
    assert aged[-1] == "the network" and any(layer in far.advice for layer in aged[:-1])


def test_without_the_old_checkpoint_nothing_is_said_about_the_age_of_masks(
    finished: Path, updated: tuple[Path, Path, UpdateReport], tmp_path: Path
) -> None:
    assert updated[1].is_dir()
    project = tmp_path / "project"
    shutil.copytree(finished.parent, project)
    shutil.copytree(project / "new", tmp_path / "new")
    # as where the new checkpoint took the place of the old one
    shutil.copyfile(project / "moved-0.02.safetensors", project / "model.safetensors")
    (project / "out" / "validation.json").write_text('{"kind": "validation report", "schema_version": 0}')
    report = update(project / "deploy.yaml", project / "model.safetensors", tmp_path / "new", "--run", str(project / "out"))
    assert report.relearn is None
    assert report.advice.startswith("Whether the masks have aged cannot be told, as the checkpoint they were made for is gone")
    assert {mask.norm_before for mask in report.masks} == {None}
    # what is only compared with does not stop an update
    assert report.dense_correct_old is report.sparse_correct_old is None
    assert any(remark.startswith("the accuracy of the old run is not shown: ") for remark in report.remarks)
    assert str(tmp_path) not in (tmp_path / "new" / "update.json").read_text()


def spoil_state(change: Callable[[State], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "new.safetensors")

    return spoil


def not_a_number(state: State) -> None:
    state["block.conv1.weight"][0] = torch.nan


def other_network(state: State) -> None:
    state["block.conv1.weight"] = torch.zeros(8, 8, 3, 3)


def unfinished(folder: Path) -> None:
    (folder / "out" / "certificate.json").unlink()


def other_file(folder: Path) -> None:
    shutil.copyfile(folder / "out" / "dense.onnx", folder / "out" / "sparse.onnx")


def other_masks(folder: Path) -> None:
    shutil.copyfile(folder / "new" / "masks.safetensors", folder / "out" / "masks.safetensors")


def other_precision(folder: Path) -> None:
    text = (folder / "deploy.yaml").read_text()
    (folder / "deploy.yaml").write_text(text + "bake: {precision: fp16}\n")


def nothing(folder: Path) -> None:
    pass


SPOILED: list[tuple[str, Callable[[Path], None], str, int, str]] = [
    ("NaN", spoil_state(not_a_number), "fresh", 4, "block.conv1.weight"),
    ("another network", spoil_state(other_network), "fresh", 2, "block.conv1.weight is (8, 8, 3, 3)"),
    ("no checkpoint", lambda folder: (folder / "new.safetensors").unlink(), "fresh", 2, "new.safetensors does not exist"),
    ("unfinished run", unfinished, "fresh", 2, "holds no certificate.json; give the output folder of a finished"),
    ("the old folder", nothing, "out", 2, "is the folder of the run that is updated; choose another one"),
    ("another file", other_file, "fresh", 4, "sparse.onnx is not the file of its certificate"),
    ("other masks", other_masks, "fresh", 4, "is not the mask set that was baked"),
    ("another precision", other_precision, "fresh", 2, "was baked in fp32 and opset 20, and the configuration says fp16"),
]


@pytest.mark.parametrize(("spoil", "out", "code", "words"), [case[1:] for case in SPOILED], ids=[case[0] for case in SPOILED])
def test_what_cannot_be_updated_is_refused(
    finished: Path,
    updated: tuple[Path, Path, UpdateReport],
    tmp_path: Path,
    spoil: Callable[[Path], None],
    out: str,
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project = tmp_path / "project"
    shutil.copytree(finished.parent, project)
    shutil.copyfile(project / "moved-0.02.safetensors", project / "new.safetensors")
    spoil(project)
    arguments = ["--weights", str(project / "new.safetensors"), "--run", str(project / "out"), "--out", str(project / out)]
    assert run(["update", str(project / "deploy.yaml"), *arguments]) == code
    assert words in capsys.readouterr().err
    assert not (project / "fresh" / "update.json").exists()


def test_the_report_is_json_where_it_is_asked_for(
    finished: Path, updated: tuple[Path, Path, UpdateReport], capsys: pytest.CaptureFixture[str]
) -> None:
    _, new, report = updated
    update(finished, finished.parent / "moved-0.02.safetensors", new, "--json")
    assert json.loads(capsys.readouterr().out)["masks_new_sha256"] == report.masks_new_sha256
