"""Dynamic sparse training: weights and masks together."""

from masksparse_deploy.learn.dynamic.sparse_training import SparseTraining

__all__ = ["SparseTraining"]
