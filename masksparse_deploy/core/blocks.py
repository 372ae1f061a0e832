"""The 1xN block pattern: N consecutive output channels share which input channels they read."""

import math
import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError

__all__ = ["BlockPattern"]

_Scalar = TypeVar("_Scalar", bound=np.generic)

_TEXT = re.compile(r"\s*1x(\d+)(@|~)(\d*\.?\d+)(?:/(\d+))?\s*")
_FORM = (
    "1xN@P, blocks of N output channels of which a share P is pruned, as 1x32@0.5; 1x32@0.5/16 keeps multiples of 16 channels"
)


@dataclass(frozen=True, kw_only=True)
class BlockPattern:
    """Blocks W[gN:(g+1)N, c, :, :], each kept or pruned as a whole; as text "1xN@P", "1xN@P/K", or "1xN~P" if not uniform.

    Xiang et al. 2023 (SUBP), after Lin et al. 2022 (1xN). Uniform: every group g of N output channels keeps equally many input
    channels, so that the layer is a grouped convolution over gathered channels. Otherwise the share holds over the layer.

    Attributes:
        n: output channels of a block, at least 2; they must divide the layer's.
        rate: the share of the blocks that is pruned, between 0 and 1.
        multiple: kept input channels of a uniform layer are brought to a multiple of it, the runtime's channel block.
        uniform: whether every group keeps equally many.
    """

    n: int
    rate: float
    multiple: int = 1
    uniform: bool = True

    def __post_init__(self) -> None:
        wrong = None
        if self.n < 2:
            wrong = "blocks of fewer than 2 output channels are single kernels"
        elif not 0 < self.rate < 1:
            wrong = f"pruning a share of {self.rate:g} leaves {'no channel' if self.rate >= 1 else 'nothing pruned'}"
        elif self.multiple < 1 or (self.multiple > 1 and not self.uniform):
            wrong = "channels are brought to multiples of 1 or more, and of uniform layers only"
        if wrong:
            raise UsageError(f"pattern {self}: {wrong}; it has the form {_FORM}")

    def __str__(self) -> str:
        rounding = f"/{self.multiple}" if self.multiple > 1 else ""
        # every digit, so that what is read back keeps as many channels
        rate = np.format_float_positional(self.rate, trim="-")
        return f"1x{self.n}{'@' if self.uniform else '~'}{rate}{rounding}"

    @property
    def density(self) -> float:
        """The fraction of weights that is kept, before rounding to whole channels."""
        return 1 - self.rate

    @classmethod
    def parse(cls, text: str) -> "BlockPattern":
        """Read what `str` gives."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(f"pattern {text!r} is not of the form {_FORM}")
        multiple = int(match[4]) if match[4] else 1
        return cls(n=int(match[1]), rate=float(match[3]), multiple=multiple, uniform=match[2] == "@")

    def kept_channels(self, in_channels: int) -> int:
        """R: how many input channels every group of a uniform layer keeps.

        C_in - int(rate C_in), as the authors' code has it, then the nearest multiple of `multiple`, of two the larger, between
        one multiple and the largest that the layer has; layers narrower than one multiple are not rounded.
        """
        kept = in_channels - math.floor(self.rate * in_channels)
        if self.multiple > 1 and in_channels >= self.multiple:
            kept = math.floor(kept / self.multiple + 0.5) * self.multiple
            kept = min(max(kept, self.multiple), in_channels // self.multiple * self.multiple)
        return kept

    def kept_blocks(self, out_channels: int, in_channels: int) -> int:
        """How many blocks a layer keeps in all."""
        groups = out_channels // self.n
        if self.uniform:
            return groups * self.kept_channels(in_channels)
        return groups * in_channels - math.floor(self.rate * groups * in_channels)

    def blocks(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which blocks hold anything: bool (out_channels / N, in_channels), of bool (out_channels, in_channels, ...)."""
        grouped = kept.reshape(kept.shape[0] // self.n, self.n, kept.shape[1], -1)
        return np.asarray(grouped.any(axis=(1, 3)))

    def expand(self, blocks: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """keep, bool, of the weight's shape, for kept blocks, bool (out_channels / N, in_channels)."""
        keep = np.repeat(blocks, self.n, axis=0).reshape(*shape[:2], *[1] * (len(shape) - 2))
        return np.broadcast_to(keep, shape).copy()

    @staticmethod
    def outputs_first(weight: npt.NDArray[_Scalar], group_axis: int) -> npt.NDArray[_Scalar]:
        """`weight` with its output channels on axis 0 and its input channels, on `group_axis`, on axis 1, as blocks are told.

        Of a weight whose input channels lie on another axis than 1, such as a stored matrix (in_features, out_features), the
        output channels lie on the last.
        """
        return np.moveaxis(weight, (0 if group_axis == 1 else weight.ndim - 1, group_axis), (0, 1))

    def keep_largest(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Keep the blocks with the largest scores, of every group or of the layer; of equal ones that with the smaller index.

        Args:
            scores: (out_channels / N, in_channels), finite.

        Returns:
            Kept blocks, bool, the shape of `scores`.
        """
        groups, channels = scores.shape
        rows = scores if self.uniform else scores.reshape(1, -1)
        count = self.kept_channels(channels) if self.uniform else self.kept_blocks(groups * self.n, channels)
        order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
        kept = np.zeros(rows.shape, dtype=np.bool_)
        np.put_along_axis(kept, order, True, axis=1)
        return kept.reshape(scores.shape)

    def group_count(self, shape: tuple[int, ...]) -> int:
        """What `count_violations` counts over: groups of output channels, or the layer as one if not uniform."""
        return shape[0] // self.n if self.uniform else 1

    def count_violations(self, kept: npt.NDArray[np.bool_], *, group_axis: int = 1) -> int:
        """How many groups hold weights in more blocks than the pattern keeps (zero for a conforming array).

        Args:
            kept: bool (out_channels, in_channels, ...), where a weight is not zero; out_channels is a multiple of N.
            group_axis: where the input channels lie, see `outputs_first`.
        """
        kept = self.outputs_first(kept, group_axis)
        used = self.blocks(kept)
        if self.uniform:
            return int((used.sum(axis=1) > self.kept_channels(kept.shape[1])).sum())
        return int(used.sum() > self.kept_blocks(kept.shape[0], kept.shape[1]))
