"""The versions of programs that a worker knows, by the names under which they can be called.

`qa@7` is a version, `qa@canary` whatever version has that alias, `qa` is `qa@live`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from bridge.protocol.messages import Program
from bridge.protocol.names import bare
from bridge.protocol.values import decode_value

if TYPE_CHECKING:
    from bridge.worker.imports import Found
    from bridge.worker.loading import Loaded
    from bridge.worker.operations import Operation

__all__ = ["LIVE", "MAX_LOADED", "Version", "Versions", "bare"]

LIVE: Final = "live"
# Programs in memory at once. One more is loaded in the place of that which was called the longest ago.
MAX_LOADED: Final = 64


class Version:
    """One version of a program.

    loaded: the program, None before its first call and when it had to make room; calls that run keep theirs. found:
    what its target named when it was first loaded here: a version never becomes another one. operation: calls it.
    """

    def __init__(self, name: str, number: int, payload: bytes) -> None:
        self.name = name
        self.number = number
        self.payload = payload
        self.loaded: Loaded | None = None
        self.found: Found | None = None
        self.used = 0
        self.operation: Operation | None = None

    def __str__(self) -> str:
        """Return the name under which the coordinator asks for it."""
        return f"{self.name}@{self.number}"

    @property
    def spec(self) -> Mapping[str, Any]:
        """Return what was deployed (see `loading`). Raises BridgeError for a payload that is none."""
        return {**decode_value(self.payload), "name": self.name, "version": self.number}

    def is_async(self, args: Any) -> bool:
        """Tell whether a call belongs on the event loop. It is there that the first one finds out."""
        return self.loaded is None or self.loaded.is_async

    @property
    def module(self) -> Any:
        """The program, None before its first call."""
        loaded = self.loaded
        return None if loaded is None else loaded.module


class Versions:
    """The table. One thread changes it, by `define`; any thread reads it, and tells what was called and loaded."""

    def __init__(self, operation_of: Callable[[Version], Operation], *, max_loaded: int = MAX_LOADED) -> None:
        self._operation_of = operation_of
        self._max_loaded = max_loaded
        self._versions: dict[str, dict[int, Version]] = {}
        self._aliases: dict[str, dict[str, int]] = {}
        self._callable: dict[str, Version] = {}
        self._loaded: set[Version] = set()
        self._lock = threading.Lock()
        self._clock = itertools.count(1)

    def define(self, message: Program) -> None:
        """Take a version, its aliases as they are now, or its end; an end without a number is that of all of them.

        An alias that it has is no other version's any more. A version with another content takes the place of the one
        that was known. Loads nothing.
        """
        name, number = message.name, message.program_version
        known = dict(self._versions.get(name, {}))
        aliases = dict(self._aliases.get(name, {}))
        if not message.payload:
            if number:
                known.pop(number, None)
            else:
                known.clear()
            aliases = {alias: other for alias, other in aliases.items() if other in known}
        else:
            version = known.get(number)
            if version is None or not _is_same(version, message.payload):
                version = Version(name, number, message.payload)
                version.operation = self._operation_of(version)
                known[number] = version
            aliases = {alias: other for alias, other in aliases.items() if other != number}
            aliases.update(dict.fromkeys(message.aliases, number))
        self._publish(name, known, aliases)

    def names(self) -> list[str]:
        """Return the names of the programs that have a live version."""
        return sorted(name for name in list(self._callable) if "@" not in name)

    def find(self, name: str) -> Version | None:
        """Return the version that a name stands for: `qa`, `qa@live`, `qa@7`."""
        return self._callable.get(name)

    def touch(self, version: Version) -> None:
        """Note that a version is called."""
        version.used = next(self._clock)

    def keep(self, version: Version, loaded: Loaded) -> None:
        """Keep what was loaded for a version, in the place of what was called the longest ago where it must be."""
        self.touch(version)
        found = None if loaded.found is None else loaded.found._replace(sources=None)
        with self._lock:
            version.loaded, version.found = loaded._replace(found=found), found
            if self._versions.get(version.name, {}).get(version.number) is version:  # else it goes with its last call
                self._loaded.add(version)
            while len(self._loaded) > self._max_loaded:
                oldest = min(self._loaded, key=lambda one: one.used)
                self._loaded.remove(oldest)
                oldest.loaded = None

    def _publish(self, name: str, known: dict[int, Version], aliases: dict[str, int]) -> None:
        """Have the names of a program mean what they do now. At no time does a name that stays mean nothing."""
        names = {f"{name}@{number}": version for number, version in known.items()}
        names |= {f"{name}@{alias}": known[number] for alias, number in aliases.items()}
        if LIVE in aliases:
            names[name] = known[aliases[LIVE]]
        before = self._names_of(name)
        self._callable.update(names)
        for gone in before - names.keys():
            del self._callable[gone]
        with self._lock:
            self._loaded -= {one for one in self._versions.get(name, {}).values() if known.get(one.number) is not one}
            self._versions[name], self._aliases[name] = known, aliases
            if not known:
                del self._versions[name], self._aliases[name]

    def _names_of(self, name: str) -> set[str]:
        numbers, aliases = self._versions.get(name, {}), self._aliases.get(name, {})
        return {f"{name}@{one}" for one in (*numbers, *aliases)} | ({name} if LIVE in aliases else set())


def _is_same(version: Version, payload: bytes) -> bool:
    """Tell whether a payload is that of a version, also where something else is said of it than what it is made of."""
    if version.payload == payload:
        return True
    sha256 = decode_value(payload).get("sha256")
    return sha256 is not None and sha256 == version.spec.get("sha256")
