"""What must hold of breakers, by a model of its own: every outcome in order, counted as they come.

A failure is an attempt that had started and was lost with its worker, unless it was paused or somebody ordered that
end, or that ran past its deadline, for longer than it had waited and such runs take, or without stopping when it was
asked. A success is every other answer of a worker to an attempt that somebody waits for. An operation has a breaker,
and the pool, which opens only when two operations are among the failures. What was accepted before a breaker opened has
no say in it any more.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from bridge.protocol import messages as wire
from bridge.protocol.errors import decode_error
from pools.config import BreakerConfig
from tests.sim.ledger import Case, Ledger
from tests.sim.step import broken

CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half_open"
# Answers that are neither success nor failure.
_SAY_NOTHING: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED"})
# Deadlines that lie closer together are one.
_SAME_S: Final = 0.001
# A probe without a deadline has so long.
_PROBE_S: Final = 30.0


# What the fleet says of a worker that it kills because a request did not stop.
_DEAF: Final = "of being asked"


def is_ordered(worker: Any) -> bool:
    """Whether somebody wanted a worker's end, and it is brought about: that is no request's failure."""
    return bool(worker.kill_why) and not worker.silent and (worker.stop_wanted or worker.kill_asked)


class Circuit:
    """One breaker. outcomes: the latest, the operation of each failure, "" for a success."""

    def __init__(self, config: BreakerConfig, operations: int) -> None:
        self._config = config
        self._operations = operations
        self._outcomes: deque[str] = deque(maxlen=config.window)
        self._is_open = False
        self.opened_at = float("-inf")
        self._probes: dict[int, float] = {}

    @property
    def is_closed(self) -> bool:
        return not self._is_open

    def succeeded(self, case: Case) -> None:
        """Take a success: it closes what it was a probe of."""
        if case.came_at <= self.opened_at:
            return
        if self._is_open:
            self._is_open = False
            self._outcomes.clear()
            self._probes.clear()
        else:
            self._outcomes.append("")

    def failed(self, case: Case, now: float) -> None:
        """Take a failure: one too many opens it, that of a probe at once."""
        if case.came_at <= self.opened_at:
            return
        if not self._is_open:
            self._outcomes.append(case.operation)
        failures = [operation for operation in self._outcomes if operation]
        config = self._config
        if self._is_open or (
            len(self._outcomes) >= config.min_calls
            and len(failures) >= config.failure_rate * len(self._outcomes)
            and len(set(failures)) >= self._operations
        ):
            self._is_open = True
            self.opened_at = now
            self._probes.clear()

    def accepted(self, case: Case, now: float) -> None:
        """A case is let through: a probe, unless the breaker is closed, or has opened since the case came."""
        if self._is_open and case.came_at > self.opened_at and case.request_id not in self._probes:
            until = now + _PROBE_S
            self._probes[case.request_id] = until if case.deadline is None else min(case.deadline, until)

    def released(self, case: Case) -> None:
        """A case is over, or is to be sent again: if it was a probe, its lease is over."""
        self._probes.pop(case.request_id, None)

    @property
    def counts(self) -> tuple[int, int]:
        """Failures and outcomes."""
        return sum(1 for operation in self._outcomes if operation), len(self._outcomes)

    def refuses(self, now: float) -> bool:
        """Whether nothing is let through now."""
        if not self._is_open:
            return False
        held = sum(1 for until in self._probes.values() if until > now)
        return now < self.opened_at + self._config.open_s or held >= self._config.probes


class Circuits:
    """The breakers of one history's pools and of their operations. tables: the fleet's, of which medians are read."""

    def __init__(self, ledger: Ledger, tables: Any) -> None:
        self._ledger = ledger
        self._tables = tables
        self._circuits: dict[tuple[str, str], Circuit] = {}
        # Pools, and the operation or "" for all, of breakers that opened in this step.
        self.opened: set[tuple[str, str]] = set()

    def _of(self, case: Case) -> tuple[Circuit, ...]:
        config = self._ledger.pools[case.pool].breaker
        if config is None:
            return ()
        found = []
        for operation in (case.operation, ""):
            circuit = self._circuits.get((case.pool, operation))
            if circuit is None:
                circuit = self._circuits[case.pool, operation] = Circuit(config, 1 if operation else 2)
            found.append(circuit)
        return tuple(found)

    def refuses(self, case: Case, now: float) -> bool:
        """Whether a breaker keeps a case out."""
        return any(circuit.refuses(now) for circuit in self._of(case))

    def accepted(self, case: Case, now: float) -> None:
        for circuit in self._of(case):
            circuit.accepted(case, now)

    def released(self, case: Case) -> None:
        """A case has an outcome, or has lost its attempt: it is no probe any more."""
        for circuit in self._of(case):
            circuit.released(case)

    def answered(self, case: Case, reply: wire.Reply) -> None:
        """A worker answered the attempt of a case that somebody waits for."""
        if reply.status != wire.ERROR or decode_error(reply.payload or b"").code not in _SAY_NOTHING:
            for circuit in self._of(case):
                circuit.succeeded(case)

    def ran_out(self, case: Case, now: float) -> None:
        """A case was running at its deadline: a failure, if it is the run that took the time, and more than others.

        Where it is the deadline of what it is nested in, that one's is.
        """
        if case.parent and self._is_parents(case):
            return
        worker = self._tables.workers.get(case.desk.worker_id) if case.desk is not None else None
        if worker is not None and is_ordered(worker):
            return
        median_ms = self._tables.pools[case.pool].credits.of(case.operation).median_ms
        end = now if case.deadline is None else min(now, case.deadline)
        ran_s, waited_s = end - case.sent_at, case.sent_at - case.came_at
        is_long = case.deadline_ms is None if median_ms is None else ran_s * 1000.0 >= median_ms * case.rows
        if ran_s >= waited_s and is_long:
            case.blamed = True
            self.failed(case, now)

    def _is_parents(self, case: Case) -> bool:
        parent = self._ledger.open.get(case.parent)
        if parent is None:
            return True
        if parent.deadline is None or case.deadline is None:
            return False
        return parent.deadline - case.deadline < _SAME_S

    def did_not_stop(self, case: Case, now: float) -> None:
        """The worker of a case is killed because it did not stop: a failure if it was out of time, and not counted."""
        desk = case.desk
        if desk is None:
            return
        worker = self._tables.workers[desk.worker_id]
        is_killed_for_it = desk.killed_at == now and _DEAF in worker.kill_why
        if is_killed_for_it:
            desk.killed_at = 0.0  # from now on it leaves as it was to
        if not case.expired or case.blamed or case.cancel:
            return
        case.blamed = True
        if is_ordered(worker) and not is_killed_for_it:
            return  # somebody wanted its end at this very moment, or before
        self._ledger.seen["did not stop"] += 1
        self.failed(case, now)

    def failed(self, case: Case, now: float) -> None:
        """A case's worker was lost while it ran."""
        for circuit, operation in zip(self._of(case), (case.operation, ""), strict=False):
            circuit.failed(case, now)
            if circuit.opened_at == now:
                self.opened.add((case.pool, operation))

    def audit(self) -> None:
        """Compare the counts of the fleet's breakers with these."""
        for name, pool in self._tables.pools.items():
            for operation, breaker in pool.breakers.items():
                count = pool.credits.outcomes(operation) if operation else pool.outcomes
                mine, theirs = self._circuits[name, operation].counts, breaker.counts(count)
                if breaker.tripped == self._circuits[name, operation].is_closed or mine != theirs:
                    broken("outcomes are counted", f"{operation or name}: {theirs} of {breaker.tripped}, not {mine}")
