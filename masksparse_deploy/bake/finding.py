"""What the linter finds of one layer, and what the layer claims of itself."""

from collections.abc import Mapping
from dataclasses import dataclass

from masksparse_deploy.core.any_pattern import Pattern, parse_pattern
from masksparse_deploy.core.artifacts.baking import LintState
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.model import WeightedLayer

__all__ = ["Claim", "Finding", "channel_words", "dtype_of"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """State and reason, what was counted, and how the weights differ from their annotation.

    `pattern` is what a conforming layer conforms to, None for others; `computed_share` the share of the layer's arithmetic
    that is left if its zeros cost nothing, 1 for others. `crosswise` tells of a conforming layer why it is not N:M along its
    output channels too, in words, and is empty if it is; None for other layers.
    """

    state: LintState
    why: str
    density: float
    group_count: int = 0
    violation_count: int = 0
    pattern: Pattern | None = None
    computed_share: float = 1.0
    drift: tuple[str, ...] = ()
    crosswise: str | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an annotation says: a pattern, along which axis, with which share of nonzeros, from which mask, padded from what."""

    pattern: Pattern
    group_axis: int
    density: float | None
    mask_sha256: str | None
    unpadded_shape: tuple[int, ...] | None

    @classmethod
    def parse(cls, notes: Mapping[str, str]) -> "Claim":
        """Read the annotations; raises KeyError, ValueError or UsageError."""
        density = float(notes[keys.DENSITY]) if keys.DENSITY in notes else None
        if density is not None and not 0 <= density <= 1:
            raise ValueError(f"a density of {density}")
        unpadded = notes.get(keys.UNPADDED_SHAPE)
        return cls(
            pattern=parse_pattern(notes[keys.PATTERN]),
            group_axis=int(notes[keys.GROUP_AXIS]),
            density=density,
            mask_sha256=notes.get(keys.MASK_SHA256),
            unpadded_shape=None if unpadded is None else tuple(map(int, unpadded.split("x"))),
        )

    def changed_density(self, nonzero_count: int, weight_count: int) -> str:
        """How far the share of nonzeros is from what is noted, in words; empty if it is not."""
        change = 0 if self.density is None else nonzero_count - round(self.density * weight_count)
        if not change:
            return ""
        words = f"{change:,} nonzeros put back" if change > 0 else f"{-change:,} nonzeros lost"
        return f"{words}: density {nonzero_count / max(weight_count, 1):.4g}, noted {self.density:g}"

    def denser_than_noted(self, nonzero_count: int, weight_count: int) -> str:
        """Why the density breaks the claim, in words; empty where it does not.

        Fewer nonzeros than noted are harmless: weights too small for a lower precision vanish when a file is converted.
        """
        density = nonzero_count / max(weight_count, 1)
        if self.density is None or density <= self.density + 0.5 / max(weight_count, 1):
            return ""
        return f"annotated with density {self.density:g}, but {density:.4g} of the weights are not zero"


def dtype_of(layer: WeightedLayer) -> str:
    """The type that the layer multiplies by: what is dequantized stays quantized in an engine."""
    return layer.quantized or layer.weight.dtype.name


def channel_words(count: int, kind: str = "input") -> str:
    """The count of channels, in words."""
    return f"{count} {kind} channel" + ("" if count == 1 else "s")
