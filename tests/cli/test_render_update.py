"""An update as lines of text."""

from typing import Any

import pytest

from masksparse_deploy.cli.render_update import masks_line, update_lines
from tests.models.tiny_cnn import magnitude_masks, tiny_cnn
from tests.report.updates import make_layer, make_update


def text(**changes: Any) -> str:
    return "\n".join(update_lines(make_update(**changes)))


def test_the_whole() -> None:
    assert update_lines(make_update()) == [
        "accuracy dense 95.00% -> 96.00%, masked 94.00% -> 93.00%, 100 images",
        "masked network with the new weights, against",
        *(
            f"  {against}: layer at most 1 output l2 per input l2, end to end at most 25 on the samples, measured 2"
            for against in ("dense, new weights", "masked, old weights", "dense, old weights")
        ),
        "within the layerwise budget: no layer's bound is more than 10 % above the old one, without computing any again",
        "beyond the end-to-end budget of 2.50e-03 of each layer's norm; data-free bound 28 -> 30, limit 30.8",
        "[green]The masks need not be learned again.[/]",
    ]


BEYOND = {"within_layerwise": False, "layers": (make_layer("blocks.0", within_layerwise=False),)}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (BEYOND, "beyond the layerwise budget in 1 of 1 layers; computed anew, no layer's bound is more than 10 % above"),
        ({**BEYOND, "grown": ("blocks.0",)}, "computed anew, 1 bounds are more than 10 % above the old one (blocks.0)"),
        ({"within_end_to_end": True}, "within the end-to-end budget of 2.50e-03"),
        ({"within_end_to_end": None}, "no end-to-end budget: there is no data-free bound"),
        ({"end_to_end_new": None}, "data-free bound 28 -> none, limit 30.8"),
        ({"other_changes": ("PRelu PRelu1",)}, "changed, and covered by no budget: PRelu PRelu1"),
        ({"relearn": True, "advice": "Learn the masks again."}, "[yellow]Learn the masks again.[/]"),
        ({"relearn": None, "advice": "It cannot be told."}, "[yellow]It cannot be told.[/]"),
        ({"remarks": ("other images",)}, "[yellow]note[/] other images"),
        ({"dense_correct_old": None, "sparse_correct_old": None}, "accuracy dense ? -> 96.00%, masked ? -> 93.00%"),
    ],
)
def test_what_else_may_be_said(changes: dict[str, Any], line: str) -> None:
    assert line not in text()
    assert line in text(**changes)


def test_masks_are_counted_and_statistics_named() -> None:
    line = masks_line(magnitude_masks(tiny_cnn()), "re-estimated")
    assert line == "the masks of 2 layers (magnitude), for the new weights; statistics: re-estimated"
