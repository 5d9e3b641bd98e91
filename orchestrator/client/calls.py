"""Small things that methods of a client return."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, Self, TypeVar

from orchestrator.client.signature_text import with_text

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class ProgramVersion:
    """What was deployed. sha256: of the program's source, target, state and configuration.

    alias: what names it now. created: false = the alias named this very content already. previous: the version that the
    alias named before, None = none.
    """

    name: str
    version: int
    sha256: str
    alias: str = "live"
    created: bool = True
    previous: int | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """Read what `programs.deploy` answers."""
        return cls(**{field.name: told[field.name] for field in fields(cls) if field.name in told})


class Callee(Generic[T, S]):
    """A module or program of the other side: called with its inputs by name, it returns what it answers."""

    def __init__(self, call: Callable[[dict[str, Any]], T], stream: Callable[[dict[str, Any]], S]) -> None:
        self._call = call
        self._stream = stream

    def __call__(self, /, **inputs: Any) -> T:
        """Call it."""
        return self._call(inputs)

    def stream(self, /, **inputs: Any) -> S:
        """Call it and read what it says while it runs; see `Client.stream`."""
        return self._stream(inputs)


def absolute_target(target: Any) -> Any:
    """Return a program's target as the other side can read it: `file.py:QA` with an absolute path, a signature as text.

    Raises SignatureError for a bad one.
    """
    if isinstance(target, str) and is_file_target(target):
        path, _, attribute = target.rpartition(":")
        return f"{os.path.abspath(os.path.expanduser(path))}:{attribute}"
    return with_text(target)


def is_program_name(target: Any) -> bool:
    """Return whether it is the name of a deployed program, not a target."""
    return isinstance(target, str) and ":" not in target


def is_file_target(target: str) -> bool:
    """Return whether a target names a file, not a module."""
    return target.rpartition(":")[0].endswith(".py")
