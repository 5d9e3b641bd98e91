"""What the services process is told at its birth. It travels as plain data in `WorkerSpec.services`.

Imported by the coordinator too: nothing heavy.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

# What makes the operations of the services process: see `WorkerSpec.builder`.
BUILDER: Final = "orchestrator.services.process:build"


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the services process needs beside what every worker is told.

    store: where the store is, a path or a URL (which may hold a password). pools: the names that users know. programs:
    those of the configuration, by name. allow_pickled: whether pickled programs may be deployed. durable: whether
    sessions are kept in the store.
    """

    store: str
    pools: list[str]
    programs: dict[str, dict[str, Any]] = {}
    allow_pickled: bool = False
    durable: bool = False

    def as_plain(self) -> dict[str, Any]:
        """Return them as `read` takes them."""
        return msgspec.structs.asdict(self)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Orders:
        """Read what `as_plain` returned. Raises msgspec.ValidationError."""
        return msgspec.convert(plain, cls)
