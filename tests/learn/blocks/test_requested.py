import re
from typing import get_args

import pytest

from masksparse_deploy.core.channel_block import channel_block
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.learn.requested import requested_pattern

METHODS = get_args(MaskOptions.model_fields["method"].annotation)


def options(**given: object) -> MaskOptions:
    return MaskOptions.model_validate({"method": "subp", "pattern": "1x32@0.5", **given})


@pytest.mark.parametrize("method", ["subp", "blocks"])
def test_rounding_is_that_of_the_machine_unless_it_is_given(method: str) -> None:
    found = {block: str(requested_pattern(options(method=method, channel_block=block))) for block in ("auto", 1, 8)}
    assert found == {"auto": f"1x32@0.5/{channel_block()}", 1: "1x32@0.5", 8: "1x32@0.5/8"}


def test_what_was_rounded_once_stays() -> None:
    for block in ("auto", 16):
        assert str(requested_pattern(options(pattern="1x32@0.5/16", channel_block=block))) == "1x32@0.5/16"
    assert str(requested_pattern(options(pattern="1x8~0.5", method="blocks", channel_block=16))) == "1x8~0.5"


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("subp", "blocks")])
def test_other_methods_find_no_blocks(method: str) -> None:
    message = f"mask.pattern 1x32@0.5 asks for 1xN blocks, and method '{method}' does not find any; use subp, which trains"
    with pytest.raises(UsageError, match=re.escape(message)):
        requested_pattern(options(method=method))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"pattern": "2:4"},
            "method 'subp' finds 1xN blocks, and mask.pattern is 2:4; use a pattern as 1x32@0.5, of which half",
        ),
        (
            {"pattern": "T2:4", "method": "blocks"},
            "method 'blocks' finds 1xN blocks, and mask.pattern is T2:4; use a pattern as",
        ),
        (
            {"pattern": "1x32~0.5"},
            "mask.pattern 1x32~0.5 is not uniform, and method 'subp' keeps equally many channels in every group; use "
            "mask.pattern 1x32@0.5, or method blocks",
        ),
        ({"pattern": "1x32@0.5/8", "channel_block": 16}, "keeps multiples of 8 channels, and mask.channel_block is 16; remove"),
        (
            {"permute": True},
            "mask.permute is for N:M masks, whose groups are consecutive input channels; with mask.pattern 1x32",
        ),
        ({"pad_channels": True}, "mask.pad_channels is for N:M masks"),
        (
            {"schedule_start": 0.8},
            "mask.schedule_start 0.8 does not lie before mask.schedule_end 0.75; blocks begin to stay pruned at the",
        ),
        (
            {"method": "scores", "pattern": "2:4", "initialization": "scratch"},
            "mask.initialization scratch needs a method that can start with fresh weights, and 'scores' starts with the "
            "trained ones; use sparse-training, subp, blocks, or initialization: pretrained",
        ),
        (
            {"method": "positions", "pattern": "2:4", "position_rate": 0.2, "initialization": "scratch"},
            "and 'positions' starts with the trained ones; use sparse-training, subp, blocks",
        ),
    ],
)
def test_what_does_not_go_together(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        requested_pattern(options(**given))


def test_the_schedule_is_of_no_concern_to_fixed_blocks() -> None:
    requested_pattern(options(method="blocks", schedule_start=0.9))
