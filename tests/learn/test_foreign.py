from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from masksparse_deploy.core.artifacts.foreign import ImportedLayer, ImportReport
from masksparse_deploy.core.config import ModelOptions
from masksparse_deploy.core.errors import ArtifactError, MasksparseError, UsageError
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.foreign import MASKS, REPORT, WEIGHTS, import_foreign
from masksparse_deploy.learn.model import load_model, state_fingerprint
from tests.learn.foreign_models import (
    FORMS,
    SPARSE_LAYERS,
    TWO_FOUR,
    State,
    along_outputs,
    along_taps,
    asp,
    network,
    parametrized_without_masks,
    plain,
    planted,
    torch_prune,
)
from tests.learn.networks import PATH, Zoo

TINY = "tests.models.tiny_cnn:tiny_cnn"


def run(content: object, out: Path, *, factory: str = TINY, pattern: str | None = None) -> ImportReport:
    path = out / "foreign.pth"
    out.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    options = ModelOptions(factory=factory, weights=path.name)
    return import_foreign(options, image_shape=(3, 8, 8), pattern=pattern, folder=out, out=out)


def layer(report: ImportReport, name: str) -> ImportedLayer:
    return next(entry for entry in report.layers if entry.name == name)


@pytest.mark.parametrize("form", FORMS)
def test_every_tools_checkpoint_gives_the_same_masks_and_weights(tmp_path: Path, form: str) -> None:
    tool, save = FORMS[form]
    masks = planted()
    report = run(save(masks), tmp_path)
    assert report.tool == tool
    assert [entry.name for entry in report.layers if entry.usable] == list(SPARSE_LAYERS)
    read = read_mask_set(tmp_path / MASKS)
    assert read.method == "imported"
    assert read.digest == report.mask_set_sha256
    assert {name: str(mask.pattern) for name, mask in read.layers.items()} == dict.fromkeys(masks, "2:4")
    for name, mask in read.layers.items():
        np.testing.assert_array_equal(mask.keep, masks[name].numpy())
    assert [(entry.name, entry.reason) for entry in read.skipped] == [
        ("conv", "no zeros; 3 input channels, not a multiple of 4")
    ]
    weights = load_file(tmp_path / WEIGHTS)
    assert weights.keys() == network().state_dict().keys()
    for name, value in plain(masks).items():
        assert torch.equal(weights[name], value)
    assert sha256_file(tmp_path / WEIGHTS) == report.weights_sha256
    # What bake asks for: masks and weights belong together.
    model = load_model(ModelOptions(factory=TINY, weights=WEIGHTS), tmp_path)
    assert state_fingerprint(model) == read.source_sha256
    assert ImportReport.read(tmp_path / REPORT) == report


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    for out in (tmp_path / "a", tmp_path / "b"):
        run(asp(planted()), out)
    for name in (MASKS, WEIGHTS, REPORT):
        assert sha256_file(tmp_path / "a" / name) == sha256_file(tmp_path / "b" / name)


def test_masks_over_kernel_taps_are_told_so(tmp_path: Path) -> None:
    report = run(plain(planted(along_taps)), tmp_path)
    kernel = layer(report, "block.conv2")
    assert not kernel.usable
    assert (kernel.zeros, kernel.pattern) == ("kernel taps", "2:4")
    assert kernel.why.startswith("2:4, groups run along kernel taps; on 16x16 3x3 kernels not usable: ")
    assert "break 2:4 along input channels" in kernel.why
    # For one kernel position, four consecutive weights in memory are four input channels.
    assert [entry.name for entry in report.layers if entry.usable] == ["block.shortcut.0", "fc"]
    assert set(read_mask_set(tmp_path / MASKS).layers) == {"block.shortcut.0.weight", "fc.weight"}


def test_nothing_usable_writes_weights_but_no_masks(tmp_path: Path) -> None:
    kernels = ("block.conv1", "block.conv2")
    report = run(plain(planted(along_outputs, kernels)), tmp_path)
    assert {layer(report, name).zeros for name in kernels} == {"output channels"}
    assert report.mask_set_sha256 is None
    assert report.amdahl_limit == 1.0
    assert (tmp_path / WEIGHTS).is_file()
    assert not (tmp_path / MASKS).exists()


