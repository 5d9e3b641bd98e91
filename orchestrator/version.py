"""Which version of the package this is."""

from __future__ import annotations

import functools


@functools.cache
def package_version() -> str:
    """Return the installed distribution's version, "0+unknown" when run from a bare tree."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dspool")
    except PackageNotFoundError:
        return "0+unknown"
