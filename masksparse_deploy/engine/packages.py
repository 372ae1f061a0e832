"""Versions of installed packages, read from their metadata and without importing them."""

import importlib.metadata

__all__ = ["installed_versions"]


def installed_versions(*names: str) -> dict[str, str]:
    """Distribution name -> version, for those of `names` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
