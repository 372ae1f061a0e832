import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from masksparse_deploy.core.artifacts.document import SkippedLayer
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import AxisPermutation, LayerMask, MaskSet, fingerprint, read_mask_set
from masksparse_deploy.core.patterns import NMPattern

PATTERN = NMPattern(n=2, m=4)


def layer_mask(name: str, seed: int = 0) -> LayerMask:
    scores = np.random.default_rng(seed).random((4, 8, 3, 3))
    keep = PATTERN.keep_largest(scores, group_axis=1)
    return LayerMask(weight_name=name, keep=keep, group_axis=1, pattern=PATTERN)


def mask_set(order: tuple[str, ...] = ("a.weight", "b.weight")) -> MaskSet:
    return MaskSet(
        layers={name: layer_mask(name, seed=ord(name[0])) for name in order},
        source_sha256="0" * 64,
        method="magnitude",
        skipped=(SkippedLayer(name="stem", reason="3 input channels", weight_count=27, mac_count=270),),
        statistics={"bn.running_mean": np.arange(4, dtype=np.float32)},
        permutations=(permutation("a.weight", 1), permutation("a.weight", 0), permutation("b.bias", 0)),
    )


def permutation(name: str, axis: int, order: tuple[int, ...] = (2, 0, 3, 1)) -> AxisPermutation:
    return AxisPermutation(name=name, axis=axis, order=np.array(order, np.int64))


def test_a_mask_set_survives_the_disk(tmp_path: Path) -> None:
    written = mask_set()
    written.write(tmp_path / "m.safetensors")
    read = read_mask_set(tmp_path / "m.safetensors")
    assert read.digest == written.digest
    assert read.skipped == written.skipped
    assert list(read.layers) == list(written.layers)
    for name, mask in read.layers.items():
        np.testing.assert_array_equal(mask.keep, written.layers[name].keep)
    np.testing.assert_array_equal(read.statistics["bn.running_mean"], np.arange(4))
    orders = {(permutation.name, permutation.axis): permutation.order.tolist() for permutation in read.permutations}
    assert orders == {key: [2, 0, 3, 1] for key in (("a.weight", 0), ("a.weight", 1), ("b.bias", 0))}


@pytest.mark.parametrize("wrong", [(0, 1, 1, 3), (0, 1, 2, 4), (-1, 0, 1, 2)])
def test_an_order_that_misses_a_channel_is_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match=r"permutation of a\.weight, axis 1: not every index exactly once"):
        permutation("a.weight", 1, wrong)


def test_an_order_of_another_type_is_refused() -> None:
    with pytest.raises(ArtifactError, match="not every index exactly once"):
        AxisPermutation(name="a", axis=0, order=np.arange(4, dtype=np.int32))  # type: ignore[arg-type]


def test_a_changed_order_in_the_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    data = mask_set().to_bytes()
    tampered = data.replace(np.array((2, 0, 3, 1), np.int64).tobytes(), np.array((0, 2, 3, 1), np.int64).tobytes(), 1)
    assert tampered != data
    path.write_bytes(tampered)
    with pytest.raises(ArtifactError, match="changed after it was written"):
        read_mask_set(path)


@pytest.mark.parametrize("key", ["order/a.weight", "order/first/a.weight"])
def test_an_order_without_an_axis_is_damaged(tmp_path: Path, key: str) -> None:
    path = tmp_path / "m.safetensors"
    data = mask_set().to_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    path.write_bytes(save({**load(data), key: np.arange(4)}, metadata=metadata))
    with pytest.raises(ArtifactError, match="damaged"):
        read_mask_set(path)


def test_identity_does_not_depend_on_insertion_order_but_on_content() -> None:
    assert mask_set(("a.weight", "b.weight")).digest == mask_set(("b.weight", "a.weight")).digest
    assert mask_set(("a.weight",)).digest != mask_set().digest
    changes = (
        {"source_sha256": "1" * 64},
        {"method": "scores"},
        {"statistics": {}},
        {"statistics": {"bn.running_mean": np.ones(4, np.float32)}},
        {"permutations": ()},
        {"permutations": (permutation("a.weight", 1),)},
        {"permutations": (permutation("a.weight", 0),)},
        {"permutations": (permutation("b.weight", 1),)},
        {"permutations": (permutation("a.weight", 1, (3, 2, 1, 0)),)},
    )
    assert len({mask_set().digest, *(dataclasses.replace(mask_set(), **change).digest for change in changes)}) == 10
    reverse = dataclasses.replace(mask_set(), permutations=mask_set().permutations[::-1])
    assert (reverse.digest, reverse.to_bytes()) == (mask_set().digest, mask_set().to_bytes())


