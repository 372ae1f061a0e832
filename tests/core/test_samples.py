from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masksparse_deploy.core.config import DataOptions
from masksparse_deploy.core.errors import ArtifactError, MasksparseError, UsageError
from masksparse_deploy.core.samples import Samples, read_samples, read_split

IMAGES = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
LABELS = np.arange(5)


def test_float_images_are_taken_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    samples = read_samples("a.npz", folder=tmp_path)
    np.testing.assert_array_equal(samples.images, IMAGES)
    assert samples.labels.dtype == np.int64
    assert len(samples.first(2)) == 2
    assert samples.first(2).digest != samples.digest


def test_8_bit_images_are_scaled_normalised_and_brought_to_channels_first(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1])
    samples = read_samples("a.npz", folder=tmp_path, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert samples.images.shape == (2, 3, 4, 6)
    # float32: three roundings of values below 6, so 4 units in the last place of 2^-24 relative
    assert samples.images[1, 2, 3, 5] == pytest.approx((images[1, 3, 5, 2] / 255 - 0.3) / 0.7, rel=1e-6, abs=1e-6)


def test_a_folder_of_images_has_one_class_for_each_sub_folder(tmp_path: Path) -> None:
    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(2):
            picture = Image.new("RGB", (20, 10), (0, 255, 0))
            picture.paste(colour, (5, 0, 15, 10))
            picture.save(tmp_path / "data" / name / f"{index}.png")
    samples = read_samples("data", folder=tmp_path, image_size=8)
    assert samples.images.shape == (4, 3, 8, 8)
    assert samples.labels.tolist() == [0, 0, 1, 1]
    # the middle, not squeezed; bicubic weights reach a little across the edge to the green
    np.testing.assert_allclose(samples.images[0, :, 0, 0], [1, 0, 0], atol=0.1)
    # as notebooks and file managers leave them
    (tmp_path / "data" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "data" / "cat" / ".DS_Store").write_bytes(b"")
    assert read_samples("data", folder=tmp_path, image_size=8).digest == samples.digest


def test_a_factory_returns_a_pair(tmp_path: Path) -> None:
    code = "import numpy as np\ndef test():\n    return np.zeros((3, 1, 2, 2), np.float32), np.zeros(3, int)\n"
    (tmp_path / "mydata.py").write_text(code)
    assert len(read_samples("mydata:test", folder=tmp_path)) == 3


def test_training_images_may_lack_labels_and_no_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES)
    code = "import numpy as np\ndef images():\n    return np.zeros((3, 1, 2, 2), np.float32), None\n"
    (tmp_path / "unlabelled.py").write_text(code)
    for source, count in (("a.npz", 5), ("unlabelled:images", 3)):
        data = DataOptions(train=source, test=source, train_limit=2)
        train = read_split(data, "train", tmp_path)
        assert train.known_labels is None
        assert len(train) == 2
        assert len(read_samples(source, folder=tmp_path)) == count
        with pytest.raises(UsageError, match="the data set has no labels; add an array 'labels'"):
            _ = train.labels
        # Without validation images of their own, it is the test images that are asked for.
        for split, given, named in (("test", None, "test"), ("validation", None, "test"), ("validation", source, "validation")):
            chosen = data.model_copy(update={"validation": given})
            with pytest.raises(UsageError, match=f"{source}: the {named} images have no labels, without which no accuracy"):
                read_split(chosen, split, tmp_path)  # type: ignore[arg-type]
    assert Samples(IMAGES).digest != Samples(IMAGES, LABELS).digest


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise FileNotFoundError('train.gz')", "FileNotFoundError: train.gz"),
        ("return None", "must return a pair of arrays .* TypeError"),
        ("return [[1], [1, 2]], [0, 1]", "must return a pair of arrays .* ValueError"),
    ],
)
def test_a_bad_factory(tmp_path: Path, body: str, words: str) -> None:
    (tmp_path / "mydata.py").write_text(f"def test():\n    {body}\n")
    with pytest.raises(UsageError, match=words):
        read_samples("mydata:test", folder=tmp_path)


def test_a_standard_deviation_of_zero(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[0, 1])
    with pytest.raises(UsageError, match=r"data.std is \[0.0\]; every channel's standard deviation must be above 0"):
        read_samples("a.npz", folder=tmp_path, std=(0.0,))


CASES: list[tuple[str, dict[str, np.ndarray], type[MasksparseError], str]] = [
    ("no images", {"pixels": IMAGES, "labels": LABELS}, UsageError, "no array 'images'; it holds pixels, labels"),
    ("too few labels", {"images": IMAGES, "labels": LABELS[:3]}, UsageError, "5 images but labels of shape"),
    ("three dimensions", {"images": IMAGES[0], "labels": LABELS[:3]}, UsageError, "not float32 .count, channels"),
    (
        "integers that are not 8-bit",
        {"images": IMAGES.astype(np.int64), "labels": LABELS},
        UsageError,
        "images are int64; give 8",
    ),
    ("text", {"images": IMAGES.astype(str), "labels": LABELS}, UsageError, "images are <U"),
    ("labels that are flags", {"images": IMAGES, "labels": LABELS > 1}, UsageError, "labels are bool, not integers"),
    ("real labels", {"images": IMAGES, "labels": LABELS + 0.5}, UsageError, "labels are float64, not integers"),
    ("not a number", {"images": IMAGES * np.nan, "labels": LABELS}, ArtifactError, "NaN or infinite"),
    ("empty", {"images": IMAGES[:0], "labels": LABELS[:0]}, UsageError, "empty"),
]


@pytest.mark.parametrize(("arrays", "kind", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], kind: type[MasksparseError], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(kind, match=words):
        read_samples("a.npz", folder=tmp_path)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ArtifactError, match="damaged"):
        read_samples("a.npz", folder=tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_samples("b.npz", folder=tmp_path)
    with pytest.raises(UsageError, match="could not be imported"):
        read_samples("nowhere:test", folder=tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match=r"set data\.image_size"):
        read_samples("images", folder=tmp_path)
    with pytest.raises(UsageError, match="holds no images"):
        read_samples("images", folder=tmp_path, image_size=8)


def test_samples_refuse_other_dtypes() -> None:
    with pytest.raises(UsageError, match="float64"):
        Samples(IMAGES.astype(np.float64), LABELS)
