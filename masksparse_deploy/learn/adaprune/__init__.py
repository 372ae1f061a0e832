"""AdaPrune: masks whose kept weights are fitted to the dense network's outputs on a small calibration set."""

from masksparse_deploy.learn.adaprune.source import choose_kept, pattern_for_source
from masksparse_deploy.learn.adaprune.sparsifier import AdaPrune

__all__ = ["AdaPrune", "choose_kept", "pattern_for_source"]
