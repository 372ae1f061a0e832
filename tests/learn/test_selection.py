import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from masksparse_deploy.core.artifacts.selection import LayerSelection, Measured
from masksparse_deploy.core.config import DataOptions, MaskOptions, ModelOptions, SelectOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.learn.run import learn
from masksparse_deploy.learn.selection import CHECKPOINT, SELECTION, allowed_loss, choose_layers, read_targets, select
from tests.learn.selection_networks import PATH, uneven_net
from tests.learn.test_sensitivity import labelled
from tests.models.tiny_cnn import tiny_cnn

UNEVEN = ModelOptions(factory=f"{PATH}:uneven_net", weights="model.safetensors")
TINY = ModelOptions(factory="tests.models.tiny_cnn:tiny_cnn", weights="tiny.safetensors")
DATA = DataOptions(train="train.npz", test="test.npz")
MASK = MaskOptions(batch_size=32, calibration_count=64)
DEFAULT = SelectOptions()
NAMES = ("stem", "free", "mild", "fragile", "fc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(uneven_net().state_dict(), tmp_path / "model.safetensors")
    save_file(tiny_cnn(seed=1).state_dict(), tmp_path / "tiny.safetensors")
    for name, count, seed in (("train", 96, 1), ("test", 64, 2), ("validation", 48, 3)):
        samples = labelled(uneven_net(), count, seed)
        np.savez(tmp_path / f"{name}.npz", images=samples.images, labels=samples.labels)
    return tmp_path


def run(
    folder: Path,
    options: SelectOptions = DEFAULT,
    *,
    model: ModelOptions = UNEVEN,
    data: DataOptions = DATA,
    mask: MaskOptions = MASK,
    out: str = "out",
    progress: Progress = silent,
) -> LayerSelection:
    return select(model, data, mask, options, folder=folder, out=folder / out, progress=progress)


def write_targets(folder: Path, text: str) -> SelectOptions:
    (folder / "targets.txt").write_text(text)
    return SelectOptions(targets="targets.txt")


def test_a_layer_that_ruins_the_network_comes_last_and_stays_dense(folder: Path) -> None:
    selection = run(folder)
    assert [layer.name for layer in selection.layers] == ["free", "mild", "fragile"]
    assert selection.chosen == ("free", "mild")
    fragile = selection.assignment["fragile"]
    assert fragile.pattern == "dense"
    lost = selection.steps[-1].joint.drop_points
    assert fragile.reason == f"over the budget: {lost:.2f} points would be lost, 1 allowed"
    assert selection.assignment["stem"].reason == "3 input channels, not a multiple of 4"
    assert set(selection.assignment) == set(NAMES)
    assert selection.joint == selection.steps[1].joint
    assert LayerSelection.read(folder / "out" / SELECTION) == selection
    assert [file.name for file in (folder / "out").iterdir()] == [SELECTION]


def test_the_choice_in_numbers(folder: Path) -> None:
    selection = run(folder)
    # 8 x 8 weights a tap at 64 positions; the stem has 3 x 8, the classifier runs once.
    chosen, others = 2 * 64 * 9 * 64, 3 * 8 * 9 * 64 + 64 * 64 + 80
    assert (selection.macs.masked, selection.macs.total) == (chosen, chosen + others)
    assert selection.amdahl_limit == pytest.approx((chosen + others) / (chosen / 2 + others))
    assert [layer.saved_mac_count for layer in selection.layers] == [layer.mac_count // 2 for layer in selection.layers]
    assert (selection.decided_on, selection.total, selection.budget_points) == ("test", 64, 1.0)
    assert selection.method == "magnitude"


def test_a_budget_of_nothing_takes_only_what_costs_nothing(folder: Path) -> None:
    selection = run(folder, SelectOptions(points=0))
    assert all(step.kept == (step.joint.drop_points <= 0) for step in selection.steps)
    assert "free" in selection.chosen and "fragile" not in selection.chosen
    assert selection.joint.drop_points <= 0


def test_where_every_layer_costs_too_much_the_network_stays_dense(folder: Path) -> None:
    selection = run(folder, write_targets(folder, "fragile").model_copy(update={"points": 0.0}))
    assert selection.chosen == ()
    assert (selection.joint.correct, selection.joint.drop_points, selection.amdahl_limit) == (64, 0, 1)


def test_a_budget_of_everything_takes_everything(folder: Path) -> None:
    assert run(folder, SelectOptions(points=100)).chosen == ("fragile", "free", "mild")


def test_what_is_chosen_is_decided_on_validation_images_where_there_are_some(folder: Path) -> None:
    selection = run(folder, data=DATA.model_copy(update={"validation": "validation.npz"}))
    assert (selection.decided_on, selection.total) == ("validation", 48)


@pytest.mark.parametrize("text", ["fragile  # a comment\n\n  mild\n", '["fragile", "mi*"]'])
def test_targets_alone_are_all_masked(folder: Path, text: str) -> None:
    selection = run(folder, write_targets(folder, text))
    assert selection.chosen == ("fragile", "mild")
    assert selection.budget_points is None
    assert selection.assignment["free"].reason == "not among the targets"
    assert [layer.name for layer in selection.layers] == ["free", "mild", "fragile"]
    assert selection.joint.drop_points > 1


def test_targets_within_a_budget(folder: Path) -> None:
    options = write_targets(folder, "fragile\nmild\n").model_copy(update={"points": 1.0})
    assert run(folder, options).chosen == ("mild",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlid\n", r"targets.txt: 'mlid' matches no convolution or linear layer; did you mean 'mild'"),
        ("# nothing\n", "names no layer"),
        ("[]", "names no layer"),
        ('{"layers": ["mild"]}', "not a list of layer names"),
        ('["mild", 3]', "not a list of layer names"),
        ('["mild"', "neither text with one layer name a line nor a JSON list"),
        ("stem\n", r"none of the targets \(stem\) can carry a mask; eligible are free, mild, fragile"),
    ],
)
def test_lists_of_targets_that_cannot_be_used(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(folder, write_targets(folder, text))


def test_a_list_of_targets_that_is_not_there_or_no_text(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"list of targets .*other.txt does not exist"):
        run(folder, SelectOptions(targets="other.txt"))
    (folder / "targets.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="neither text"):
        read_targets(folder / "targets.bin", NAMES)


def test_a_pattern_that_keeps_everything_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="4:4 keeps every weight"):
        run(folder, mask=MASK.model_copy(update={"pattern": "4:4"}))


def test_include_and_exclude_bound_the_choice(folder: Path) -> None:
    mask = MASK.model_copy(update={"include": ("*", "fc"), "exclude": ("free",)})
    selection = run(folder, SelectOptions(points=100), mask=mask)
    assert selection.chosen == ("fc", "fragile", "mild")
    assert selection.assignment["free"].reason == "excluded by mask.exclude 'free'"


@pytest.mark.parametrize("after", [1, 3, 5])
def test_an_interrupted_selection_continues_to_the_same_bytes(folder: Path, after: int) -> None:
    seen: list[str] = []

    def interrupt(description: str, done: int, total: int) -> None:
        seen.append(description)
        if len(seen) == after:
            raise KeyboardInterrupt

    run(folder, out="whole")
    with pytest.raises(KeyboardInterrupt):
        run(folder, progress=interrupt)
    assert (folder / "out" / CHECKPOINT).exists()
    assert not (folder / "out" / SELECTION).exists()
    run(folder)
    assert (folder / "out" / SELECTION).read_bytes() == (folder / "whole" / SELECTION).read_bytes()
    assert not (folder / "out" / CHECKPOINT).exists()


def test_learning_with_the_assignment_measures_what_the_selection_did(folder: Path) -> None:
    """With batch norm, and masks by magnitude: then both must find the very same network."""
    for name, count, seed in (("train", 96, 1), ("test", 64, 2)):
        samples = labelled(tiny_cnn(seed=1), count, seed)
        np.savez(folder / f"{name}.npz", images=samples.images, labels=samples.labels)
    selection = run(folder, write_targets(folder, "block.conv?"), model=TINY)
    assert selection.chosen == ("block.conv1", "block.conv2")
    assert 0 < selection.joint.correct < 64
    method = {"method": "magnitude", "batch_norm": selection.joint.statistics_updated}
    mask = MASK.model_copy(update={**method, "assignment": f"out/{SELECTION}"})
    report = learn(TINY, DATA, mask, folder=folder, out=folder / "learned")
    assert tuple(sorted(layer.name for layer in report.layers)) == selection.chosen
    last = report.accuracies[-1]
    assert last.method == ("magnitude + batch norm" if selection.joint.statistics_updated else "magnitude")
    assert last.correct == selection.joint.correct
    assert report.macs == selection.macs
    assert report.amdahl_limit == selection.amdahl_limit


def test_a_selection_for_other_weights_is_refused_by_learning(folder: Path) -> None:
    run(folder)
    content = json.loads((folder / "out" / SELECTION).read_text())
    (folder / "selection.json").write_text(json.dumps({**content, "source_sha256": "0" * 64}))
    mask = MASK.model_copy(update={"method": "magnitude", "assignment": "selection.json"})
    with pytest.raises(ArtifactError, match="was made for other weights"):
        learn(UNEVEN, DATA, mask, folder=folder, out=folder / "learned")


@given(
    costs=st.lists(st.integers(-3, 20), min_size=1, max_size=8),
    together=st.integers(0, 5),
    lowest=st.one_of(st.none(), st.integers(60, 100)),
)
def test_the_chosen_layers_keep_the_budget_and_none_that_fits_is_left_out(
    costs: list[int], together: int, lowest: int | None
) -> None:
    """Images of 100 that are right: layers cost more together than the sum of what they cost alone."""

    def measure(names: Sequence[str]) -> Measured:
        correct = 100 - sum(costs[int(name)] for name in names) - together * (len(names) - 1)
        return Measured(correct=correct, drop_points=100.0 - correct, divergence=0.0, statistics_updated=False)

    order = [str(index) for index in range(len(costs))]
    steps = choose_layers(order, measure, lowest_correct=lowest)
    assert [step.layer for step in steps] == order
    kept: list[str] = []
    for step in steps:
        assert step.joint == measure([*kept, step.layer])
        assert step.kept == (lowest is None or step.joint.correct >= lowest)
        kept += [step.layer] if step.kept else []


@pytest.mark.parametrize(
    ("points", "total", "expected"),
    [(0, 100, 0), (1, 599, 5), (0.57, 10_000, 57), (0.29, 10_000, 29), (0.1, 999, 0), (100, 7, 7)],
)
def test_points_as_images(points: float, total: int, expected: int) -> None:
    assert allowed_loss(points, total) == expected


def test_layers_are_selected_for_transposable_masks(folder: Path) -> None:
    selection = run(folder, mask=MASK.model_copy(update={"pattern": "T2:4"}))
    assert selection.pattern == "T2:4"
    # "free" has only weights that 2:4 keeps, in columns that T2:4 does not.
    assert selection.chosen == ("mild",)
    asked = MASK.model_copy(update={"method": "transposable", "assignment": f"out/{SELECTION}"})
    report = learn(UNEVEN, DATA, asked, folder=folder, out=folder / "learned")
    assert [(layer.name, layer.pattern) for layer in report.layers] == [("mild", "T2:4")]
    run(folder, out="plain")
    with pytest.raises(
        UsageError, match=r"pattern 2:4, mask\.pattern is T2:4; run 'masksparse select' again with --pattern T2:4"
    ):
        learn(
            UNEVEN, DATA, asked.model_copy(update={"assignment": f"plain/{SELECTION}"}), folder=folder, out=folder / "learned"
        )
