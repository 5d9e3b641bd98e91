"""The operations that the coordinator answers itself: `dspool.*`. None of them blocks."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any, Final

import structlog
from msgspec.structs import replace

from bridge.protocol.errors import (
    INTERNAL,
    INVALID_REQUEST,
    TOO_LARGE,
    BridgeError,
    encode_error,
    not_found,
    shown,
)
from bridge.protocol.messages import ERROR, OK, Message, Reply, Request
from bridge.protocol.values import decode_value, encode_value
from orchestrator.config import Settings, show
from orchestrator.coordinator.asking import Asking
from orchestrator.coordinator.dead_letters import DeadLetters
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.event_polls import EventPolls
from orchestrator.coordinator.internal import Internal
from orchestrator.coordinator.sessions import Sessions
from pools.core.admission import CONTROL_PREFIX
from pools.core.events import Drain, DrainWorker, Resize, Restart
from pools.core.fleet import Fleet
from pools.launch.launcher import Launcher

_MAX_LOG_LINES: Final = 1000
# They are read by the one thread that serves everybody, and a megabyte of empty maps is 70 megabytes of objects.
_ARGUMENT_BYTES: Final = 64 * 1024

Answer = Callable[[Message], None]


class Control:
    """Answers control requests. `drain_s`: how long `dspool.down` lets accepted work finish unless told otherwise."""

    def __init__(
        self, fleet: Fleet, launcher: Launcher, settings: Settings, *, wire: Callable[[], dict[str, int]],
        cgroups: dict[str, Any], version: str, drain_s: float, started_at: float, events: EventLog, polls: EventPolls,
    ) -> None:  # fmt: skip
        self._fleet = fleet
        self._launcher = launcher
        self._settings = settings
        self._wire = wire
        self._cgroups = cgroups
        self._version = version
        self._drain_s = drain_s
        self._started_at = started_at
        self._log = structlog.get_logger("dspool.coordinator")
        self.asking = Asking(fleet, started_at)
        self._internal = Internal(
            fleet, events, durable=settings.fleet.sessions.durable, programs=settings.programs
        )  # fmt: skip
        self._dead_letters = DeadLetters(fleet)
        self._sessions = Sessions(fleet)
        self._polls = polls
        # What others here add to `dspool.stats`, by name.
        self.stats: dict[str, Callable[[], Any]] = {}
        self._operations: dict[str, Callable[[dict[str, Any], float], Any]] = {
            "stats": self._stats,
            "pools": lambda args, now: [self._pool(row) for row in fleet.pools(now)],
            "workers": lambda args, now: fleet.workers(now),
            "health": self._health,
            "logs": self._logs,
            "config": lambda args, now: show(settings),
            "resize": self._resize,
            "drain": self._drain,
            "restart": self._restart,
            "down": self._down,
            **self._dead_letters.operations,
        }

    def answer(self, peer: bytes, request: Request, now: float) -> Reply | None:
        """Answer a control request; None if it is answered in another way, or later."""
        name = request.operation.removeprefix(CONTROL_PREFIX)
        try:
            internal = self._internal.operations.get(name)
            if internal is not None:
                self._internal.check(peer, request.operation)
                return _ok(request.request_id, internal(_arguments(request, limited=False), now))
            args = _arguments(request)
            if name == "events":
                self._fleet.sends_to_clients.extend(self._polls.ask(peer, request.request_id, args, now))
                return None
            if name == "dead_letter_requeue":
                self._requeue(peer, request, args, now)
                return None
            if name == "session_expire":
                ended = self._sessions.expire(peer, args, now, _ok(request.request_id, True))
                return None if ended else _ok(request.request_id, False)
            of_sessions = self._sessions.operations.get(name)
            if of_sessions is not None:
                return _ok(request.request_id, of_sessions(peer, args, now))
            operation = self._operations.get(name)
            if operation is None:
                others = ("session_expire", "events", "dead_letter_requeue")
                known = [CONTROL_PREFIX + name for name in (*self._operations, *self._sessions.operations, *others)]
                raise not_found("operation", request.operation, known)
            return _ok(request.request_id, operation(args, now))
        except BridgeError as error:
            return _failed(request.request_id, error)
        except Exception as exc:  # noqa: BLE001 - one client's question must not end everybody's coordinator
            self._log.error("control_failed", operation=request.operation, traceback=traceback.format_exc())
            text = f"{request.operation} failed in the coordinator: {type(exc).__name__}: {exc}"
            return _failed(request.request_id, BridgeError(INTERNAL, text))

    def _stats(self, args: dict[str, Any], now: float) -> dict[str, Any]:
        return {
            **self._fleet.stats(now),
            "services": self._internal.stats(now),
            "uptime_s": now - self._started_at,
            "version": self._version,
            "pid": os.getpid(),
            "cgroups": self._cgroups,
            "wire": self._wire(),
            **{name: state() for name, state in self.stats.items()},
        }

    def _health(self, args: dict[str, Any], now: float) -> dict[str, Any]:
        return {**self._fleet.health(now), "uptime_s": now - self._started_at}

    def _logs(self, args: dict[str, Any], now: float) -> list[str]:
        worker_id = _text(args, "worker", "a worker's id")
        known = [*(row["id"] for row in self._fleet.workers(now)), *self._fleet.internal_workers()]
        if worker_id not in known:
            raise not_found("worker", worker_id, known)
        lines = args.get("lines", _MAX_LOG_LINES)
        if not isinstance(lines, int) or isinstance(lines, bool) or lines < 1:
            raise _invalid("lines", "a number above 0")
        return self._launcher.log_tail(worker_id)[-min(lines, _MAX_LOG_LINES) :]

    def _pool(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "replacing": self._fleet.replacing(row["pool"])}

    def _resize(self, args: dict[str, Any], now: float) -> dict[str, Any]:
        pool, size, most = _text(args, "pool", "a pool's name"), _count(args, "size"), None
        if args.get("max") is not None:
            most = _count(args, "max")
        self._fleet.handle(Resize(pool, size, most), now)
        return next(self._pool(row) for row in self._fleet.pools(now) if row["pool"] == pool)

    def _drain(self, args: dict[str, Any], now: float) -> dict[str, Any]:
        worker_id = _text(args, "worker", "a worker's id")
        self._fleet.handle(DrainWorker(worker_id), now)
        return next(row for row in self._fleet.workers(now) if row["id"] == worker_id)

    def _restart(self, args: dict[str, Any], now: float) -> dict[str, Any]:
        target, grace_s = _text(args, "worker", "the id of a worker or the name of a pool"), args.get("grace_s")
        if grace_s is not None and (not isinstance(grace_s, int | float) or isinstance(grace_s, bool)):
            raise _invalid("grace_s", f"{shown(grace_s)} is no number of seconds")
        self._fleet.handle(Restart(target, grace_s), now)
        return {"target": target, "replacing": self._fleet.replacing(target)}

    def _down(self, args: dict[str, Any], now: float) -> dict[str, Any]:
        drain_s = args.get("drain_s", self._drain_s)
        if not isinstance(drain_s, int | float) or isinstance(drain_s, bool) or not 0 <= drain_s <= 86_400:
            raise _invalid("drain_s", "seconds from 0 to 86400")
        self._fleet.handle(Drain(float(drain_s)), now)
        return {"pid": os.getpid(), "drain_s": float(drain_s)}

    def _requeue(self, peer: bytes, request: Request, args: dict[str, Any], now: float) -> None:
        letter = self._dead_letters.requeue(args, self.asking.take_id(), now)

        def ended(reply: Reply, now: float) -> None:
            answer = replace(self._dead_letters.ended(reply, now), request_id=request.request_id)
            self._fleet.sends_to_clients.append((peer, answer))

        self.asking.put(replace(letter, deadline_ms=request.deadline_ms), ended, now)


def _text(args: dict[str, Any], path: str, what: str) -> str:
    value = args.get(path)
    if not isinstance(value, str):
        raise _invalid(path, f"{shown(value)} is not {what}")
    return value


def _count(args: dict[str, Any], path: str) -> int:
    value = args.get(path)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _invalid(path, f"{shown(value)} is no number of workers")
    return value


def _invalid(path: str, text: str) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"{path}: {text}", details={"path": path})


def _arguments(request: Request, *, limited: bool = True) -> dict[str, Any]:
    payload = request.payload or b""
    if limited and len(payload) > _ARGUMENT_BYTES:
        text = f"the arguments of {request.operation} take {len(payload):,} bytes, the limit is {_ARGUMENT_BYTES:,}"
        raise BridgeError(TOO_LARGE, text, details={"bytes": len(payload), "limit_bytes": _ARGUMENT_BYTES})
    args = decode_value(payload) if payload else None
    if args is None:
        return {}
    if not isinstance(args, dict):
        raise BridgeError(INVALID_REQUEST, f"{request.operation} takes a mapping, got {type(args).__name__}")
    return args


def _ok(request_id: int, value: Any) -> Reply:
    return Reply(request_id=request_id, status=OK, payload=encode_value(value))


def _failed(request_id: int, error: BridgeError) -> Reply:
    return Reply(request_id=request_id, status=ERROR, payload=encode_error(error))
