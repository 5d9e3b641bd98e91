"""Programs of the configuration: deployed once in a run of the coordinator, where they are not what they were."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bridge.protocol.errors import BridgeError
from bridge.worker.arguments import invalid
from orchestrator.errors import DspoolError, StorageError
from orchestrator.services.link import Link

log = logging.getLogger("bridge.services")

# In whose name they are deployed.
PRINCIPAL: Final = "configuration"
# What is worth trying again (its pool has no workers, one was lost, the disk is full) is tried so often, then this long
# apart for as long as the process lives.
_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
_LATER_S: Final = 30.0

Deploy = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def deploy(programs: Mapping[str, Mapping[str, Any]], link: Link, deploy: Deploy, closing: threading.Event) -> None:
    """Deploy those of the programs that this run has not done; tell the coordinator what became of each.

    Ends when all are deployed, or must not be: one that is at fault is not tried again, what is live of it stays.
    """
    left = _left(programs, link)
    tries = 0
    while left:
        for name in list(left):
            if closing.is_set():
                return
            problem, again = _deploy(name, programs[name], deploy)
            if not again:
                left.remove(name)
            _report(link, name, problem, left=again)
        pause_s = _PAUSES_S[tries] if tries < len(_PAUSES_S) else _LATER_S
        if left and closing.wait(pause_s):
            return
        tries += 1


def _left(programs: Mapping[str, Mapping[str, Any]], link: Link) -> list[str]:
    if not programs:
        return []
    try:
        return [name for name in link.programs_to_deploy() if name in programs]
    except DspoolError as exc:  # the coordinator ends, or this process does
        log.error("programs_not_deployed: %s", exc.message)
        return []


def _deploy(name: str, given: Mapping[str, Any], deploy: Deploy) -> tuple[str, bool]:
    """Return what is wrong, "" = nothing, and whether it may be tried again."""
    try:
        found = deploy({**given, "name": name, "state": _state(given.get("state"))})
    except (DspoolError, BridgeError) as exc:
        log.error("program_not_deployed: %s: %s", name, exc.message)
        return f"{name}: {exc.message}", exc.retryable or isinstance(exc, StorageError)  # it may be mended
    if found["created"]:
        log.info("program_deployed: %s version %d", name, found["version"])
    return "", False


def _state(path: str | None) -> Any:
    """Read the file of a state. Raises BridgeError(INVALID_REQUEST)."""
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as exc:
        raise invalid("state", f"state: {path} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise invalid("state", f"state: {path} is no JSON: {exc}") from exc


def _report(link: Link, name: str, problem: str, *, left: bool) -> None:
    try:
        link.report_program(name, problem, left=left)
    except DspoolError as exc:  # the coordinator ends, or this process does
        log.error("program_not_reported: %s: %s", name, exc.message)
