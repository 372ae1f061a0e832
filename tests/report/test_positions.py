"""Output positions that are not computed, in the report: how many, where, and in which form the engine has them."""

import re

import numpy as np
import pytest

from masksparse_deploy.cli.render import bake_lines
from masksparse_deploy.core.artifacts.baking import BakedPositions
from masksparse_deploy.core.artifacts.learning import PositionedLayer
from masksparse_deploy.core.artifacts.rewriting import LayerRewrite
from masksparse_deploy.report.formats import NOTHING, TIMES
from masksparse_deploy.report.position_pictures import position_pictures
from masksparse_deploy.report.render import render_report
from tests.report.artifacts import make_bake, make_inputs, make_learn, make_rewrite
from tests.report.test_render import _text

KEEP = np.array([[True, True, False, True], [False, False, True, False], [True, True, True, True]])


def row(layer: str, keep: np.ndarray = KEEP, mac_count: int | None = 1200) -> BakedPositions:
    return BakedPositions(
        layer=layer,
        node=f"node_{layer}",
        where=f"node_{layer}.positions",
        height=keep.shape[0],
        width=keep.shape[1],
        kept_count=int(keep.sum()),
        mask_sha256="0" * 64,
        keep=np.packbits(keep).tobytes().hex(),
        mac_count=mac_count,
    )


ROWS = (row("a"), row("b"), row("c", ~KEEP))


def drawn(path: str) -> np.ndarray:
    """The mask that a path fills."""
    found = np.zeros(KEEP.shape, dtype=np.bool_)
    runs = re.findall(r"M(\d+) (\d+)h(\d+)v1H(\d+)z", path)
    assert "".join(f"M{x} {y}h{length}v1H{back}z" for x, y, length, back in runs) == path
    for x, y, length, back in runs:
        assert back == x
        found[int(y), int(x) : int(x) + int(length)] = True
    return found


def test_a_mask_of_several_layers_is_drawn_once() -> None:
    first, second = position_pictures(ROWS)
    assert (first.layers, second.layers) == (("a", "b"), ("c",))
    np.testing.assert_array_equal(drawn(first.path), KEEP)
    np.testing.assert_array_equal(drawn(second.path), ~KEEP)
    assert first.description == "8 of 3 x 4 positions are computed"


def test_masks_too_large_to_see_are_not_drawn() -> None:
    (picture,) = position_pictures((row("a", np.ones((257, 2), dtype=np.bool_)),))
    assert picture.path == ""
    assert f"257 {TIMES} 2, 100.0 % computed: a" in _text(
        render_report(make_inputs(bake=make_bake().model_copy(update={"positions": (row("a", np.ones((257, 2), np.bool_)),)})))
    )


def test_layers_and_what_the_rewrite_made_of_them_are_listed() -> None:
    layer = make_rewrite().layers[0]
    rewritten = LayerRewrite(
        **{**dict(layer), "node": "node_a", "form": "rows", "speedup": 1.5, "reason": "1.50 times as fast"}
    )
    rewrite = make_rewrite().model_copy(update={"layers": (rewritten,)})
    html = render_report(make_inputs(bake=make_bake().model_copy(update={"positions": ROWS}), rewrite=rewrite))
    text = _text(html)
    assert "3 convolutions compute 20 of 36 output positions, the same for all channels and images." in text
    # 1200 multiplications are 100 a position: 4, 4 and 8 positions are left out
    assert "That leaves out 1,600 multiplications for each image." in text
    assert f"a 3 {TIMES} 4 8 33.3 % rows 1.50{TIMES} 1.50 times as fast" in text
    assert f"c 3 {TIMES} 4 4 66.7 % {NOTHING}" in text
    assert html.count('aria-label="8 of 3 x 4 positions are computed"') == 1


def test_layers_that_were_not_timed_have_no_plot_but_a_row() -> None:
    layer = LayerRewrite(
        **{**dict(make_rewrite().layers[0]), "node": "node_a", "form": "dense", "speedup": None, "interval": None}
    )
    rewrite = make_rewrite(rewritten=False).model_copy(update={"layers": (layer,)})
    html = render_report(make_inputs(bake=make_bake().model_copy(update={"positions": ROWS}), rewrite=rewrite))
    assert 'id="plot-rewrite"' not in html
    assert f"a 3 {TIMES} 4 8 33.3 % dense {layer.reason}" in _text(html)


def test_where_the_file_does_not_tell_the_work_nothing_is_said_of_it() -> None:
    bake = make_bake().model_copy(update={"positions": (row("a", mac_count=None),)})
    text = _text(render_report(make_inputs(bake=bake)))
    assert "1 convolution computes 8 of 12 output positions" in text
    assert "That leaves out" not in text


def test_without_masked_positions_nothing_is_said() -> None:
    assert "positions that are not computed" not in _text(render_report(make_inputs())).replace("the positions that", "")


def test_positions_alone_are_no_pattern_of_weights() -> None:
    layer = PositionedLayer(name="a", height=3, width=4, density=8 / 12, mac_count=1200, mask_sha256="0" * 64)
    learn = make_learn().model_copy(update={"layers": (), "positions": (layer,), "method": "positions"})
    text = _text(render_report(make_inputs(learn=learn)))
    assert "Output positions of 1 convolutions are left out, no weights: chosen by" in text
    assert "2:4 along the input channels, masks chosen by" not in text
    assert "as it has fewer weights and positions to compute" in text


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (ROWS, "3 convolutions compute 20 of 36 output positions (55.6 %)"),
        ((row("a"),), "1 convolution computes 8 of 12 output positions (66.7 %)"),
    ],
)
def test_the_console_tells_the_share(rows: tuple[BakedPositions, ...], line: str) -> None:
    assert line in bake_lines(make_bake().model_copy(update={"positions": rows}))


def test_without_masks_of_weights_the_console_counts_none() -> None:
    bake = make_bake()
    assert "layers conform" in bake_lines(bake)[0]
    alone = bake.model_copy(update={"positions": ROWS, "layers": ()})
    assert bake_lines(alone)[0] == "dense.onnx, sparse.onnx   opset 20, FP32"