def test_writing_twice_gives_the_same_bytes() -> None:
    assert mask_set().to_bytes() == mask_set(("b.weight", "a.weight")).to_bytes()


def test_keep_is_a_read_only_copy() -> None:
    source = PATTERN.keep_largest(np.random.default_rng(0).random((4, 8)), group_axis=1)
    mask = LayerMask(weight_name="w", keep=source, group_axis=1, pattern=PATTERN)
    source[:] = False
    assert mask.keep.any()
    with pytest.raises(ValueError, match="read-only"):
        mask.keep[0, 0] = True


def test_a_mask_that_keeps_three_of_four_is_refused() -> None:
    keep = layer_mask("w").keep.copy()
    keep[0, :4, 0, 0] = [True, True, True, False]
    with pytest.raises(ArtifactError, match="1 of 72 groups do not keep exactly 2 of 4"):
        LayerMask(weight_name="w", keep=keep, group_axis=1, pattern=PATTERN)


def partial_mask(channels: int, name: str = "w") -> LayerMask:
    keep = PATTERN.keep_largest(np.random.default_rng(channels).random((5, channels, 3, 3)), group_axis=1)
    return LayerMask(weight_name=name, keep=keep, group_axis=1, pattern=PATTERN)


@pytest.mark.parametrize("channels", [1, 3, 5, 6, 7, 9])
def test_a_mask_with_a_last_group_that_is_not_full(tmp_path: Path, channels: int) -> None:
    mask = partial_mask(channels)
    assert mask.is_partial
    written = MaskSet(layers={"w": mask}, source_sha256="0" * 64, method="magnitude")
    written.write(tmp_path / "m.safetensors")
    assert read_mask_set(tmp_path / "m.safetensors").layers["w"].digest == mask.digest


@pytest.mark.parametrize("channels", [3, 5, 6])
def test_a_last_group_that_keeps_one_less_is_refused(channels: int) -> None:
    keep = partial_mask(channels).keep.copy()
    keep[2, -1 - int(np.argmax(keep[2, ::-1, 1, 1])), 1, 1] = False
    with pytest.raises(ArtifactError, match=r"1 of \d+ groups do not keep exactly 2 of 4"):
        LayerMask(weight_name="w", keep=keep, group_axis=1, pattern=PATTERN)


def test_padding_keeps_nothing_of_what_it_adds() -> None:
    mask = partial_mask(6)
    padded = mask.padded((8, 8, 3, 3))
    assert not padded.is_partial
    assert padded.unpadded_shape == (5, 6, 3, 3)
    np.testing.assert_array_equal(padded.keep[:5, :6], mask.keep)
    assert padded.keep.sum() == mask.keep.sum()
    assert padded.digest != mask.digest
    assert padded.padded((9, 8, 3, 3)).unpadded_shape == (5, 6, 3, 3)


@pytest.mark.parametrize("shape", [(5, 5, 3, 3), (5, 8)])
def test_padding_takes_nothing_away(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match=r"\(5, 6, 3, 3\) cannot be padded to"):
        partial_mask(6).padded(shape)


@pytest.mark.parametrize("unpadded", [(5, 5, 3, 3), (5, 12, 3, 3), (5, 8)])
def test_a_padded_mask_that_keeps_added_channels_is_refused(unpadded: tuple[int, ...]) -> None:
    padded = partial_mask(6).padded((5, 8, 3, 3))
    with pytest.raises(ArtifactError, match=r"keeps weights outside the unpadded shape|do not keep exactly"):
        dataclasses.replace(padded, unpadded_shape=unpadded)


def test_a_padded_mask_of_nothing_is_refused() -> None:
    with pytest.raises(ArtifactError, match="outside the unpadded shape"):
        LayerMask(weight_name="w", keep=np.zeros((4, 4), np.bool_), group_axis=1, pattern=PATTERN, unpadded_shape=(4, 0))


