"""Training under masks of 1xN blocks: soft uniform block pruning (SUBP)."""

from masksparse_deploy.learn.blocks.subp import Subp

__all__ = ["Subp"]
