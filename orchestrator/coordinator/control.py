"""The operations that the coordinator answers itself: `dspool.*`. None of them blocks."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any, Final

import structlog
from msgspec.structs import replace

from bridge.protocol.errors import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_REQUEST,
    TOO_LARGE,
    BridgeError,
    decode_error,
    encode_error,
    not_found,
    shown,
)
from bridge.protocol.messages import ERROR, OK, Message, Reply, Request
from bridge.protocol.values import decode_value, encode_value
from orchestrator.config import Settings, show
from orchestrator.coordinator.dead_letters import DeadLetters
from orchestrator.coordinator.programs import LOAD_DEADLINE_S, LOAD_OPERATION, Programs
from pools.core.admission import CONTROL_PREFIX
from pools.core.events import ClientConnected, Drain, DrainWorker, ProgramRemoved, Resize, Restart
from pools.core.fleet import Fleet
from pools.launch.launcher import Launcher

# The coordinator's own requests: an address that no socket has, and the client number that nobody is given.
SELF: Final = b""
_SELF_NO: Final = 0
_MAX_LOG_LINES: Final = 1000
# They are read by the one thread that serves everybody, and a megabyte of empty maps is 70 megabytes of objects. Only
# the state of a program that is deployed can be larger.
_ARGUMENT_BYTES: Final = 64 * 1024
_DEPLOY: Final = f"{CONTROL_PREFIX}deploy"

Answer = Callable[[Message], None]


class Control:
    """Answers control requests. `drain_s`: how long `dspool.down` lets accepted work finish unless told otherwise."""

    def __init__(
        self, fleet: Fleet, launcher: Launcher, settings: Settings, *, wire: Callable[[], dict[str, int]],
        cgroups: dict[str, Any], version: str, drain_s: float, started_at: float,
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
        self._programs = Programs()
        self._next_id = 1
        self._dead_letters = DeadLetters(fleet)
        # Deployments whose program is being loaded: own request id -> who asked, and for what. None: the outcome itself
        # is the answer.
        self.loading: dict[int, tuple[bytes, int, dict[str, Any] | None]] = {}
        fleet.handle(ClientConnected(_SELF_NO, "coordinator"), started_at, SELF)
        self._operations: dict[str, Callable[[dict[str, Any], float], Any]] = {
            "stats": self._stats,
            "pools": lambda args, now: [self._pool(row) for row in fleet.pools(now)],
            "workers": lambda args, now: fleet.workers(now),
            "health": self._health,
            "logs": self._logs,
            "programs": lambda args, now: self._programs.rows(),
            "undeploy": self._undeploy,
            "config": lambda args, now: show(settings),
            "resize": self._resize,
            "drain": self._drain,
            "restart": self._restart,
            "down": self._down,
            **self._dead_letters.operations,
        }

    def answer(self, peer: bytes, request: Request, now: float) -> Reply | None:
        """Answer a control request; None if the answer comes later (`dspool.deploy`)."""
        name = request.operation.removeprefix(CONTROL_PREFIX)
        try:
            args = _arguments(request)
            if name == "deploy":
                self._deploy(peer, request, args, now)
                return None
            if name == "dead_letter_requeue":
                self._requeue(peer, request, args, now)
                return None
            operation = self._operations.get(name)
            if operation is None:
                known = [CONTROL_PREFIX + known for known in (*self._operations, "deploy", "dead_letter_requeue")]
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
            "uptime_s": now - self._started_at,
            "version": self._version,
            "pid": os.getpid(),
            "cgroups": self._cgroups,
            "wire": self._wire(),
        }

    def _health(self, args: dict[str, Any], now: float) -> dict[str, Any]:
        return {**self._fleet.health(now), "uptime_s": now - self._started_at}

    def _logs(self, args: dict[str, Any], now: float) -> list[str]:
        worker_id = _text(args, "worker", "a worker's id")
        known = [row["id"] for row in self._fleet.workers(now)]
        if worker_id not in known:
            raise not_found("worker", worker_id, known)
        lines = args.get("lines", _MAX_LOG_LINES)
        if not isinstance(lines, int) or isinstance(lines, bool) or lines < 1:
            raise _invalid("lines", "a number above 0")
        return self._launcher.log_tail(worker_id)[-min(lines, _MAX_LOG_LINES) :]

    def _undeploy(self, args: dict[str, Any], now: float) -> bool:
        name = self._programs.remove(args.get("name"))
        self._fleet.handle(ProgramRemoved(name), now)
        return True

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

    # --- deploy: ask a worker, then answer --------------------------------------------------------

    def _deploy(self, peer: bytes, request: Request, args: dict[str, Any], now: float) -> None:
        spec = self._programs.check(args, self._fleet.pool_names())
        own_id = self._take_id()
        self.loading[own_id] = (peer, request.request_id, spec)
        limit_ms = LOAD_DEADLINE_S * 1000.0
        load = Request(
            request_id=own_id,
            operation=LOAD_OPERATION,
            pool=spec["pool"],
            payload=encode_value(spec),
            deadline_ms=limit_ms if request.deadline_ms is None else min(limit_ms, request.deadline_ms),
        )
        self._fleet.handle(load, now, SELF)

    def _take_id(self) -> int:
        """Return the id of a request of the coordinator's own; `loading` says whom its outcome answers."""
        own_id = self._next_id
        self._next_id += 1
        return own_id

    def _requeue(self, peer: bytes, request: Request, args: dict[str, Any], now: float) -> None:
        own_id = self._take_id()
        letter = self._dead_letters.requeue(args, own_id, now)
        self.loading[own_id] = (peer, request.request_id, None)
        self._fleet.handle(replace(letter, deadline_ms=request.deadline_ms), now, SELF)

    def loaded(self, reply: Reply, now: float) -> tuple[bytes, Reply] | None:
        """Take the outcome of the coordinator's own request; return who is to be told what."""
        asked = self.loading.pop(reply.request_id, None)
        if asked is None:
            return None
        peer, request_id, spec = asked
        if spec is None:
            return peer, replace(self._dead_letters.ended(reply, now), request_id=request_id)
        if reply.status != OK:
            return peer, _failed(request_id, _not_loaded(spec, decode_error(reply.payload or b"")))
        try:
            row, event = self._programs.deployed(spec, decode_value(reply.payload or b""))
        except (BridgeError, KeyError, TypeError) as exc:
            return peer, _failed(request_id, BridgeError(INTERNAL, f"a worker described {spec['name']} badly: {exc!r}"))
        self._fleet.handle(event, now)
        return peer, _ok(request_id, {"name": row.name, "version": row.version, "sha256": row.sha256})


def _not_loaded(spec: dict[str, Any], error: BridgeError) -> BridgeError:
    """Return why a program is not deployed; a deadline in words of the deployment."""
    if error.code != DEADLINE_EXCEEDED:
        return error
    text = f"{spec['name']} was not loaded in time: what it imports or constructs takes longer than the deadline"
    return BridgeError(error.code, f"{text} ({error.details.get('stage')})", details=error.details)


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


def _arguments(request: Request) -> dict[str, Any]:
    payload = request.payload or b""
    if len(payload) > _ARGUMENT_BYTES and request.operation != _DEPLOY:
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
