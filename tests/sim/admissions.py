"""What must hold of every request as it comes: accepted where it may be, or refused for a reason that is true."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from typing import Any

from bridge.protocol import messages as wire
from bridge.protocol.errors import (
    CANCELLED,
    CIRCUIT_OPEN,
    INVALID_REQUEST,
    OVERLOADED,
    POISON_REQUEST,
    SESSION_LOST,
    WORKER_BUSY,
    BridgeError,
    decode_error,
)
from pools.core.places import unserved
from tests.sim.circuits import Circuits
from tests.sim.keys import Keys
from tests.sim.kinship import Kinship
from tests.sim.ledger import QUEUED, WAITING, Case, Ledger, label
from tests.sim.modes import Modes
from tests.sim.services import INNER, NAME, Services
from tests.sim.sessions import Sessions
from tests.sim.step import Step, broken
from tests.sim.suspects import Suspects


class Admissions:
    """Checks the fleet's word on each request that arrives. tables: the fleet's, read for where it was put."""

    def __init__(
        self,
        ledger: Ledger,
        step: Step,
        circuits: Circuits,
        suspects: Suspects,
        keys: Keys,
        modes: Modes,
        kinship: Kinship,
        sessions: Sessions,
        services: Services,
        tables: Any,
    ) -> None:
        self.ledger = ledger
        self.step = step
        self._circuits = circuits
        self._suspects = suspects
        self._keys = keys
        self._modes = modes
        self._kinship = kinship
        self._sessions = sessions
        self._services = services
        self.tables = tables
        self._is_kept_out = self._is_kept_out_there = False
        self._there: Case | None = None  # the case that has arrived, as its fallback would have it

    def arrived(self, case: Case, now: float) -> None:
        """A request is about to be heard: note what breakers say before anything gives way to it."""
        self._is_kept_out, self._there = False, None
        if case.pool not in self.ledger.pools:
            return
        self._is_kept_out = self._circuits.refuses(case, now)
        stand_in = self._fallback(case)
        if stand_in is not None:
            self._there = copy(case)
            self._there.go_elsewhere(*stand_in, self.ledger.asks(stand_in[1]))
            self.ledger.set_deadline(self._there)
            self._is_kept_out_there = self._circuits.refuses(self._there, now)

    # --- accepted -----------------------------------------------------------------------------------

    def accepted(self, now: float) -> Case | None:
        """Take in that the fleet accepted the request that the event brings; None if it did not bring one."""
        case, self.step.asking = self.step.asking, None
        if case is None:
            return None
        ledger = self.ledger
        if ledger.drain_due is not None and not case.parent:
            broken("nothing accepted once draining", repr(case))
        if ledger.memory_paused:
            broken("nothing accepted while memory is short", repr(case))
        if case.pool not in ledger.pools:
            broken("accepted by a pool", f"{case}: {case.pool!r}")
        if ledger.is_unknown(case.operation):
            broken("a version is called by its alias", repr(case))
        if case.pool == NAME:
            self._services.accepted(case)
        self._check_limits(case)
        if self._keys.is_shared(case, now):
            ledger.accept(case)
        else:
            self._follow(case, now)
            if case.fingerprint in self._suspects.letters:
                broken("what is in quarantine is refused", repr(case))
            self._check_room(case)
            if not case.session:
                self._circuits.accepted(case, now)
            ledger.accept(case)
            if case.session or self._sessions.verdict:
                self._sessions.accepted(case, now)
        if self._waits_for_itself(case):
            broken("nobody waits for itself", repr(case))
        self._kinship.accepted(case)
        # What comes out of a session has no place in a lane that anybody could know.
        case.astray = case.talk is not None or self._suspects.suspects(case.fingerprint, now)
        self._keys.accepted(case, now)
        ledger.seen["accepted"] += 1
        return case

    def _follow(self, case: Case, now: float) -> None:
        """Follow a case to the pool and the operation that took it: its own, or their fallback if that one may."""
        tables, ledger = self.tables, self.ledger
        entry = tables.requests.get(case.request_id)
        if entry is not None and (entry.pool.name, entry.message.operation) != (case.pool, case.operation):
            if not self._is_kept_out and unserved(tables.pools[case.pool]) is None:
                broken("no fallback without need", f"{case} runs as {entry.message.operation} in {entry.pool.name}")
            there = self._there
            if there is None or (entry.pool.name, entry.message.operation) != (there.pool, there.operation):
                broken("falls back as configured", f"{case} runs as {entry.message.operation} in {entry.pool.name}")
            case.go_elsewhere(there.pool, there.operation, there.asks)
            ledger.set_deadline(case)
            ledger.seen["fell back"] += 1
        if self._is_kept_out_there if case.elsewhere else self._is_kept_out:
            broken("an open breaker lets nothing through", repr(case))

    def _fallback(self, case: Case) -> tuple[str, str] | None:
        """Return the pool and the operation that stand in for a case's, None if none do."""
        ledger = self.ledger
        config = ledger.pools[case.pool]
        operation = config.fallback_operations.get(case.operation, case.operation)
        pool = config.fallback
        if pool is None and operation != case.operation:
            pool = ledger.home_of(operation)
        return None if pool is None or (pool, operation) == (case.pool, case.operation) else (pool, operation)

    def room(self, case: Case, pool: str) -> int:
        """Return how many rows may wait in a pool for a case to be let in there."""
        there = copy(case)
        there.pool = pool
        return self._modes.room(there)

    def _check_room(self, case: Case) -> None:
        limit, queued = self._modes.room(case), self.ledger.taken_rows(case.pool)
        # In a mode there may have been more than there is room for: then it takes the place of as much.
        if sum(other.rows for other in self.step.pushed_out) >= case.rows:
            return
        waits = len(self.ledger.queues[case.pool]) > self.ledger.lined[case.pool]
        if waits and queued + case.rows > limit and not self._sessions.is_in_line(case):
            broken("queues are bounded", f"{case} of {case.rows} rows joins {queued}, limit {limit}")

    def _check_limits(self, case: Case) -> None:
        ledger, config = self.ledger, self.ledger.config
        if ledger.client_rows[case.peer] + case.rows > config.client_rows:
            broken("clients are bounded", repr(case))
        theirs = self._rows_of(case.principal)
        if theirs and theirs + case.rows > self._principal_rows(case):
            broken("principals are bounded", repr(case))

    def _principal_rows(self, case: Case) -> int:
        """Return how many rows the principal of a case may have for that to be let in: for a nested one the double."""
        limit = self.ledger.config.principal_rows
        return 2 * limit if case.parent else limit

    def _waits_for_itself(self, case: Case) -> bool:
        """Whether a case would follow a run that waits for it."""
        runner = self._keys.runner(case) if case.parent else None
        return runner is not None and runner is not case and self._kinship.waits_for_itself(case, runner)

    def _rows_of(self, principal: str) -> int:
        """Return the rows that a principal's connected clients have under way."""
        ledger = self.ledger
        return sum(ledger.client_rows[peer] for peer in ledger.clients if ledger.principals[peer] == principal)

    # --- refused ------------------------------------------------------------------------------------

    def refused(self, peer: bytes, reply: wire.Reply, now: float) -> None:
        """Take in that the fleet refused the request that the event brings."""
        case = self.step.asking
        if case is None or case.request_id != reply.request_id or case.peer != peer:
            broken("answers go to who asked", f"a Reply to {label(reply.request_id)} for {peer!r}")
        self.step.asking = None
        error = decode_error(reply.payload or b"")
        reason = _REASONS.get(error.code) if reply.status == wire.ERROR else None
        if reason is None:
            broken("refusals are typed", f"{case}: {error.code}")
        if error.code in (OVERLOADED, CIRCUIT_OPEN) and error.details["retry_after_s"] <= 0.0:
            broken("refusals say when to try again", f"{case}: {error.details}")
        if self._kinship.verdict and error.code != self._kinship.verdict:
            broken("children have a parent", f"{case} was refused {error.code}, not {self._kinship.verdict}")
        if not (self._is_for_its_session(case, error, now) or reason(self, case, error, now)):
            broken(f"refused {error.code} for a reason", f"{case}: {error.message}")
        if self.step.pushed_out:
            broken("nobody yields to what is refused", f"{self.step.pushed_out[0]} to {case}")
        self.ledger.seen[f"refused {error.code}"] += 1

    def _is_for_its_session(self, case: Case, error: BridgeError, now: float) -> bool:
        return self._sessions.may_be_refused(case, error.code, now)

    def _is_not_found(self, case: Case, error: BridgeError, now: float) -> bool:
        is_unknown = self.ledger.is_unknown(case.operation)
        self.ledger.seen["refused as no version"] += is_unknown
        is_inner = case.operation == INNER and case.pool == NAME
        self.ledger.seen["refused as inner"] += is_inner
        return is_unknown or is_inner or case.pool not in self.ledger.pools

    def _is_invalid(self, case: Case, error: BridgeError, now: float) -> bool:
        if error.details.get("conflict"):
            self.ledger.seen["refused as another under its key"] += 1
            return self._keys.conflicts(case, now)
        if self._kinship.verdict == INVALID_REQUEST or self._kinship.is_too_deep(case):
            self.ledger.seen["refused as nobody's child" if self._kinship.verdict else "refused as too deep"] += 1
            return True
        if error.details["path"] == "idempotency_key" and self._waits_for_itself(case):
            self.ledger.seen["refused for it would wait for itself"] += 1
            return True
        deadline_ms = case.deadline_ms
        return (
            not 1 <= case.rows <= 1024
            or (bool(case.key) and case.rows > 1)
            or (deadline_ms is not None and not (math.isfinite(deadline_ms) and deadline_ms > 0.0))
        )

    def _is_too_much(self, case: Case, error: BridgeError, now: float) -> bool:
        ledger, config = self.ledger, self.ledger.config
        if error.message.startswith("memory is"):
            ledger.seen["refused for memory"] += 1
            return ledger.memory_paused
        if ledger.client_rows[case.peer] + case.rows > config.client_rows:
            return True
        theirs = ledger.principal_rows[case.principal]
        if theirs and theirs + case.rows > self._principal_rows(case):
            ledger.seen["refused for its principal"] += 1
            return True
        return self._is_full(case)

    def _is_full(self, case: Case) -> bool:
        """Whether its queue has no room for a case, or so much that it cannot be served in time."""
        if self.ledger.taken_rows(case.pool) + case.rows > self._modes.room(case):
            return True
        return case.deadline is not None and any(other.lane == case.lane for other in self._before(case.pool))

    def _before(self, pool: str) -> Iterator[Case]:
        """Yield what waits in a pool's queue: what is to be resent too, once its pause is over."""
        ledger = self.ledger
        yield from ledger.queues[pool].values()
        for case in ledger.open.values() if ledger.waiting[pool] else ():
            if case.pool == pool and case.state == WAITING and self.tables.requests[case.request_id].state == QUEUED:
                yield case

    def _is_broken(self, case: Case, error: BridgeError, now: float) -> bool:
        return self._is_kept_out and not self._fallback_takes()

    def _is_unserved(self, case: Case, error: BridgeError, now: float) -> bool:
        if self.ledger.drain_due is not None and not case.parent:
            return True
        if case.pool == NAME:
            return self._services.may_be_refused(case)
        return unserved(self.tables.pools[case.pool]) is not None and not self._fallback_takes()

    def _fallback_takes(self) -> bool:
        """Whether the fallback of the case that has arrived should have taken it."""
        there = self._there
        if there is None or unserved(self.tables.pools[there.pool]) is not None:
            return False
        return not self._is_kept_out_there and not self._is_full(there)

    def _is_poison(self, case: Case, error: BridgeError, now: float) -> bool:
        letters, there = self._suspects.letters, self._there
        return case.fingerprint in letters or (there is not None and there.fingerprint in letters)


_REASONS = {
    "NOT_FOUND": Admissions._is_not_found,
    INVALID_REQUEST: Admissions._is_invalid,
    CANCELLED: lambda self, case, error, now: self._kinship.verdict == CANCELLED,
    OVERLOADED: Admissions._is_too_much,
    "UNAVAILABLE": Admissions._is_unserved,
    CIRCUIT_OPEN: Admissions._is_broken,
    POISON_REQUEST: Admissions._is_poison,
    SESSION_LOST: Admissions._is_for_its_session,
    WORKER_BUSY: Admissions._is_for_its_session,
}