def test_a_mask_without_the_shape_before_padding_is_refused() -> None:
    padded = partial_mask(5).padded((5, 8, 3, 3))
    with pytest.raises(ArtifactError, match="45 of 90 groups do not keep exactly 2 of 4"):
        dataclasses.replace(padded, unpadded_shape=None)


def test_a_padded_set_goes_by_the_digest_of_the_learned_one() -> None:
    learned = mask_set()
    assert learned.padded(dict(learned.layers)) is learned
    layers = {**learned.layers, "a.weight": learned.layers["a.weight"].padded((8, 8, 3, 3))}
    padded = learned.padded(layers)
    assert padded.digest == learned.digest
    assert padded.layers["a.weight"].digest != learned.layers["a.weight"].digest
    with pytest.raises(AssertionError, match="the learned one is what is kept"):
        padded.to_bytes()


def test_digests_of_plain_masks_stay_what_they_were() -> None:
    # Recorded before masks could have a last group that is not full.
    keep = np.tile(np.array([True, False, False, True]), (2, 2))
    mask = LayerMask(weight_name="w", keep=keep, group_axis=1, pattern=PATTERN)
    assert mask.digest == "6fb20586d1e378a1e4d08e655e0f8236e20363b4ac4d9be227a50e17b4a50cfb"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_damaged(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.safetensors"
    data = mask_set().to_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtifactError, match="damaged"):
        read_mask_set(path)


def test_a_file_of_an_older_version_asks_to_learn_again(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save(load(mask_set().to_bytes()), metadata={"masksparse": '{"schema_version": 1}'}))
    with pytest.raises(ArtifactError, match=r"schema version 1; this version reads 4: run 'masksparse learn' again"):
        read_mask_set(path)


@pytest.mark.parametrize("header", ["[]", "[1]", "null", "{", '{"schema_version": 1}'])
def test_a_header_of_another_tool_is_damaged(tmp_path: Path, header: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(save({"keep/w": np.ones((4, 4), np.bool_)}, metadata={"masksparse": header}))
    with pytest.raises(ArtifactError, match=r"m\.safetensors"):
        read_mask_set(path)


@pytest.mark.parametrize(
    "change",
    [{"digest": ...}, {"layers": []}, {"layers": None}, {"method": 3}, {"source_sha256": None}, {"skipped": 3}],
    ids=str,
)
def test_a_header_with_fields_of_other_types_is_damaged(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "m.safetensors"
    data = mask_set().to_bytes()
    written = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["masksparse"]
    header = {key: value for key, value in {**json.loads(written), **change}.items() if value is not ...}
    path.write_bytes(save(load(data), metadata={"masksparse": json.dumps(header)}))
    with pytest.raises(ArtifactError, match=r"m\.safetensors is damaged"):
        read_mask_set(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    data = bytearray(mask_set().to_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        read_mask_set(path)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_mask_set(tmp_path / "none.safetensors")


def test_fingerprint_sees_names_shapes_dtypes_and_values() -> None:
    base = {"a": np.zeros((2, 3), np.float32)}
    others = [
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.full((2, 3), 1e-30, np.float32)},
    ]
    assert len({fingerprint(arrays) for arrays in [base, *others]}) == 5


@pytest.mark.parametrize(("group_axis", "wrong_axis"), [(1, 0), (0, 1)])
def test_a_mask_that_is_transposable_in_name_only_is_refused(group_axis: int, wrong_axis: int) -> None:
    keep = np.zeros((4, 4), dtype=np.bool_)
    keep[:, :2] = True
    keep = keep if group_axis == 1 else keep.T
    pattern = NMPattern(n=2, m=4, transposable=True)
    with pytest.raises(ArtifactError, match=f"4 of 4 groups do not keep exactly 2 of 4 along axis {wrong_axis}"):
        LayerMask(weight_name="w", keep=keep, group_axis=group_axis, pattern=pattern)


def test_a_transposable_mask_needs_full_tiles() -> None:
    keep = np.tile(np.array([[True, True, False, False]]), (6, 1))
    with pytest.raises(ArtifactError, match="axis 0 has 6 elements; a transposable T2:4 mask needs multiples of 4"):
        LayerMask(weight_name="w", keep=keep, group_axis=1, pattern=NMPattern(n=2, m=4, transposable=True))
