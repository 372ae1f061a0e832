import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from masksparse_deploy.core.errors import UsageError
from tools import mask_diversity


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Counting T8:16 takes seconds, and tests/core/test_diversity.py does it.
    monkeypatch.setattr(mask_diversity, "PATTERNS", tuple(text for text in mask_diversity.PATTERNS if text != "T8:16"))
    generator = np.random.default_rng(0)
    shapes = {"stem.weight": (16, 3, 3, 3), "conv.weight": (64, 32, 3, 3), "fc.weight": (16, 64), "fc.bias": (16,)}
    save_file(
        {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}, tmp_path / "w.safetensors"
    )
    return tmp_path / "w.safetensors"


def test_what_structures_keep_of_normal_weights(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mask_diversity.main([str(weights), "--json"]) == 0
    points = {point["name"]: point for point in json.loads(capsys.readouterr().out)}
    # Of N(0, 1) as T grows; here T is 19,456, and the share of so many weights strays by about 0.6 / sqrt(T) = 0.004.
    expected = {"unstructured": 0.797, "8:16": 0.782, "4:8": 0.768, "2:4": 0.745, "T4:8": 0.742, "1:2": 0.707, "T2:4": 0.702}
    for name, share in expected.items():
        assert points[name]["kept_share"] == pytest.approx(share, abs=0.008), name
    assert points["2:4"]["log10_masks"] == pytest.approx(12.45, abs=0.005)
    assert points["T2:4"]["log10_masks"] == pytest.approx(7.82, abs=0.005)
    assert points["T2:4"]["log10_by_paper"] == pytest.approx(8.63, abs=0.005)
    assert points["2:4"]["log10_by_paper"] is None
    # C(32, 16)^16 and C(64, 32) masks of blocks of four and of sixteen in the second layer, by hand.
    of_blocks = 64 * (16 * 8.7788 + 4 * 18.2631) / 19_456
    assert points["1x4 blocks"]["log10_masks"] == pytest.approx(of_blocks, abs=1e-4)
    shares = [point["kept_share"] for point in points.values()]
    assert shares == sorted(shares, reverse=True)


def test_table_and_plot(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out" / "plot.html"
    assert mask_diversity.main([str(weights), "--out", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 1 + 7 + 2
    assert re.fullmatch(r"\| T2:4 \| 0\.\d{4} \| 7\.82 \| 8\.63 \|", next(line for line in lines if "T2:4" in line))
    text = page.read_text()
    assert '"T4:8"' in text and "share of |weight| that is kept" in text and "w: 2 layers, 19,456 weights" in text


def test_a_checkpoint_without_such_kernels_is_refused(tmp_path: Path) -> None:
    save_file({"stem.weight": np.ones((16, 3, 3, 3), dtype=np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"w.safetensors holds no kernel with multiples of 16 output and input channels"):
        mask_diversity.main([str(tmp_path / "w.safetensors")])
