"""Where the bundled example lies: beside the packages in a checkout, below the environment's share/ when installed."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from orchestrator.errors import Unavailable

_ROOT: Final = Path(__file__).resolve().parents[2]
# Where the wheel puts it (`shared-data` in pyproject.toml).
_SHARED: Final = "share/dspool/examples/tickets"
_PROGRAM: Final = "program.py"


class Tickets:
    """The support tickets: `program` is a deployable target, `train`, `validation` and `test` are .jsonl files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = f"{folder / _PROGRAM}:TicketRouter"
        self.train, self.validation, self.test = (folder / f"{part}.jsonl" for part in ("train", "validation", "test"))

    @classmethod
    def find(cls) -> Tickets:
        """Return the bundled tickets. Raises Unavailable if this installation lacks them."""
        places = list(dict.fromkeys(_places()))
        for folder in places:
            if (folder / _PROGRAM).is_file():
                return cls(folder)
        looked = "\n".join(f"  {folder}" for folder in places)
        raise Unavailable(f"the bundled example is missing from this installation of dspool; looked in\n{looked}")


def _places() -> Iterator[Path]:
    yield _ROOT / "examples" / "tickets"
    try:
        files = metadata.files("dspool") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith(f"{_SHARED}/{_PROGRAM}"):
            yield Path(str(file.locate())).resolve().parent
    yield Path(sysconfig.get_path("data")) / _SHARED


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
