"""Masks of output positions (Grimaldi et al. 2023): which are computed, chosen while the weights train."""
