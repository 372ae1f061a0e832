"""Any pattern that weights can be pruned by."""

from typing import TypeAlias

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.patterns import NMPattern

__all__ = ["Pattern", "parse_pattern"]

Pattern: TypeAlias = NMPattern | BlockPattern


def parse_pattern(text: str) -> Pattern:
    """Read "2:4", "T2:4", "1x32@0.5", "1x32@0.5/16" or "1x32~0.5"; raises UsageError for others."""
    return BlockPattern.parse(text) if text.strip().lower().startswith("1x") else NMPattern.parse(text)
