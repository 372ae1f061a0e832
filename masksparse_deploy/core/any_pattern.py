"""Any pattern that weights can be pruned by."""

from typing import TypeAlias

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.patterns import NMPattern

__all__ = ["Pattern", "group_limit", "parse_pattern"]

Pattern: TypeAlias = NMPattern | BlockPattern


def parse_pattern(text: str) -> Pattern:
    """Read "2:4", "T2:4", "1x32@0.5", "1x32@0.5/16" or "1x32~0.5"; raises UsageError for others."""
    return BlockPattern.parse(text) if text.strip().lower().startswith("1x") else NMPattern.parse(text)


def group_limit(pattern: Pattern, out_channels: int, in_channels: int, *, of: str = "weights") -> str:
    """What a group may keep, in words: "2 of 4 weights", "16 of 64 input channels"; `of` names the members of N:M groups."""
    if isinstance(pattern, NMPattern):
        along = " along input or output channels" if pattern.transposable else ""
        return f"{pattern.n} of {pattern.m}{of and f' {of}'}{along}"
    if pattern.uniform:
        return f"{pattern.kept_channels(in_channels)} of {in_channels} input channels"
    kept = pattern.kept_blocks(out_channels, in_channels)
    return f"{kept:,} of {out_channels // pattern.n * in_channels:,} blocks"
