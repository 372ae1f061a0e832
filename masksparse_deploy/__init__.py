"""Structured-sparsity deployment for CNNs: learn masks, bake, build, profile, certify, validate, report."""

__version__ = "0.1.0"

__all__ = ["__version__"]
