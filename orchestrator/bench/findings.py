"""What every report of a run is: the machine, the settings, JSON, and text."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

_LEAST_WIDTH: Final = 120


@dataclass(frozen=True)
class Findings(ABC):
    """What a run found; `machine` is what `describe_machine` returned."""

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    @abstractmethod
    def passed(self) -> bool:
        """Whether everything is as it must be."""

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """Return everything, JSON-ready."""

    @abstractmethod
    def print(self, console: Console) -> None:
        """Print everything that a reader wants."""

    def write_json(self, path: Path) -> None:
        """Write `as_json` to a file."""
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")

    def print_machine(self, console: Console) -> None:
        """Print the machine; widen a console that is no terminal, so that the tables fit."""
        if not console.is_terminal:
            console.width = max(console.width, _LEAST_WIDTH)
        console.print(", ".join(f"{key} {value}" for key, value in self.machine.items()), highlight=False)
