"""AdaPrune: masks whose kept weights are fitted to the dense network's outputs on a small calibration set."""

from masksparse_deploy.learn.adaprune.source import automatic_m, choose_kept, pattern_for_source
from masksparse_deploy.learn.adaprune.sparsifier import AdaPrune

__all__ = ["AdaPrune", "automatic_m", "choose_kept", "pattern_for_source"]
