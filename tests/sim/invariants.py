"""The invariants of every step, together. Each has a constant name, which `Broken` carries.

An event is first written into the ledger (`hearing`); what the fleet then sends is checked against it (`admissions`,
`dispatches`, `outcomes`), so is what it has done to processes (`restarts`, `kills`); at last what had to follow is
demanded, and the books of the step must balance. What has rules of its own is modelled beside: `order` of queues,
`resends`, `keys`, `suspects`, breakers (`circuits`), `sizes`, `modes`, families (`kinship`), programs that wait
(`nesting`), `sessions`. `quiescence` has the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bridge.protocol import messages as wire
from pools.core.deadlines import WIDTH_S
from pools.core.events import Launch, MemoryRead, Tick
from pools.core.progress import running
from tests.sim.admissions import Admissions
from tests.sim.circuits import Circuits
from tests.sim.dispatches import Dispatches
from tests.sim.hearing import Hearing
from tests.sim.keys import Keys
from tests.sim.kills import Kills
from tests.sim.kinship import Kinship
from tests.sim.ledger import NESTED, OPERATIONS, QUEUED, SETTLED, WAITING, Case, Desk, Ledger
from tests.sim.modes import Modes
from tests.sim.nesting import Nesting, takes_more
from tests.sim.outcomes import Outcomes, desk_of
from tests.sim.restarts import Restarts
from tests.sim.services import Services
from tests.sim.sessions import Sessions
from tests.sim.sizes import Sizes
from tests.sim.step import Step, broken
from tests.sim.suspects import Suspects

# A bucket's end and a deadline plus its width are not the same sum.
_ROUNDING_S: Final = 1e-9


class Auditor:
    """Checks every step of one history. tables: the fleet's. has_unread: see `Shell`."""

    def __init__(self, ledger: Ledger, tables: Any, has_unread: Callable[[Desk, int], bool]) -> None:
        self.ledger = ledger
        self.tables = tables
        self.step = Step()
        self.restarts = Restarts(ledger)
        self.kills = Kills(ledger, tables, has_unread)
        self._circuits = circuits = Circuits(ledger, tables)
        self._suspects = suspects = Suspects(ledger)
        self._keys = keys = Keys(ledger, self.step, circuits, suspects)
        self._modes = Modes(ledger, tables)
        nesting = Nesting(ledger, self.step)
        self._kinship = kinship = Kinship(ledger, self.step)
        self.sessions = sessions = Sessions(ledger, self.step, circuits, kinship, tables)
        services = Services(ledger, self.step, tables)
        admissions = Admissions(
            ledger, self.step, circuits, suspects, keys, self._modes, kinship, sessions, services, tables
        )
        self._hearing = Hearing(
            ledger,
            self.step,
            self.restarts,
            circuits,
            suspects,
            keys,
            admissions,
            nesting,
            kinship,
            sessions,
            services,
            tables,
        )
        self._dispatches = Dispatches(
            ledger, self.step, self.kills, circuits, admissions, suspects, nesting, kinship, sessions, tables
        )
        self._outcomes = Outcomes(
            ledger,
            self.step,
            circuits,
            admissions,
            keys,
            suspects,
            self.kills,
            nesting,
            kinship,
            sessions,
            services,
            tables,
        )
        self._accepted = admissions.accepted
        self._sizes = Sizes(ledger, tables)
        self._fenced = 0
        # One call each: they run at every event and for every message.
        self.before = self._hearing.hear
        self.to_worker = self._dispatches.to_worker
        self.to_client = self._outcomes.to_client
        self.control = self._outcomes.control
        self.kill = self.kills.kill
        self.dump = self.kills.dump

    def audit(self, now: float) -> None:
        """Compare what the fleet keeps beside its requests with what it should."""
        self._circuits.audit()
        self._suspects.audit(self.tables, now)
        self._keys.audit(self.tables)
        self._kinship.audit(self.tables.children)

    def launch(self, effect: Launch, now: float) -> None:
        """Check a launch."""
        self.ledger.seen["Launch"] += 1
        asked = type(self.step.event) in OPERATIONS
        self.restarts.launched(self.ledger.desks[effect.worker_id], self.tables, asked=asked, now=now)

    def after(self, event: Any, peer: bytes, now: float) -> None:
        """Demand what had to follow from the event, and that the books of the step balance."""
        step = self.step
        step.number += 1
        if step.bad_id or step.invalid:
            self._after_bad_id(event)
        if step.asking is not None and self._accepted(now) is None:
            broken("asked and answered", repr(event))
        if step.may_wait:
            for case in step.may_wait:
                if case.state != SETTLED:
                    self.ledger.wait(case, now)
                    self.ledger.seen["to be resent"] += 1
            step.may_wait.clear()
        if step.heirs:
            for case, resends in step.heirs:
                if case.state != SETTLED:
                    self.ledger.succeed(case, resends)
            step.heirs.clear()
        if step.must_settle:
            for case in step.must_settle:
                if case.state != SETTLED:
                    broken("settled when it is over", f"{case} after {type(event).__name__}")
            step.must_settle.clear()
        if step.must_answer:
            for case in step.must_answer:
                if not case.answered_cancel:
                    broken("cancellations are answered", f"{case} settled without a word of its cancellation")
            step.must_answer.clear()
        if step.must_tell:
            for case in step.must_tell:
                desk = desk_of(case)
                if case.epoch in desk.attempts and case.told != case.epoch:
                    broken("workers are told", f"{case} at {desk.worker_id} after {type(event).__name__}")
            step.must_tell.clear()
        self._kinship.after()
        fenced = self.tables.fenced - self._fenced
        if fenced != step.must_fence:
            broken("late replies are fenced", f"{fenced} rows instead of {step.must_fence} at {event}")
        self._fenced += fenced
        step.must_fence = 0
        step.heard = None
        if step.lost:
            step.lost.clear()
        if step.pushed_out:
            step.pushed_out.clear()
        kind = type(event)
        if self.sessions.are_on:
            self.sessions.after(event, now)
        if kind is Tick:
            self._outcomes.heed_the_deaf(now)
            self._after_tick(now)
        elif kind is wire.Heartbeat:
            self._check_progress(peer, now)
        elif kind is MemoryRead and self.tables.memory_paused != self.ledger.memory_paused:
            broken("admission pauses and resumes", f"at {event}: paused={self.tables.memory_paused}")
        if self._circuits.opened or step.must_be_open:
            self._check_refused(now)
        self._sizes.after(event, now)
        self._check_step()

    def _check_refused(self, now: float) -> None:
        """Where a breaker has just opened, nothing waits that no worker has had; and nowhere else is that refused."""
        for case in self.step.must_be_open:
            if not self._circuits.refuses(case, now):
                broken("outcome CIRCUIT_OPEN is earned", f"{case}: no breaker is open")
        self.step.must_be_open.clear()
        for name, operation in self._circuits.opened:
            for case in self.ledger.queues[name].values():
                if operation in ("", case.operation) and not (case.epoch or case.astray):
                    broken("an open breaker refuses what waits", repr(case))
        self._circuits.opened.clear()

    def _after_bad_id(self, event: Any) -> None:
        if self.step.bad_id != self.step.invalid:
            broken("ids are used once, by their owner", f"{event}: refused={self.step.invalid}")
        self.ledger.seen["refused id"] += self.step.bad_id
        self.step.bad_id = self.step.invalid = False

    def _after_tick(self, now: float) -> None:
        ledger = self.ledger
        self._modes.ticked(now)
        for case in ledger.open.values() if any(ledger.waiting.values()) else ():
            if case.state == WAITING and self._has_resumed(case):
                self._circuits.accepted(case, now)
        for case in ledger.open.values():
            if case.deadline is not None and now > case.deadline + WIDTH_S + _ROUNDING_S:
                broken("settled at its deadline", f"{case}, {now - case.deadline:.3f} s late")
        if self.tables.is_reading(now):
            return  # after a standstill: what else is due waits a moment
        if ledger.drain_due is not None and now >= ledger.drain_due and ledger.open:
            broken("drained within the budget", f"{len(ledger.open)} requests are open")
        self.kills.check_overdue(now)

    def _has_resumed(self, case: Case) -> bool:
        """Whether the pause of a case that is to be sent again is over: it is queued, or waits to run alone."""
        seclusion = self.tables.pools[case.pool].seclusion
        alone = seclusion is not None and case.request_id in seclusion.waiting
        return alone or bool(self.tables.requests[case.request_id].state == QUEUED)

    def _check_progress(self, peer: bytes, now: float) -> None:
        """What is listed as running is held by its worker, and has begun."""
        desk = self.ledger.by_peer[peer]
        for row in running(self.tables.workers[desk.worker_id], now):
            begun = [epoch for epoch, case in desk.attempts.items() if case.request_id == row["request_id"]]
            if not begun or not desk.marked(begun[0]) or row["running_s"] > now - desk.launched_at:
                broken("what is listed runs", f"{row} at {desk.worker_id}")
            self.ledger.seen["progress listed"] += 1

    def _check_step(self) -> None:
        """Check the cheap part of the books: counters, credits, idle workers beside a queue."""
        ledger, tables = self.ledger, self.tables
        if len(tables.requests) != len(ledger.open):
            broken("tables hold what is open", f"{len(tables.requests)} instead of {len(ledger.open)}")
        for name, pool in tables.pools.items():
            if pool.accepted != pool.completed + pool.failed + pool.queued + pool.in_flight:
                broken(
                    "counters add up", f"{name}: {pool.accepted} accepted, {pool.queued} queued, {pool.in_flight} out"
                )
            if pool.queued != ledger.queued_rows[name]:
                broken("counters add up", f"{name}: {pool.queued} rows queued instead of {ledger.queued_rows[name]}")
            if pool.queue:
                self._check_idle(name)
        for worker in tables.workers.values():
            if worker.held != ledger.desks[worker.worker_id].held:
                held = ledger.desks[worker.worker_id].held
                broken(
                    "credits are conserved", f"{worker.worker_id}: {worker.held} rows on the books, {held} on the desk"
                )

    def _check_idle(self, name: str) -> None:
        pool = self.ledger.pools[name]
        nested = any(case.priority == NESTED and not case.astray for case in self.ledger.queues[name].values())
        credit = pool.slots + (pool.prefetch or 0) + nested
        for worker in self.tables.workers.values():
            desk = self.ledger.desks[worker.worker_id]
            if worker.reserved or worker.stop_wanted:
                continue  # it waits for a suspect, or leaves
            if not nested and not takes_more(desk, pool.slots):
                continue
            if desk.pool == name and desk.takes_work and desk.held < credit:
                broken("no idle worker beside a queue", f"{desk.worker_id} holds {desk.held} of {credit}")
