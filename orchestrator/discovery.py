"""`connect`: find the user's coordinator, or start one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Any, TypeVar

from bridge import nesting
from orchestrator.boot import START_TIMEOUT_S, Starting, configured
from orchestrator.client.aio import AsyncClient
from orchestrator.client.client import Client
from orchestrator.client.nested import connect_nested
from orchestrator.errors import DspoolError, Unavailable
from orchestrator.rundir import StarterLock, default_run_dir, discover, ensure_private

LOG_FILE = "coordinator.log"

C = TypeVar("C", Client, AsyncClient)


def connect(endpoint: str | None = None, start: bool = True, principal: str = "default") -> Client:
    """Return a client of the coordinator at `endpoint`, else at DSPOOL_ENDPOINT, else of this user's run directory.

    start: if none runs there, start one that stays until `dspool down`; of many callers one does. Raises Unavailable,
    saying what to run, and what went wrong where a start failed.
    Within a program, in a worker, no endpoint means that worker's own coordinator: the calls are made in the name of
    the program's caller, end with the program, and its slot is lent to others while it waits for them.
    """
    return _connect(Client, endpoint, start, principal)


async def connect_async(endpoint: str | None = None, start: bool = True, principal: str = "default") -> AsyncClient:
    """Return an AsyncClient, found as `connect` finds it."""
    return await asyncio.to_thread(_connect, AsyncClient, endpoint, start, principal)


def user_run_dir() -> Path:
    """Return where this user's coordinator is looked for."""
    return configured("run_dir") or default_run_dir(os.environ)


def _connect(client: type[C], endpoint: str | None, start: bool, principal: str) -> C:
    if endpoint is None and (home := nesting.endpoint()):
        if nesting.is_worker():
            return connect_nested(client, home, principal)
        endpoint = home  # a fork of a worker: nobody there could lend its slot
    if endpoint := endpoint or os.environ.get("DSPOOL_ENDPOINT"):
        return client(endpoint, principal=principal)
    run_dir = user_run_dir()
    found = _find(client, run_dir, principal)
    if found is not None:
        return found
    if not start:
        raise Unavailable(f"no coordinator runs for this user (looked in {run_dir}): run `dspool up -d`")
    with StarterLock(run_dir, timeout_s=START_TIMEOUT_S):
        found = _find(client, run_dir, principal)
        if found is None:
            start_detached(run_dir)
            found = _find(client, run_dir, principal)
    if found is None:
        raise Unavailable(f"the coordinator ended as soon as it had started; see {run_dir / LOG_FILE}")
    return found


def _find(client: type[C], run_dir: Path, principal: str) -> C | None:
    info = discover(run_dir)
    if info is None:
        return None
    try:
        return client(info.endpoint, principal=principal, run_id=info.run_id)
    except Unavailable:
        # It may have died between the look and the call; then there is none.
        if not info.alive:
            return None
        raise


def start_detached(
    run_dir: Path, *, config: str | os.PathLike[str] | None = None, overrides: dict[str, Any] | None = None
) -> int:
    """Start a coordinator that stays; return its process id once it listens and its pools are ready.

    Raises what kept it from listening. A pool that does not come up leaves it running: calls to the others work, calls
    to that pool say why they do not.
    """
    ensure_private(run_dir)
    until = time.monotonic() + START_TIMEOUT_S
    order = {
        "config": None if config is None else os.path.abspath(os.fspath(config)),
        "overrides": {**(overrides or {}), "run_dir": run_dir},
        "private": False,
    }
    starting = Starting(order, run_dir / LOG_FILE, detached=True)
    try:
        bound = starting.bound(until)
        with contextlib.suppress(DspoolError):  # the pool's own answer to a call tells more
            starting.ready(until)
        starting.commit()
        return bound.pid
    finally:
        starting.close()
        starting.let_go()
