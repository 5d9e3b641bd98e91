"""Which version of the package this worker runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]


def package_version(root: Path | None = None) -> str:
    """Return the version of the distribution installed with the packages under `root`, "" in a source tree.

    What else the interpreter has installed under that name does not count: its code is not what runs here. Without a
    root: that of this process, looked up once.
    """
    return _version_under(root) if root is not None else _own_version()


@cache
def _own_version() -> str:
    return _version_under(_ROOT)


def _version_under(root: Path) -> str:
    from importlib.metadata import distributions

    return next((one.version for one in distributions(name="dspool", path=[str(root)])), "")
