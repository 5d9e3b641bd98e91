"""Which version of the package this worker runs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]


def package_version(root: Path = _ROOT) -> str:
    """Return the version of the distribution installed with these packages, "" in a source tree.

    What else the interpreter has installed under that name does not count: its code is not what runs here.
    """
    from importlib.metadata import distributions

    return next((one.version for one in distributions(name="dspool", path=[str(root)])), "")
