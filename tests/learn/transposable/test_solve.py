"""Masks of tiles and of weights: feasible along both axes, and refused by name where there can be none."""

import json
import subprocess
import sys
import tracemalloc
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file

from masksparse_deploy.core.errors import MachineError, UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.transposable import solve
from masksparse_deploy.learn.transposable.solve import Solver, solve_tiles, transposable_mask
from masksparse_deploy.learn.transposable.tiles import from_tiles, tiles_of
from tests.learn.transposable.tiles import assert_exactly_n, kept_sums, random_tiles
from tests.requirements import SHARED_DATA, requires


def products(keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mask in the matrices of the forward and of the backward product, (out, kh * kw * in) and (in, kh * kw * out)."""
    forward = np.moveaxis(keep, 1, -1).reshape(len(keep), -1)
    backward = np.moveaxis(keep.swapaxes(0, 1), 1, -1).reshape(keep.shape[1], -1)
    return forward, backward


def assert_exact_along_both(keep: np.ndarray, pattern: NMPattern) -> None:
    for matrix in products(keep):
        assert (matrix.reshape(len(matrix), -1, pattern.m).sum(axis=2) == pattern.n).all()


@pytest.mark.parametrize("shape", [(8, 16), (16, 8, 3, 3), (8, 8, 1)])
@pytest.mark.parametrize("pattern", ["T2:4", "T4:8", "T1:8"])
def test_a_mask_is_n_to_m_for_the_weight_and_its_transpose(shape: tuple[int, ...], pattern: str) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    keep = transposable_mask(weight, NMPattern.parse(pattern))
    assert keep.shape == shape
    assert_exact_along_both(keep, NMPattern.parse(pattern))


def test_a_mask_for_the_forward_product_alone_is_seen() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    keep = NMPattern.parse("2:4").keep_largest(np.abs(weight), group_axis=1)
    with pytest.raises(AssertionError):
        assert_exact_along_both(keep, NMPattern.parse("T2:4"))


@requires(shared_data=True)
@pytest.mark.parametrize("pattern", ["T2:4", "T4:8", "T8:16"])
def test_masks_of_a_trained_network(pattern: str) -> None:
    weights = load_file(next((SHARED_DATA / "weights").glob("cifar10_resnet20-*.safetensors")))
    parsed = NMPattern.parse(pattern)
    kernels = [weight for weight in weights.values() if weight.ndim == 4 and weight.shape[1] % parsed.m == 0]
    assert len(kernels) == 18
    for weight in kernels:
        keep = transposable_mask(weight, parsed)
        assert_exact_along_both(keep, parsed)
        tiles, of_tiles = tiles_of(np.abs(weight), parsed.m), tiles_of(keep, parsed.m)
        flow = solve_tiles(tiles[:20], parsed.n, solver="flow").keep
        np.testing.assert_allclose(kept_sums(tiles[:20], of_tiles[:20]), kept_sums(tiles[:20], flow), rtol=1e-11)  # 2^-39 n m


def test_tiles_lie_within_one_place_of_the_kernel() -> None:
    weight = np.arange(8 * 4 * 2 * 1).reshape(8, 4, 2, 1)
    tiles = tiles_of(weight, 4)
    assert tiles.shape == (4, 4, 4)
    assert (tiles[1] == weight[:4, :4, 1, 0]).all()
    assert (tiles[2] == weight[4:, :4, 0, 0]).all()


@pytest.mark.parametrize("shape", [(8, 12), (4, 8, 3, 5), (12, 4, 1, 2, 3)])
def test_tiles_go_back_where_they_came_from(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape)
    assert (from_tiles(tiles_of(weight, 4), shape) == weight).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_floating_types_are_taken_as_they_come(dtype: type) -> None:
    tiles = random_tiles(10, 8).astype(dtype)
    assert_exactly_n(solve_tiles(tiles, 4).keep, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_scale_of_a_tile_does_not_matter(dtype: type) -> None:
    tiles = random_tiles(20, 8).astype(dtype)
    expected = solve_tiles(tiles, 4).keep
    top = np.finfo(dtype).maxexp
    for exponent in (top - 3, 40, -40, 2 - top):
        assert (solve_tiles(np.ldexp(tiles, exponent), 4).keep == expected).all()


def test_no_tiles_are_no_problem() -> None:
    found = solve_tiles(np.empty((0, 4, 4), dtype=np.float32), 2)
    assert found.keep.shape == (0, 4, 4)
    assert found.saturated.shape == (0,)


def test_blocks_are_solved_alike_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = random_tiles(25, 8)
    at_once = solve_tiles(tiles, 4).keep
    monkeypatch.setattr(solve, "_BLOCK", 10 * 64)
    told: list[tuple[str, int, int]] = []
    assert (solve_tiles(tiles, 4, progress=lambda *now: told.append(now)).keep == at_once).all()
    assert told == [("transposable masks", done, 25) for done in (10, 20, 25)]


@pytest.mark.parametrize("solver", ["exact", "greedy"])
def test_working_memory_does_not_grow_with_the_weights(solver: Solver) -> None:
    tiles = np.zeros((2**22 // 64, 8, 8), dtype=np.float32)  # ties: the exact solver needs most
    tracemalloc.start()
    solve_tiles(tiles, 4, solver=solver)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes - tiles.size < 40 * 2**20  # a mask has one byte for each weight


def test_the_weights_stay_as_they_are() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    before = weight.copy()
    for solver in ("exact", "greedy", "entropy"):
        transposable_mask(weight, NMPattern.parse("T4:8"), solver=cast(Solver, solver))
    assert (weight == before).all()


@pytest.mark.parametrize(
    ("shape", "channels"), [((8, 6, 3, 3), "6 input channels"), ((6, 8), "6 output channels"), ((0, 8), "0 output channels")]
)
def test_channels_must_be_multiples_of_m(shape: tuple[int, ...], channels: str) -> None:
    with pytest.raises(UsageError, match=f"has {channels}, not a multiple of 4: .* leave the layer dense or choose an M"):
        transposable_mask(np.ones(shape, dtype=np.float32), NMPattern.parse("T2:4"))


def test_a_bias_has_no_tiles() -> None:
    with pytest.raises(UsageError, match=r"shape \(8,\) has no tiles: it needs output and input channels"):
        transposable_mask(np.ones(8, dtype=np.float32), NMPattern.parse("T2:4"))


@pytest.mark.parametrize(
    ("tiles", "n", "options", "message"),
    [
        (np.full((1, 4, 4), np.nan), 2, {}, "NaN or infinite; repair the checkpoint"),
        (np.full((1, 4, 4), np.inf), 2, {}, "NaN or infinite; repair the checkpoint"),
        (np.full((1, 4, 4), -1.0), 2, {}, "must not be negative, but one is -1; pass the absolute values"),
        (np.ones((4, 4)), 2, {}, r"tiles of shape \(4, 4\): expected \(tiles, m, m\)"),
        (np.ones((1, 4, 5)), 2, {}, r"tiles of shape \(1, 4, 5\): expected \(tiles, m, m\)"),
        (np.ones((1, 4, 4)), 5, {}, "pattern 5:4: N:M keeps N of M with 1 <= N <= M <= 32"),
        (np.ones((1, 64, 64)), 2, {}, "pattern 2:64: N:M keeps N of M with 1 <= N <= M <= 32"),
        (np.ones((1, 4, 4)), 2, {"solver": "best"}, "unknown solver 'best' .*; one of exact, enumeration, flow, greedy"),
        (np.ones((1, 8, 8)), 4, {"solver": "enumeration"}, "enumeration takes tiles up to 4 x 4, not 8 x 8; use exact"),
    ],
)
def test_bad_tiles_are_refused(tiles: np.ndarray, n: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        solve_tiles(tiles, n, **options)


def test_flow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)
    monkeypatch.setitem(sys.modules, "ortools.graph.python.min_cost_flow", None)
    with pytest.raises(
        MachineError, match=r"ortools is needed for transposable masks by .* 'masksparse-deploy\[transposable\]'"
    ):
        solve_tiles(random_tiles(1, 4), 2, solver="flow")


def test_the_solvers_need_neither_torch_nor_ortools() -> None:
    # The package above imports torch for other purposes; the solvers' own files are loaded without it.
    program = """
import json, sys, types
import masksparse_deploy
learn = types.ModuleType("masksparse_deploy.learn")
learn.__path__ = [masksparse_deploy.__path__[0] + "/learn"]
sys.modules["masksparse_deploy.learn"] = learn
sys.modules["torch"] = sys.modules["ortools"] = None
import numpy
from masksparse_deploy.learn.transposable.solve import solve_tiles
print(json.dumps(int(solve_tiles(numpy.ones((1, 8, 8)), 4).keep.sum())))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == 32
