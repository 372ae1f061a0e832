"""The N:M sparsity pattern: N weights kept of every M consecutive ones along an axis, or along both axes of a matrix."""

import itertools
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.groups import count_kept, filled, members_of

__all__ = ["NMPattern"]

MAX_M = 32


@dataclass(frozen=True, kw_only=True)
class NMPattern:
    """N weights kept of every M consecutive weights along the group axis; as text "N:M", or "TN:M" if transposable.

    Where the axis is no multiple of M, the last group is not full: of its R weights it keeps min(N, R). With zeros for the
    M - R missing ones, as channel padding adds them, it still keeps at most N of M, which is what sparse kernels need.

    A transposable pattern holds along the input and along the output channels: in every M x M tile of the weight matrix each
    row and each column keeps N, so that the matrix of the backward pass is N:M too (Hubara et al. 2021). Both axes must be
    multiples of M.

    Attributes:
        n: weights kept in each group, 1 <= n <= m.
        m: consecutive weights in a group, 1 <= m <= 32.
        transposable: whether the pattern holds along the output channels too.
    """

    n: int
    m: int
    transposable: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m <= MAX_M:
            raise UsageError(f"pattern {self.n}:{self.m}: N:M keeps N of M with 1 <= N <= M <= {MAX_M}, for example 2:4")

    def __str__(self) -> str:
        return f"{'T' if self.transposable else ''}{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """The fraction of weights that is kept."""
        return self.n / self.m

    @classmethod
    def parse(cls, text: str) -> "NMPattern":
        """Read "N:M", as in "2:4", or "TN:M" for a transposable pattern, as in "T2:4"."""
        match = re.fullmatch(r"\s*(T?)(\d+)\s*:\s*(\d+)\s*", text)
        if match is None:
            raise UsageError(
                f"pattern {text!r} is not of the form N:M, N kept of every M weights; for example 2:4, or T2:4 for "
                "transposable masks"
            )
        return cls(n=int(match[2]), m=int(match[3]), transposable=bool(match[1]))

    def group_axes(self, group_axis: int, axis_count: int) -> tuple[int, ...]:
        """The axes along which every group keeps N: the group axis, and that of the output channels if transposable.

        Args:
            group_axis: where the input channels lie: 1 for kernels (out_channels, in_channels, ...) and (out_features,
                in_features); the last but one for stored matrices (..., in_features, out_features).
            axis_count: of the weight.
        """
        if not self.transposable:
            return (group_axis,)
        return (group_axis, 0 if group_axis == 1 else axis_count - 1)

    def codebook(self) -> npt.NDArray[np.bool_]:
        """All C(M, N) admissible rows, bool (C(M, N), M), in lexicographic order of the kept positions."""
        rows = list(itertools.combinations(range(self.m), self.n))
        book = np.zeros((len(rows), self.m), dtype=np.bool_)
        for row, kept in enumerate(rows):
            book[row, list(kept)] = True
        return book

    def kept_per_group(self, length: int) -> npt.NDArray[np.uint8]:
        """How many weights each group along an axis of `length` keeps: N, the last one min(N, R) if it has only R members."""
        full, rest = divmod(length, self.m)
        return np.array([self.n] * full + [min(self.n, rest)] * (rest > 0), dtype=np.uint8)

    def padded_length(self, length: int) -> int:
        """The next multiple of M; `length` itself if it is one."""
        return length + -length % self.m

    def keep_largest(self, scores: npt.NDArray[np.floating], *, group_axis: int) -> npt.NDArray[np.bool_]:
        """Keep the N largest scores of every group; among equal scores the one with the smaller index.

        NaN counts as smaller than every number.

        Args:
            scores: any shape; usually |weight|.
            group_axis: the axis along which groups run (1, input channels, for a convolution kernel).

        Returns:
            keep, bool, the shape of `scores`, with exactly n True in every group; min(n, r) in a last group of only r.

        Raises:
            UsageError: the axis does not exist or has no elements.
        """
        assert not self.transposable, "rows and columns of a tile are chosen together: learn.transposable solves them"
        length = scores.shape[group_axis] if 0 <= group_axis < scores.ndim else 0
        # Behind all scores of the group, NaN or not, so that what is missing is never kept in their place.
        scores = filled(scores, axis=group_axis, size=self.m, fill=np.nan)
        members = np.ascontiguousarray(members_of(scores, axis=group_axis, size=self.m))
        # NaN is neither above nor below anything: it comes after all numbers, as in a sort.
        missing = np.isnan(members) if np.isnan(members).any() else None
        ranks = np.zeros(members.shape, dtype=np.uint8)
        # How many scores of the group come before each one; pair by pair, as sorting short rows is slower.
        for later in range(1, self.m):
            for earlier in range(later):
                later_wins = members[later] > members[earlier]
                if missing is not None:
                    later_wins |= missing[earlier] & ~missing[later]
                ranks[earlier] += later_wins
                ranks[later] += ~later_wins
        keep = np.empty(scores.shape, dtype=np.bool_)
        np.less(ranks, self.n, out=members_of(keep, axis=group_axis, size=self.m))
        return np.ascontiguousarray(keep[(slice(None),) * group_axis + (slice(length),)])

    def count_violations(self, kept: npt.NDArray[np.bool_], *, group_axis: int) -> int:
        """How many groups keep more than N weights (zero for a conforming array), over both axes if transposable."""
        axes = self.group_axes(group_axis, kept.ndim)
        return sum(int((count_kept(kept, axis=axis, size=self.m) > self.n).sum()) for axis in axes)
