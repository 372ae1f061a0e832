"""The pattern that the options ask for, and whether their method can find it."""

from dataclasses import replace
from typing import Literal, get_args

from masksparse_deploy.core.any_pattern import Pattern, parse_pattern
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.channel_block import channel_block
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError

__all__ = ["BlockMethod", "requested_pattern"]

# The methods that find 1xN masks, and no others.
BlockMethod = Literal["subp", "blocks"]
BLOCK_METHODS = get_args(BlockMethod)

# These choose each group by itself, whatever the columns of a tile then hold.
_BY_GROUPS = ("auto", "gumbel", "scores")
# These train weights, and may as well start with fresh ones.
_FROM_SCRATCH = ("sparse-training", *BLOCK_METHODS)


def requested_pattern(options: MaskOptions) -> Pattern:
    """What `mask.pattern` says: transposable if the method is "transposable", and 1xN rounded as `mask.channel_block` says.

    Raises:
        UsageError: not a pattern, or one that the method cannot find; or other options that the method or the pattern excludes.
    """
    pattern = parse_pattern(options.pattern)
    _check_method(options, pattern)
    if isinstance(pattern, BlockPattern):
        return _rounded(options, pattern)
    if options.method == "transposable":
        return replace(pattern, transposable=True)
    if pattern.transposable and options.method in _BY_GROUPS:
        raise UsageError(
            f"mask.pattern {pattern} asks for transposable masks, and method {options.method!r} does not find any; use "
            f"transposable, adaprune or sparse-training, or mask.pattern {replace(pattern, transposable=False)}"
        )
    return pattern


def _check_method(options: MaskOptions, pattern: Pattern) -> None:
    method, is_block = options.method, isinstance(pattern, BlockPattern)
    if is_block and method not in BLOCK_METHODS:
        raise UsageError(
            f"mask.pattern {pattern} asks for 1xN blocks, and method {method!r} does not find any; use subp, which trains "
            "under them, or blocks, which chooses them once and fine-tunes; or mask.pattern 2:4"
        )
    if not is_block and method in BLOCK_METHODS:
        raise UsageError(
            f"method {method!r} finds 1xN blocks, and mask.pattern is {pattern}; use a pattern as 1x32@0.5, of which half of "
            "the blocks of 32 output channels is pruned, or another method, as sparse-training"
        )
    if options.initialization == "scratch" and method not in _FROM_SCRATCH:
        raise UsageError(
            f"mask.initialization scratch needs a method that can start with fresh weights, and {method!r} starts with the "
            f"trained ones; use {', '.join(_FROM_SCRATCH)}, or initialization: pretrained"
        )
    if method == "subp" and options.schedule_start >= options.schedule_end:
        raise UsageError(
            f"mask.schedule_start {options.schedule_start} does not lie before mask.schedule_end {options.schedule_end}; "
            "blocks begin to stay pruned at the first share of the steps, and none is regrown after the second"
        )


def _rounded(options: MaskOptions, pattern: BlockPattern) -> BlockPattern:
    for name, asked in (("permute", options.permute), ("pad_channels", options.pad_channels)):
        if asked:
            raise UsageError(
                f"mask.{name} is for N:M masks, whose groups are consecutive input channels; with mask.pattern {pattern} "
                f"remove it: blocks are chosen among all input channels"
            )
    if not pattern.uniform:
        if options.method == "subp":
            raise UsageError(
                f"mask.pattern {pattern} is not uniform, and method 'subp' keeps equally many channels in every group; use "
                f"mask.pattern {replace(pattern, uniform=True)}, or method blocks"
            )
        return pattern
    block = options.channel_block
    if pattern.multiple > 1:
        if block not in ("auto", pattern.multiple):
            raise UsageError(
                f"mask.pattern {pattern} keeps multiples of {pattern.multiple} channels, and mask.channel_block is {block}; "
                "remove one of them"
            )
        return pattern
    return replace(pattern, multiple=channel_block() if block == "auto" else block)
