"""What must hold of everything that workers are sent, dispatches first of all."""

from __future__ import annotations

from typing import Any, Final

from bridge.protocol import messages as wire
from pools.core.deadlines import WIDTH_S
from pools.core.events import ClientGone
from tests.sim.admissions import Admissions
from tests.sim.circuits import Circuits
from tests.sim.hearing import DEATHS
from tests.sim.kills import Kills
from tests.sim.kinship import Kinship
from tests.sim.ledger import NESTED, QUEUED, SETTLED, WAITING, Case, Desk, Ledger, label
from tests.sim.nesting import Nesting, takes_more
from tests.sim.order import Order
from tests.sim.sessions import Sessions, waits_in_line
from tests.sim.step import Step, broken
from tests.sim.suspects import Suspects

_EPSILON_S: Final = 1e-6


class Dispatches:
    """Checks each message to a worker, and writes dispatches down."""

    def __init__(
        self,
        ledger: Ledger,
        step: Step,
        kills: Kills,
        circuits: Circuits,
        admissions: Admissions,
        suspects: Suspects,
        nesting: Nesting,
        kinship: Kinship,
        sessions: Sessions,
        tables: Any,
    ) -> None:
        self.ledger = ledger
        self.step = step
        self.tables = tables
        self._kills = kills
        self._circuits = circuits
        self._admissions = admissions
        self._suspects = suspects
        self._nesting = nesting
        self._kinship = kinship
        self._sessions = sessions
        self._order = Order(ledger)
        self._last_epoch = 0

    def to_worker(self, peer: bytes, message: Any, now: float) -> None:
        """Check one message to a worker."""
        desk = self.ledger.by_peer[peer]
        kind = type(message)
        if kind is wire.Request:
            self._check_dispatch(desk, message, now)
        elif kind is wire.Recall or kind is wire.Cancel:
            case = desk.attempts.get(message.epoch)
            if case is None:
                broken("asks for what is held", f"{kind.__name__} of epoch {message.epoch} at {desk.worker_id}")
            case.told = message.epoch
            self._kinship.heed(case)
            if kind is wire.Cancel and case.state != SETTLED and not case.cancel:
                broken("stopped for a reason", f"{case} at {desk.worker_id}")
            self.ledger.seen[f"{kind.__name__} sent"] += 1
            if kind is wire.Cancel and not self._has_time(case):
                self._kills.asked(desk, message.epoch, now)
        elif kind is wire.ToolReply:
            self._nesting.to_worker(desk, message)
        elif kind is wire.Credit:
            self._nesting.credited(desk, message)
        elif kind is wire.Stop:
            if not self._kills.meant_to_leave(desk):
                broken("stopped on purpose", f"{desk.worker_id} was told to stop")
            desk.stopping, desk.ready = True, False
        elif kind is wire.Program:
            self._told(desk, message)

    def _told(self, desk: Desk, message: wire.Program) -> None:
        version = f"{message.name}@{message.program_version}"
        ledger = self.ledger
        desk.aliases = {alias: other for alias, other in desk.aliases.items() if other != message.program_version}
        if message.payload:
            desk.programs.add(version)
            desk.aliases.update(dict.fromkeys(message.aliases, message.program_version))
            return
        desk.programs.discard(version)
        ledger.seen["version forgotten"] += 1
        out = (case for other in ledger.desks.values() if not other.exited for case in other.attempts.values())
        if any(case.asks == version for case in (*ledger.open.values(), *out)):
            broken("a version is known while it runs", f"{desk.worker_id} is to forget {version}")

    def _has_time(self, case: Case) -> bool:
        """Whether a plain cancellation asks it to stop: its own, or of what was shared by the last that wanted it."""
        if case.state != SETTLED:
            return case.cancel != 2
        event = self.step.event
        kind = type(event)
        return case.work is not None and (
            kind is wire.Bye or kind is ClientGone or (kind is wire.Cancel and not event.force)
        )

    def _check_dispatch(self, desk: Desk, message: wire.Request, now: float) -> None:
        ledger = self.ledger
        if self.step.asking is not None:
            self._admissions.accepted(now)  # or else it would have been refused by now
        case = ledger.cases.get(message.request_id)
        if case is not None and waits_in_line(case):
            self._sessions.take_turn(case, now)
        if case is None or case.state not in (QUEUED, WAITING):
            broken("dispatched once at a time", f"{case or label(message.request_id)} to {desk.worker_id}")
        if case.runs > case.resends:
            broken("at most once", f"{case} is dispatched again, to {desk.worker_id}")
        if not desk.takes_work or self.tables.workers[desk.worker_id].stop_wanted:
            broken("dispatched to the living", f"{case} to {desk.worker_id}")
        if case.cancel or self._kinship.is_orphan(case):
            broken("not dispatched once cancelled", f"{case} to {desk.worker_id}")
        if case.deaths >= DEATHS:
            broken("attempts within the limit", f"{case}: {case.deaths} workers died holding it")
        if message.epoch <= self._last_epoch:
            broken("epochs grow", f"{message.epoch} after {self._last_epoch}")
        self._last_epoch = message.epoch
        self._check_time(case, message, now)
        event = self.step.event
        self._order.check(case, new=type(event) is wire.Request and event.request_id == case.request_id)
        pool = ledger.pools[case.pool]
        if desk.pool != case.pool:
            broken("runs in its pool", f"{case} of pool {case.pool} to {desk.worker_id}")
        more = 1 if case.priority <= wire.PRIORITY_HIGH else 0
        if case.priority != NESTED and not (takes_more(desk, pool.slots) or case.astray):
            broken("who waits begins nothing new", f"{case} to {desk.worker_id}, {len(desk.paused)} of it paused")
        if (message.depth, message.parent_request_id, message.principal) != (case.depth, case.parent, case.principal):
            broken("families are told", f"{case}: {message.depth} deep in {message.parent_request_id}")
        if pool.prefetch is not None and desk.held >= pool.slots + pool.prefetch + more:
            broken("within credit", f"{desk.worker_id} holds {desk.held} rows and is given {case}")
        if message.operation != case.asks:
            broken("the version of its time", f"{case}: {desk.worker_id} is asked for {message.operation}")
        if "@" in case.asks and case.asks not in desk.programs:
            broken("programs come first", f"{desk.worker_id} does not know {case.asks}")
        if case.talk is not None:
            self._sessions.dispatched(case, desk, message)
        self._suspects.dispatched(case, desk, message.epoch, now)
        if case.state == WAITING:
            self._circuits.accepted(case, now)
        ledger.send_out(case, desk, message.epoch, now)
        ledger.seen["dispatched"] += 1

    def _check_time(self, case: Case, message: wire.Request, now: float) -> None:
        if case.deadline is None:
            return
        left_s = case.deadline - now
        if left_s < -WIDTH_S - _EPSILON_S:
            broken("not dispatched after its deadline", f"{case}, {-left_s:.3f} s late")
        if message.deadline_ms is None or abs(message.deadline_ms - left_s * 1000.0) > 1.0:
            broken("deadlines travel", f"{case}: {message.deadline_ms} ms of {left_s:.4f} s")
