"""The services process as the coordinator sees it: what it is told at its birth, what it tells, how it is.

What it tells is taken from nobody but the clients of its living worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bridge.protocol.errors import INVALID_REQUEST, UNAUTHENTICATED, BridgeError
from bridge.wallclock import unix_now
from orchestrator.config import Settings
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.sessions import image_of
from orchestrator.rundir import STORE_FILE
from orchestrator.services.orders import Orders
from pools.core.events import (
    ProgramSet,
    ProgramsSynced,
    ServedVersion,
    SessionRestored,
    SessionsSynced,
    SessionUnrestored,
)
from pools.core.fleet import Fleet
from pools.services import NAME


def orders(settings: Settings) -> Orders:
    """Return what the services process is told. It may hold a password: it may only travel in a memfd."""
    return Orders(
        store=settings.store.where(settings.data_dir),
        pools=[pool.name for pool in settings.pools],
        programs={name: program.for_services() for name, program in settings.programs.items()},
        allow_pickled=settings.allow_pickled_programs,
        durable=settings.fleet.sessions.durable,
    )


def is_needed(settings: Settings) -> bool:
    """Return whether the services process is needed from the start: there is, or is to be, something to be known."""
    configured = settings.store.url is not None or settings.fleet.sessions.durable or bool(settings.programs)
    return configured or (settings.data_dir / STORE_FILE).exists()


class Internal:
    """What the services process tells its coordinator, by operation: functions of (arguments, now).

    store: what it has said of the store that is open, None = none is, or it has said nothing yet.
    """

    def __init__(self, fleet: Fleet, events: EventLog, *, durable: bool, programs: Iterable[str]) -> None:
        """durable: whether sessions are kept in the store. programs: the names of those of the configuration."""
        self._fleet = fleet
        self._events = events
        self._durable = durable
        self._restored = False
        self._known_store = ""
        # Each once in a run: who deploys by hand after that is not undone by a new services process.
        self._to_deploy = dict.fromkeys(programs)
        self.store: dict[str, Any] | None = None
        self.operations: dict[str, Callable[[dict[str, Any], float], Any]] = {
            "program_configured": self._program_configured,
            "program_set": self._program_set,
            "program_sync": self._program_sync,
            "programs_to_deploy": lambda args, now: list(self._to_deploy),
            "session_restore": self._session_restore,
            "store_known": lambda args, now: self._known_store,
            "store_opened": self._store_opened,
            "store_state": self._store_state,
        }

    def check(self, peer: bytes, operation: str) -> None:
        """Raise BridgeError(UNAUTHENTICATED) for whoever is not the services process that lives."""
        if not self._fleet.is_trusted(peer):
            text = f"{operation} is for the coordinator's own services process, as long as that is to live"
            raise BridgeError(UNAUTHENTICATED, text)

    def stats(self, now: float) -> dict[str, Any]:
        """Return how the services process is: as `client.stats()["services"]` lists it."""
        row = self._fleet.internal_pool(NAME, now)
        return {**row, "store": self.store, "problem": row["problem"] or self._fleet.store_problem or None}

    def _program_set(self, args: dict[str, Any], now: float) -> None:
        try:
            versions = tuple(ServedVersion(one["version"], one["pool"], one["payload"]) for one in args["versions"])
            event = ProgramSet(args["name"], versions, args["aliases"])
        except (KeyError, TypeError) as exc:
            raise _bad(exc) from None
        self._fleet.handle(event, now)

    def _program_configured(self, args: dict[str, Any], now: float) -> None:
        """Take note of what became of a program of the configuration."""
        try:
            name, problem, left = str(args["name"]), str(args["problem"]), bool(args["left"])
        except KeyError as exc:
            raise _bad(exc) from None
        if problem:
            self._fleet.program_problems[name] = problem
        else:
            self._fleet.program_problems.pop(name, None)
        if not left:
            self._to_deploy.pop(name, None)

    def _program_sync(self, args: dict[str, Any], now: float) -> None:
        try:
            names = frozenset(args["names"])
        except (KeyError, TypeError) as exc:
            raise _bad(exc) from None
        self._fleet.handle(ProgramsSynced(names), now)

    def _session_restore(self, args: dict[str, Any], now: float) -> bool:
        """Take sessions that the store has; return whether more are wanted. Once all are here, they live here.

        One that cannot be read is told of, and left where it is.
        """
        if self._restored or not self._durable:
            return False
        try:
            rows, last = list(args["rows"]), bool(args["last"])
        except (KeyError, TypeError) as exc:
            raise _bad(exc) from None
        for row in rows:
            self._fleet.handle(_restored(row), now)
        if last:
            self._restored = True
            self._fleet.handle(SessionsSynced(), now)
        return not last

    def _store_opened(self, args: dict[str, Any], now: float) -> None:
        """Take note of the store that this run has. Its first sync: numbers are above those that it has seen."""
        try:
            identity, last_run = str(args["identity"]), int(args["last_run"])
        except (KeyError, TypeError, ValueError) as exc:
            raise _bad(exc) from None
        if not self._known_store:
            self._known_store = identity
            self._events.go_above(last_run)
            self._fleet.run = self._events.run

    def _store_state(self, args: dict[str, Any], now: float) -> None:
        self.store = args.get("store")
        self._fleet.store_problem = problem = str(args.get("problem") or "")
        if problem and self.store is None and not self._restored:
            self._fleet.handle(SessionsSynced(problem), now)


def _restored(row: Any) -> SessionRestored | SessionUnrestored:
    try:
        return SessionRestored(image_of(row, unix_now()))
    except BridgeError as unreadable:
        return SessionUnrestored(unreadable.message)


def _bad(exc: Exception) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"the services process said what cannot be read ({type(exc).__name__}: {exc})")
