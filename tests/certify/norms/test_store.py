"""Norms of earlier runs: used where they can be right, ignored with a remark where the file is damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from masksparse_deploy.certify.norms import convolution
from masksparse_deploy.certify.norms.store import NormStore, _NormFile, _seal
from masksparse_deploy.certify.operator_norm import NormBound, NormCache, convolution_norm, matrix_norm

Array = npt.NDArray[Any]

GENERATOR = np.random.default_rng(0)
KERNEL = GENERATOR.standard_normal((6, 5, 3, 3)) * 1e-3
MATRIX = GENERATOR.standard_normal((40, 50))
GROUPED = GENERATOR.standard_normal((8, 2, 3))


def norms_of(store: NormStore | None, *, grid: int = 8) -> list[NormBound]:
    cache = NormCache(grid=grid, store=store)
    found = [
        cache.convolution(KERNEL, strides=(2, 1), dilations=(1, 1), groups=1, padded_size=(9, 9)),
        cache.convolution(GROUPED, strides=(1,), dilations=(2,), groups=4, padded_size=(99,)),
        cache.matrix(MATRIX),
    ]
    if store is not None:
        store.save()
    return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each norm that is computed."""
    calls: list[str] = []
    original = convolution.evaluate

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append("computed")
        return original(*arguments, **options)

    monkeypatch.setattr("masksparse_deploy.certify.operator_norm.evaluate", counting)
    return calls


def edit(path: Path, change: Any) -> None:
    """Change the entries as somebody would who knows how the file is sealed."""
    content = json.loads(path.read_bytes())
    for entry in content["entries"].values():
        change(entry)
    sealed = _NormFile.model_validate_json(json.dumps({"entries": content["entries"], "entries_sha256": ""}))
    _NormFile(entries=sealed.entries, entries_sha256=_seal(sealed.entries)).write(path)


def test_a_second_run_computes_nothing_and_finds_the_same(tmp_path: Path, counted: list[str]) -> None:
    path = tmp_path / "norms.json"
    first = norms_of(NormStore(path))
    assert len(counted) == 3
    written = path.read_bytes()
    assert norms_of(NormStore(path)) == first == norms_of(None)
    assert len(counted) == 6  # those without a file
    assert path.read_bytes() == written


def test_another_grid_or_geometry_is_another_norm(tmp_path: Path, counted: list[str]) -> None:
    path = tmp_path / "norms.json"
    norms_of(NormStore(path))
    cache = NormCache(grid=8, store=NormStore(path))
    counted.clear()
    cache.convolution(KERNEL, strides=(1, 1), dilations=(1, 1), groups=1, padded_size=(9, 9))
    cache.convolution(KERNEL, strides=(2, 1), dilations=(1, 1), groups=1, padded_size=(9, 10))
    cache.convolution(KERNEL + 1e-9, strides=(2, 1), dilations=(1, 1), groups=1, padded_size=(9, 9))
    NormCache(grid=9, store=NormStore(path)).matrix(MATRIX)
    assert len(counted) == 4


def test_what_a_run_did_not_use_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "norms.json"
    norms_of(NormStore(path))
    store = NormStore(path)
    NormCache(grid=8, store=store).matrix(MATRIX)
    store.save()
    assert len(json.loads(path.read_bytes())["entries"]) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"{}", "not a masksparse operator norms file"),
        (b'{"kind": "operator norms", "schema_version": 0}', "schema version 0"),
        (b'{"kind": "operator norms", "schema_version": 1, "entries": 5}', "the file is damaged"),
        (b'{"kind": "operator norms", "schema_version": 1, "entries": {}, "entries_sha256": ""}', "is not as it was written"),
    ],
)
def test_a_damaged_file_is_ignored_with_a_remark(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "norms.json"
    path.write_bytes(content)
    store = NormStore(path)
    assert store.remark is not None
    assert store.remark.startswith("known norms are ignored and computed anew: ")
    assert reason in store.remark
    assert norms_of(store) == norms_of(None)
    assert NormStore(path).remark is None  # replaced


def test_one_changed_digit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "norms.json"
    norms_of(NormStore(path))
    text = path.read_text()
    place = text.index('"value": ') + len('"value": 0.00')
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    remark = NormStore(path).remark
    assert remark is not None and "is not as it was written" in remark


@pytest.mark.parametrize(
    "changes",
    [
        {"value": 0.0},
        {"value": -1.0},
        {"value": 1e-3},
        {"value": 1e9},
        {"cell": (99,)},
        {"cell": (-1, -1)},
        {"cells": ()},
        {"cells": (0, 0), "cell": (0, 0)},
        {"group": 7},
        {"group": -1},
        {"method": "guess"},
    ],
)
def test_a_sealed_norm_that_cannot_be_right_is_computed_anew(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "norms.json"
    norms_of(NormStore(path))
    edit(path, lambda entry: entry.update(changes))
    store = NormStore(path)
    assert store.remark is None
    assert norms_of(store) == norms_of(None)


def test_a_norm_that_is_a_hundredth_too_small_is_computed_anew(tmp_path: Path) -> None:
    path = tmp_path / "norms.json"
    expected = norms_of(NormStore(path))
    edit(path, lambda entry: entry.update(value=0.99 * entry["value"]))
    assert norms_of(NormStore(path)) == expected


def test_nothing_is_written_where_nothing_is_asked(tmp_path: Path) -> None:
    NormStore(tmp_path / "norms.json").save()
    assert list(tmp_path.iterdir()) == []
    assert matrix_norm(MATRIX) == convolution_norm(MATRIX[:, :, None])
