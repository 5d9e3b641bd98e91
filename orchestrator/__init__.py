"""dspool: DSPy programs in supervised pools of worker processes.

    from orchestrator import Orchestrator, connect, Client, AsyncClient, errors

Importing this loads nothing but itself; names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from orchestrator import errors
    from orchestrator.client.aio import AsyncClient
    from orchestrator.client.client import Client
    from orchestrator.discovery import connect, connect_async
    from orchestrator.owner import Orchestrator

__all__ = ["AsyncClient", "Client", "Orchestrator", "connect", "connect_async", "errors"]

_HOMES: Final = {
    "AsyncClient": "orchestrator.client.aio",
    "Client": "orchestrator.client.client",
    "Orchestrator": "orchestrator.owner",
    "connect": "orchestrator.discovery",
    "connect_async": "orchestrator.discovery",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("orchestrator.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
