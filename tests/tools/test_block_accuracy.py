import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.core.samples import Samples
from tests.models.cifar_resnet import wide_resnet8
from tools import block_accuracy

# Stands in for the folder of the real images.
READER = """
import numpy as np

def _images(count, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(10, size=count)
    return generator.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), labels, np.ones(count, bool)

def train_set(batches):
    return _images(160, 0)

def test_set():
    return _images(40, 1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "read_cifar10.py").write_text(READER)
    torch.manual_seed(0)
    save_file(wide_resnet8().state_dict(), tmp_path / "wide.safetensors")
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    block_accuracy.main(
        [
            *("--data", str(folder), "--results", str(folder / "results"), "--network", "wide_resnet8"),
            *("--checkpoint", str(folder / "wide.safetensors"), *arguments),
        ]
    )


def only_result(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "results").glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_run_says_all_that_it_depends_on_and_is_not_done_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--method", "blocks", "--pattern", "1x32@0.5", "--seed", "3")
    result = only_result(folder)
    names = [path.name for path in sorted((folder / "results").iterdir())]
    assert names == [f"wide_resnet8_blocks_1x32p0.5_epochs-1_seed-3.{suffix}" for suffix in ("json", "safetensors")]
    masks = read_mask_set(folder / "results" / names[1])
    assert {str(mask.pattern) for mask in masks.layers.values()} == {"1x32@0.5"}
    assert (result["method"], result["seed"], result["total"], result["masked_layers"]) == ("blocks", 3, 40, 6)
    assert (result["kept_share"], result["options"]["autocast"], result["options"]["channel_block"]) == (0.5, "bfloat16", 1)
    assert 0 <= result["correct"] <= 40 and len(result["losses"]) == 1
    capsys.readouterr()
    run(folder, "--method", "blocks", "--pattern", "1x32@0.5", "--seed", "3")
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(UsageError, match="holds a run with other settings"):
        run(folder, "--method", "blocks", "--pattern", "1x32@0.5", "--seed", "3", "--train-count", "128")


def test_images_that_are_held_out_are_not_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def count(model: object, samples: Samples, *arguments: object, **options: object) -> int:
        seen.append(len(samples))
        return 0

    monkeypatch.setattr(block_accuracy, "count_correct", count)
    given = block_accuracy._parser().parse_args(["--data", str(folder), "--results", str(folder), "--held-out", "32"])
    train, judged = block_accuracy._images(given)
    assert (len(train), len(judged)) == (128, 32)
    assert not (train.images[:, None, 0, 0, :2] == judged.images[None, :, 0, 0, :2]).all(-1).any()
    run(folder, "--method", "dense", "--held-out", "32")
    assert set(seen) == {32}
    assert only_result(folder)["kept_share"] == 1


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("no checkpoint of wide_resnet8 is published; train one (tools/train_cifar")):
        block_accuracy.main(["--data", str(folder), "--results", str(folder / "r"), "--network", "wide_resnet8"])
    with pytest.raises(UsageError, match="--data is missing"):
        block_accuracy.main(["--results", str(folder / "r")])


def result(method: str, seed: int, correct: int, **options: object) -> dict[str, Any]:
    return {
        "network": "resnet20",
        "method": method,
        "seed": seed,
        "epochs": 1,
        "held_out": 0,
        "correct": correct,
        "total": 10_000,
        "dense_correct": 9173,
        "kept_share": 0.5,
        "masked_layers": 18,
        "options": {"pattern": "1x16@0.5", "criterion": "bpar", **options},
    }


def test_the_table_has_a_row_for_seeds_that_differ_in_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [result("subp", seed, correct) for seed, correct in enumerate((8900, 9000, 9100))]
    results += [result("subp", 0, 8000, criterion="l1"), result("sparse-training", 0, 9100, pattern="2:4")]
    for place, found in enumerate(results):
        (tmp_path / f"{place}.json").write_text(json.dumps(found))
    block_accuracy.main(["--results", str(tmp_path), "--table"])
    # The standard deviation of three values a point apart is one point.
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| resnet20 | sparse-training, 2:4 | 18 | 50.0% | 91.00 % |  | 1 | 91.73% |",
        "| resnet20 | subp, 1x16@0.5 | 18 | 50.0% | 90.00 % | 1.00 | 3 | 91.73% |",
        "| resnet20 | subp, 1x16@0.5, criterion l1 | 18 | 50.0% | 80.00 % |  | 1 | 91.73% |",
    ]


def test_channels_are_normalised_as_the_checkpoints_want_them() -> None:
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    pixels[..., 1] = 255
    images = block_accuracy._samples((pixels, np.zeros(1)), 5).images
    # Zero and one less the mean, over the deviation: ImageNet's, to a unit of float32 in each of the two steps.
    np.testing.assert_allclose(images[0, :, 0, 0], [-0.485 / 0.229, (1 - 0.456) / 0.224, -0.406 / 0.225], rtol=1e-6)
