"""Programs of the configuration: deployed when the services process begins, where they are not what is live."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bridge.protocol.errors import BridgeError
from bridge.worker.arguments import invalid
from orchestrator.errors import DspoolError
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
    """Deploy each of the programs; tell the coordinator which could not be, and why. Ends when all are, or must not be.

    A program that is at fault is not tried again: what is live of it stays.
    """
    problems: dict[str, str] = {}
    told: dict[str, str] = {}
    left = dict(programs)
    tries = 0
    while left:
        for name in list(left):
            if closing.is_set():
                return
            problem, again = _deploy(name, left[name], deploy)
            if not again:
                del left[name]
            if problem:
                problems[name] = problem
            else:
                problems.pop(name, None)
        if problems != told:
            told = dict(problems)
            _report(link, told)
        pause_s = _PAUSES_S[tries] if tries < len(_PAUSES_S) else _LATER_S
        if left and closing.wait(pause_s):
            return
        tries += 1


def _deploy(name: str, given: Mapping[str, Any], deploy: Deploy) -> tuple[str, bool]:
    """Return what is wrong, "" = nothing, and whether it may be tried again."""
    try:
        found = deploy({**given, "name": name, "state": _state(given.get("state"))})
    except (DspoolError, BridgeError) as exc:
        log.error("program_not_deployed: %s: %s", name, exc.message)
        return f"{name}: {exc.message}", exc.retryable
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


def _report(link: Link, problems: Mapping[str, str]) -> None:
    try:
        link.report_programs(problems)
    except DspoolError as exc:  # the coordinator ends, or this process does
        log.error("program_problems_not_reported: %s", exc.message)
