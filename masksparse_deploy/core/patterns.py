"""The N:M sparsity pattern: N weights kept of every M consecutive ones along an axis."""

import itertools
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.groups import count_kept, members_of

__all__ = ["NMPattern"]

MAX_M = 16


@dataclass(frozen=True, kw_only=True)
class NMPattern:
    """N weights kept of every M consecutive weights along the group axis; as text "N:M".

    Attributes:
        n: weights kept in each group, 1 <= n <= m.
        m: consecutive weights in a group, 1 <= m <= 16.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m <= MAX_M:
            raise UsageError(f"pattern {self.n}:{self.m}: N:M keeps N of M with 1 <= N <= M <= {MAX_M}, for example 2:4")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """The fraction of weights that is kept."""
        return self.n / self.m

    @classmethod
    def parse(cls, text: str) -> "NMPattern":
        """Read "N:M", as in "2:4"."""
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        if match is None:
            raise UsageError(f"pattern {text!r} is not of the form N:M, N kept of every M weights; for example 2:4")
        return cls(n=int(match[1]), m=int(match[2]))

    def codebook(self) -> npt.NDArray[np.bool_]:
        """All C(M, N) admissible rows, bool (C(M, N), M), in lexicographic order of the kept positions."""
        rows = list(itertools.combinations(range(self.m), self.n))
        book = np.zeros((len(rows), self.m), dtype=np.bool_)
        for row, kept in enumerate(rows):
            book[row, list(kept)] = True
        return book

    def keep_largest(self, scores: npt.NDArray[np.floating], *, group_axis: int) -> npt.NDArray[np.bool_]:
        """Keep the N largest scores of every group; among equal scores the one with the smaller index.

        NaN counts as smaller than every number.

        Args:
            scores: any shape, `shape[group_axis] % m == 0`; usually |weight|.
            group_axis: the axis along which groups run (1, input channels, for a convolution kernel).

        Returns:
            keep, bool, the shape of `scores`, with exactly n True in every group.
        """
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
        return keep

    def count_violations(self, kept: npt.NDArray[np.bool_], *, group_axis: int) -> int:
        """How many groups keep more than N weights (zero for a conforming array)."""
        return int((count_kept(kept, axis=group_axis, size=self.m) > self.n).sum())
