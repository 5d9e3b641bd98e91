"""What workers are asked of a program: to load it once, to load a version early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, wait
from typing import Any, Final

from bridge.protocol.errors import DEADLINE_EXCEEDED, BridgeError
from orchestrator.client.client import Client
from orchestrator.client.request import Terms
from orchestrator.errors import DeadlineExceeded, DspoolError, Unavailable, WorkerLost

LOAD_DEADLINE_S: Final = 120.0
# What is left of a call's time for telling why nothing came of it.
_LAST_WORDS: Final = 0.3
_LAST_WORDS_S: Final = 0.25
_READY: Final = ("ready", "busy")


def load(client: Client, spec: Mapping[str, Any], remaining_s: float | None) -> dict[str, Any]:
    """Have a worker of its pool load a program, and return what it is (`programs.load`). Raises DspoolError."""
    try:
        loaded: dict[str, Any] = client.execute(
            "programs.load", dict(spec), pool=spec["pool"], deadline_s=_limit(remaining_s)
        )
    except DeadlineExceeded as exc:
        raise _too_late(spec["name"], exc) from exc
    return loaded


def warm(client: Client, name: str, version: int, pool: str, remaining_s: float | None) -> None:
    """Have every ready worker of a pool load a version that it was told of.

    One that ends meanwhile is no failure; one that cannot load it is: raises DspoolError.
    """
    workers = [row["id"] for row in client.workers() if row["pool"] == pool and row["state"] in _READY]
    connection = client.connection
    deadline_s = _limit(remaining_s)
    futures: list[Future[Any]] = [
        connection.submit(
            client._encode({"name": name, "version": version}), connection.route("programs.warm", pool),
            deadline_s=deadline_s, terms=Terms(worker=worker_id),
        )
        for worker_id in workers
    ]  # fmt: skip
    wait(futures)
    for worker_id, future in zip(workers, futures, strict=True):
        try:
            future.result()
        except (WorkerLost, Unavailable):
            continue
        except DeadlineExceeded as exc:
            raise _too_late(f"{name} version {version}", exc) from exc
        except DspoolError as exc:
            exc.details.setdefault("worker", worker_id)
            raise


def _limit(remaining_s: float | None) -> float:
    left_s = math.inf if remaining_s is None else remaining_s - min(_LAST_WORDS_S, remaining_s * _LAST_WORDS)
    return max(min(LOAD_DEADLINE_S, left_s), 0.001)


def _too_late(what: str, error: DeadlineExceeded) -> BridgeError:
    text = f"{what} was not loaded in time: what it imports or constructs takes longer than the deadline"
    return BridgeError(DEADLINE_EXCEEDED, f"{text} ({error.stage})", details=error.details)
