"""Finding the coordinator that a command is meant for, and talking to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.failure import NoCoordinator
from orchestrator.discovery import user_run_dir
from orchestrator.errors import Unavailable, VersionMismatch
from orchestrator.rundir import CoordinatorInfo, discover, read_info

if TYPE_CHECKING:
    from orchestrator.client.client import Client

ENDPOINT_VARIABLE = "DSPOOL_ENDPOINT"


@dataclass(frozen=True, slots=True)
class Found:
    """A coordinator to talk to. info: what it wrote about itself, None if only its endpoint is known."""

    endpoint: str
    run_dir: Path
    info: CoordinatorInfo | None


def find() -> Found | None:
    """Return the coordinator named by DSPOOL_ENDPOINT, else the one that lives in the run directory; None if none."""
    if endpoint := os.environ.get(ENDPOINT_VARIABLE):
        directory = Path(endpoint.removeprefix("ipc://")).parent
        return Found(endpoint, directory.parent, read_info(directory.parent, directory.name))
    directory = user_run_dir()
    info = discover(directory)
    return None if info is None else Found(info.endpoint, directory, info)


def require() -> Found:
    """Return the coordinator. Raises NoCoordinator if there is none."""
    found = find()
    if found is None:
        raise NoCoordinator(f"no coordinator is running (looked in {user_run_dir()}): start one with `dspool up -d`")
    return found


@contextmanager
def session(found: Found | None = None) -> Iterator[Client]:
    """Give a client of the coordinator. Raises NoCoordinator if there is none, or if it dies meanwhile."""
    from orchestrator.client.client import Client

    found = found or require()
    try:
        client = Client(found.endpoint, run_id=found.info.run_id if found.info is not None else "")
    except (Unavailable, VersionMismatch) as exc:
        raise NoCoordinator(exc.message) from exc
    with client:
        try:
            yield client
        except Unavailable as exc:
            if found.info is not None and not found.info.alive:
                raise NoCoordinator(exc.message) from exc
            raise