def test_groups_with_too_many_zeros_are_filled_with_the_tools_choice_and_then_from_the_left(tmp_path: Path) -> None:
    masks = planted()
    name = "block.conv1.weight"
    masks[name][0, :4, 0, 0] = torch.tensor([False, False, False, True])  # one kept by the tool
    masks[name][0, 4:, 0, 0] = False
    state = asp(masks)
    state[name][1, :4, 0, 0] = 0  # kept by the tool, and zero all the same
    report = run(state, tmp_path)
    kernel = layer(report, "block.conv1")
    assert kernel.usable
    assert kernel.density < 0.5
    keep = read_mask_set(tmp_path / MASKS).layers[name].keep
    assert keep[0, :4, 0, 0].tolist() == [True, False, False, True]
    assert keep[0, 4:, 0, 0].tolist() == [True, True, False, False]
    assert keep[1, :4, 0, 0].tolist() == masks[name][1, :4, 0, 0].tolist()


def test_torchs_sparsifier_leaves_its_masks_out_of_the_file(tmp_path: Path) -> None:
    report = run(parametrized_without_masks(planted()), tmp_path)
    assert report.tool == "torch.ao.pruning"
    assert not any(entry.usable for entry in report.layers)
    assert "squash_mask()" in layer(report, "block.conv1").why
    assert layer(report, "conv").why.startswith("no zeros")


def test_zeros_outside_the_weights_of_layers_are_kept(tmp_path: Path) -> None:
    model = network()
    torch.nn.utils.prune.random_unstructured(model.fc, "bias", amount=4)
    run(model.state_dict(), tmp_path)
    assert int((load_file(tmp_path / WEIGHTS)["fc.bias"] == 0).sum()) == 4


def test_unstructured_zeros_are_counted(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(mask.shape, generator=generator) < 0.5 for name, mask in planted().items()}
    report = run(torch_prune(masks), tmp_path)
    kernel = layer(report, "block.conv2")
    assert (kernel.zeros, kernel.pattern, kernel.usable) == ("unstructured", None, False)
    assert kernel.why.startswith("zeros without a pattern that sparse kernels read: ")
    assert "groups" in kernel.why


