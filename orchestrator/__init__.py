"""dspool: DSPy programs in supervised pools of worker processes.

    from orchestrator import Orchestrator, connect, Client, AsyncClient, errors
    from orchestrator import Prediction, Example, Record  # what results are
    from orchestrator import Token, Status, Progress, Final  # what streams give

Importing this loads nothing but itself; names are loaded when they are used.
"""

from __future__ import annotations

import importlib
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.batched import batched
    from bridge.protocol.values import Example, Prediction, Record
    from orchestrator import errors
    from orchestrator.client.aio import AsyncClient
    from orchestrator.client.client import Client
    from orchestrator.client.events import FleetEvent
    from orchestrator.client.stream import AsyncStream, Final, Progress, Status, Stream, Token
    from orchestrator.discovery import connect, connect_async
    from orchestrator.owner import Orchestrator

__all__ = [
    "AsyncClient", "AsyncStream", "Client", "Example", "Final", "FleetEvent", "Orchestrator", "Prediction", "Progress",
    "Record", "Status", "Stream", "Token", "batched", "connect", "connect_async", "errors",
]  # fmt: skip

_STREAM: typing.Final = "orchestrator.client.stream"
_VALUES: typing.Final = "bridge.protocol.values"
_HOMES: typing.Final = {
    "AsyncClient": "orchestrator.client.aio",
    "AsyncStream": _STREAM,
    "Client": "orchestrator.client.client",
    "Example": _VALUES,
    "Final": _STREAM,
    "FleetEvent": "orchestrator.client.events",
    "Orchestrator": "orchestrator.owner",
    "Prediction": _VALUES,
    "Progress": _STREAM,
    "Record": _VALUES,
    "Status": _STREAM,
    "Stream": _STREAM,
    "Token": _STREAM,
    "batched": "bridge.batched",
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
