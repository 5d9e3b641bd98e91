"""The services process as the coordinator sees it: what it is told at its birth, what it tells, how it is.

What it tells is taken from nobody but the clients of its living worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge.protocol.errors import INVALID_REQUEST, UNAUTHENTICATED, BridgeError
from bridge.wallclock import unix_now
from orchestrator.config import Settings
from orchestrator.coordinator.sessions import image_of
from orchestrator.rundir import STORE_FILE
from orchestrator.services.orders import Orders
from pools.core.events import ProgramSet, ProgramsSynced, ServedVersion, SessionRestored, SessionsSynced
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

    def __init__(self, fleet: Fleet, *, durable: bool) -> None:
        """durable: whether sessions are kept in the store."""
        self._fleet = fleet
        self._durable = durable
        self._restored = False
        self.store: dict[str, Any] | None = None
        self.operations: dict[str, Callable[[dict[str, Any], float], Any]] = {
            "program_problems": self._program_problems,
            "program_set": self._program_set,
            "program_sync": self._program_sync,
            "session_restore": self._session_restore,
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

    def _program_problems(self, args: dict[str, Any], now: float) -> None:
        problems = args.get("problems")
        if not isinstance(problems, dict):
            raise _bad(TypeError("problems"))
        self._fleet.program_problems = {str(name): str(problem) for name, problem in problems.items()}

    def _program_sync(self, args: dict[str, Any], now: float) -> None:
        try:
            names = frozenset(args["names"])
        except (KeyError, TypeError) as exc:
            raise _bad(exc) from None
        self._fleet.handle(ProgramsSynced(names), now)

    def _session_restore(self, args: dict[str, Any], now: float) -> bool:
        """Take sessions that the store has; return whether more are wanted. Once all are here, they live here."""
        if self._restored or not self._durable:
            return False
        try:
            images = [image_of(row, unix_now()) for row in args["rows"]]
            last = bool(args["last"])
        except (KeyError, TypeError, ValueError) as exc:
            raise _bad(exc) from None
        for image in images:
            self._fleet.handle(SessionRestored(image), now)
        if last:
            self._restored = True
            self._fleet.handle(SessionsSynced(), now)
        return not last

    def _store_state(self, args: dict[str, Any], now: float) -> None:
        self.store = args.get("store")
        self._fleet.store_problem = problem = str(args.get("problem") or "")
        if problem and self.store is None and not self._restored:
            self._fleet.handle(SessionsSynced(problem), now)


def _bad(exc: Exception) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"the services process said what cannot be read ({type(exc).__name__}: {exc})")