def test_a_pattern_that_sparse_kernels_do_not_read(tmp_path: Path) -> None:
    def cut(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        return NMPattern(n=4, m=8).keep_largest(np.random.default_rng(0).random(weight.shape), group_axis=1)

    report = run(plain(planted(cut)), tmp_path)
    kernel = layer(report, "block.conv1")
    assert (kernel.zeros, kernel.pattern, kernel.usable) == ("input channels", "4:8", False)
    assert kernel.why == "4:8, groups run along input channels; not usable: sparse kernels read 2:4 only"
    assert layer(run(plain(planted(cut)), tmp_path, pattern="2:4"), "block.conv1").zeros == "unstructured"


def test_layers_that_can_carry_no_mask_say_why(tmp_path: Path) -> None:
    model = Zoo()
    with torch.no_grad():
        for name in ("plain", "grouped", "up", "tied", "line", "unused", "hidden"):
            weight = model.get_parameter(f"{name}.weight")
            axis = 0 if name == "up" else 1  # of the input channels
            keep = TWO_FOUR.keep_largest(weight.abs().numpy(), group_axis=axis)
            weight.mul_(torch.from_numpy(keep))
    report = run(model.state_dict(), tmp_path, factory=f"{PATH}:Zoo")
    assert [entry.name for entry in report.layers if entry.usable] == ["plain", "hidden"]
    reasons = {
        "grouped": "grouped convolution (2 groups)",
        "up": "a transposed convolution",
        "tied": "shares its weight with also_tied",
        "line": "not a 2-d convolution",
        "unused": "does not run when an image passes through the network",
    }
    for name, reason in reasons.items():
        assert layer(report, name).zeros == "input channels"
        assert layer(report, name).why == f"2:4, groups run along input channels; not usable: {reason}"


def spoiled(change: Callable[[State], object]) -> State:
    state = asp(planted())
    change(state)
    return state


FAULTS: list[tuple[str, Callable[[State], object], type[MasksparseError], str]] = [
    (
        "mask of another shape",
        lambda s: s.update({"fc.__weight_mma_mask": torch.ones(3, 3, dtype=torch.bool)}),
        ArtifactError,
        r"mask of fc\.weight is \(3, 3\), its weight \(10, 16\)",
    ),
    (
        "soft mask",
        lambda s: s.update({"fc.__weight_mma_mask": torch.full((10, 16), 0.5)}),
        ArtifactError,
        "values other than 0 and 1",
    ),
    ("no weight", lambda s: s.pop("fc.weight"), UsageError, r"missing: fc\.weight"),
    ("unknown extra", lambda s: s.update({"fc._other": torch.ones(1)}), UsageError, r"unexpected: fc\._other"),
    ("mask of no layer", lambda s: s.update({"head._weight_mask": torch.ones(1)}), UsageError, "unexpected: head"),
    ("infinite", lambda s: s["block.bn1.bias"].fill_(torch.inf), ArtifactError, "NaN or infinite"),
]


@pytest.mark.parametrize(("change", "error", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_bad_checkpoint_is_refused_and_nothing_written(
    tmp_path: Path, change: Callable[[State], object], error: type[MasksparseError], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(spoiled(change), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["foreign.pth"]


UNFIT: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("quantized", lambda weight: torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8)),
    (r"in the layout torch\.sparse_coo", torch.Tensor.to_sparse),
    ("complex", lambda weight: weight.to(torch.complex64)),
    ("without data", lambda weight: weight.to("meta")),
]


# torch is about to give up quantized tensors; there are checkpoints with them.
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning", "ignore:TypedStorage:UserWarning")
@pytest.mark.parametrize(("kind", "convert"), UNFIT, ids=[kind for kind, _ in UNFIT])
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path, kind: str, convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
    state = plain(planted())
    with pytest.raises(UsageError, match=rf"fc\.weight is {kind}.*save the network before it is converted"):
        run({**state, "fc.weight": convert(state["fc.weight"])}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["foreign.pth"]
    options = ModelOptions(factory=TINY, weights="foreign.pth")
    with pytest.raises(UsageError, match=rf"fc\.weight is {kind}"):
        load_model(options, tmp_path)


def test_of_several_masks_a_weight_needs_all(tmp_path: Path) -> None:
    state, name = asp(planted()), "block.conv1.weight"
    state["block.conv1._weight_mask"] = torch.ones_like(state[name])
    state["block.conv1._weight_mask"][0] = 0
    run(state, tmp_path)
    expected = plain(planted())[name]
    expected[0] = 0
    assert torch.equal(load_file(tmp_path / WEIGHTS)[name], expected)


def test_a_pattern_that_drops_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pattern 4:4 drops nothing"):
        run(plain(planted()), tmp_path, pattern="4:4")


@pytest.mark.parametrize("asked", ["4:8", "3:8"])
def test_the_mask_of_a_wider_pattern_is_one_that_kernels_read(tmp_path: Path, asked: str) -> None:
    masks, name = planted(), "block.conv1.weight"
    if asked == "3:8":
        masks[name][:, 7] = masks[name][:, 6] = False
        masks[name][:, 5] = ~masks[name][:, 4]
    report = run(plain(masks), tmp_path, pattern=asked)
    assert (layer(report, "block.conv1").pattern, layer(report, "block.conv1").usable) == (asked, True)
    mask = read_mask_set(tmp_path / MASKS).layers[name]
    assert str(mask.pattern) == "2:4"
    assert not (masks[name].numpy() & ~mask.keep).any()


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in asp(planted()).items()}, tmp_path / "asp.safetensors")
    options = ModelOptions(factory=TINY, weights="asp.safetensors")
    report = import_foreign(options, image_shape=(3, 8, 8), folder=tmp_path, out=tmp_path)
    assert report.tool == "ASP"
    assert sum(entry.usable for entry in report.layers) == 4


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(plain(planted()), tmp_path / "foreign.pth")
    with pytest.raises(UsageError, match="takes 3 channels and receives 1"):
        import_foreign(
            ModelOptions(factory=TINY, weights="foreign.pth"), image_shape=(1, 8, 8), folder=tmp_path, out=tmp_path / "out"
        )
