"""The pattern that the options ask for, and whether their method can find it."""

from dataclasses import replace

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern

__all__ = ["requested_pattern"]

# These choose each group by itself, whatever the columns of a tile then hold.
_BY_GROUPS = ("auto", "gumbel", "scores")


def requested_pattern(options: MaskOptions) -> NMPattern:
    """N:M, transposable if the pattern says so or the method is "transposable".

    Raises:
        UsageError: not a pattern, or a transposable one that the method cannot find.
    """
    pattern = NMPattern.parse(options.pattern)
    if options.method == "transposable":
        return replace(pattern, transposable=True)
    if pattern.transposable and options.method in _BY_GROUPS:
        raise UsageError(
            f"mask.pattern {pattern} asks for transposable masks, and method {options.method!r} does not find any; use "
            f"transposable, adaprune or sparse-training, or mask.pattern {replace(pattern, transposable=False)}"
        )
    return pattern
