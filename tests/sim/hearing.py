"""Events as they are written into the ledger, before the fleet handles them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bridge.protocol import messages as wire
from pools.core.events import (
    ClientConnected,
    ClientGone,
    CpuRead,
    Drain,
    DrainWorker,
    DropLetter,
    MemoryRead,
    PardonLetter,
    ProgramSet,
    ProtocolBroken,
    Resize,
    Restart,
    SessionRestored,
    WorkerDied,
    WorkerExited,
)
from pools.core.poison import fingerprint as fingerprint_of
from pools.core.programs import version_of
from tests.sim.admissions import Admissions
from tests.sim.circuits import Circuits, is_ordered
from tests.sim.keys import Keys
from tests.sim.kinship import Kinship
from tests.sim.ledger import OUT, SETTLED, Case, Ledger
from tests.sim.nesting import Nesting
from tests.sim.resends import may_be_resent
from tests.sim.restarts import Restarts
from tests.sim.services import NAME, Services
from tests.sim.sessions import Sessions
from tests.sim.step import Step
from tests.sim.suspects import Suspects

# Workers that may die while they hold a request unstarted; then it is lost.
DEATHS: Final = 2
# The parts of the memory in use between which admission stays as it is.
PAUSED_FROM: Final = 0.9
RESUMED_BELOW: Final = 0.85


class Hearing:
    """Writes down what is heard, and in the step what must follow from it."""

    def __init__(
        self,
        ledger: Ledger,
        step: Step,
        restarts: Restarts,
        circuits: Circuits,
        suspects: Suspects,
        keys: Keys,
        admissions: Admissions,
        nesting: Nesting,
        kinship: Kinship,
        sessions: Sessions,
        services: Services,
        tables: Any,
    ) -> None:
        self.ledger = ledger
        self.step = step
        self.restarts = restarts
        self.circuits = circuits
        self.suspects = suspects
        self.keys = keys
        self.admissions = admissions
        self._kinship = kinship
        self._sessions = sessions
        self._services = services
        self.tables = tables
        self._by_kind: dict[type, Callable[[Any, bytes, float], None]] = {
            wire.Request: self._request,
            wire.Cancel: self._cancel,
            wire.Bye: self._gone,
            ClientGone: self._gone,
            ClientConnected: self._connected,
            wire.Reply: self._reply,
            wire.Recalled: self._recalled,
            wire.Started: self._started,
            wire.Pause: nesting.paused,
            wire.Resume: nesting.paused,
            wire.ToolCall: nesting.called,
            wire.ToolReply: nesting.answered,
            wire.Ready: self._ready,
            wire.Hello: self._heard_of,
            wire.Heartbeat: self._heard_of,
            ProtocolBroken: self._garbled,
            WorkerDied: self._died,
            WorkerExited: self._exited,
            ProgramSet: self._programmed,
            Drain: self._drain,
            MemoryRead: self._memory,
            CpuRead: self._cpu,
            Resize: self._operated,
            Restart: self._operated,
            DrainWorker: self._operated,
            DropLetter: self._letter_released,
            PardonLetter: self._letter_released,
            SessionRestored: sessions.restored,
        }

    def hear(self, event: Any, peer: bytes, now: float) -> None:
        """Take an event into the ledger."""
        self.step.event = event
        self.ledger.now = now
        kind = type(event)
        self.ledger.seen[kind.__name__] += 1
        write = self._by_kind.get(kind)
        if write is not None:
            write(event, peer, now)

    def _connected(self, event: ClientConnected, peer: bytes, now: float) -> None:
        self.ledger.clients[peer] = event.client_no
        self.ledger.principals[peer] = event.principal
        self.ledger.served[peer] = event.worker_id
        self.ledger.last_id[peer] = wire.request_id_base(event.client_no)

    def _request(self, message: wire.Request, peer: bytes, now: float) -> None:
        ledger, request_id = self.ledger, message.request_id
        number = ledger.clients.get(peer)
        self.step.bad_id = (
            number is None or request_id >> wire.CLIENT_SHIFT != number or request_id <= ledger.last_id[peer]
        )
        if not self.step.bad_id:
            ledger.last_id[peer] = request_id
            self.step.asking = case = ledger.new_case(message, peer, now)
            self._kinship.arrived(case, message, now)
            if message.session or message.in_session is not None:
                self._sessions.arrived(case, message, now)
            if case.pool == NAME:
                self._services.arrived(case)
            self.admissions.arrived(case, now)

    def _cancel(self, message: wire.Cancel, peer: bytes, now: float) -> None:
        case = self.ledger.open.get(message.request_id)
        if case is not None and case.peer == peer and peer in self.ledger.clients:
            case.client_asked = True
            self._cancel_case(case, 2 if message.force else 1)

    def _cancel_case(self, case: Case, how: int, *, with_all: bool = False) -> None:
        """A request is cancelled; with_all: with all of its client, which leaves."""
        case.cancel = max(case.cancel, how)
        shares = case.shares_its_run and case.work is not None
        if shares and with_all:
            shares = any(other.peer != case.peer for other in case.work.followers.values())
        if shares and with_all and any(other.parent for other in case.work.followers.values()):
            self.step.must_end.append(case)  # their parents may end with that client
        elif case.state == OUT and not shares:
            self.step.must_tell.append(case)
        else:
            self.step.must_settle.append(case)
        self._kinship.cancelled(case, how, shares=shares)

    def _gone(self, message: Any, peer: bytes, now: float) -> None:
        if self.ledger.clients.pop(peer, None) is not None:
            for case in self.ledger.open.values():
                if case.peer == peer:
                    self._cancel_case(case, 1, with_all=True)

    def _reply(self, message: wire.Reply, peer: bytes, now: float) -> None:
        desk = self.ledger.by_peer[peer]
        case = desk.attempts.get(message.epoch)
        if case is None or case.request_id != message.request_id:
            self.step.must_fence = 1
            return
        desk.take(message.epoch)
        if case.talk is not None:
            self.step.event = message = self._sessions.heard(case, desk, message)
        self.suspects.answered(case, message)
        if case.state == SETTLED:
            self.step.must_fence = case.rows
            self.keys.ended(case, message, now)
        else:
            self.step.heard = case
            self.step.must_settle.append(case)

    def _recalled(self, message: wire.Recalled, peer: bytes, now: float) -> None:
        case = self.ledger.by_peer[peer].take(message.epoch)
        if case is None:
            self.step.must_fence = 1
        elif case.state == OUT:
            self._give_back(case)
        else:
            self.keys.ended(case, None, now)

    def _give_back(self, case: Case) -> None:
        self.ledger.seen["given back"] += 1
        # What comes back in one step keeps its order; what comes back later goes before it.
        self.ledger.enqueue(case, rank=(-self.step.number, case.epoch))
        case.astray = case.astray or self.suspects.suspects(case.fingerprint, self.ledger.now)
        if case.cancel:
            self.step.must_settle.append(case)

    def _started(self, message: wire.Started, peer: bytes, now: float) -> None:
        case = self.ledger.by_peer[peer].attempts.get(message.epoch)
        if case is not None and (case.state == SETTLED or case.cancel):
            case.told = 0
            self.step.must_tell.append(case)

    def _heard_of(self, message: Any, peer: bytes, now: float) -> None:
        self.ledger.by_peer[peer].last_heard = now

    def _ready(self, message: wire.Ready, peer: bytes, now: float) -> None:
        desk = self.ledger.by_peer[peer]
        desk.last_heard = now
        desk.ready = not desk.stopping
        if desk.ready:
            self.restarts.ready(desk, now)
            if desk.pool == NAME:
                self._services.ready(desk)

    def _garbled(self, event: ProtocolBroken, peer: bytes, now: float) -> None:
        self.ledger.by_peer[peer].broken = True

    def _died(self, event: WorkerDied, peer: bytes, now: float) -> None:
        self.ledger.desks[event.worker_id].dead = True

    def _exited(self, event: WorkerExited, peer: bytes, now: float) -> None:
        desk = self.ledger.desks[event.worker_id]
        if desk.exited:
            return
        desk.dead = desk.exited = True
        worker = self.tables.workers.get(event.worker_id)
        lost: list[tuple[Case, bool]] = []
        if desk.pool == NAME:
            self._services.exited(desk)
        else:
            self.suspects.died(desk, worker, now)
        for epoch in sorted(desk.attempts):
            waits = epoch in desk.paused
            case = desk.take(epoch)
            if case is None:
                continue
            if case.talk is not None and desk.marked(epoch):
                self._sessions.died(case, desk)
            if case.state == SETTLED:
                heir = self.keys.bereaved(case) if desk.marked(epoch) else None
                if heir is None:
                    self.keys.ended(case, None, now)
                else:
                    self._inherit(heir, case, event, now)
                continue
            if desk.marked(epoch):
                lost.append((case, waits))
                continue
            case.deaths += 1
            self._give_back(case)
            if case.deaths >= DEATHS:
                self.step.must_settle.append(case)
        self._lost(lost, event, worker, now)
        if worker is not None and (self._has_a_place(worker) or self.restarts.is_latest(desk)):
            self.restarts.exited(desk, intended=worker.stop_wanted, now=now)

    def _lost(self, lost: list[tuple[Case, bool]], event: WorkerExited, worker: Any, now: float) -> None:
        """Cases had started at a worker that is buried: each is settled, or sent again if it may be; the last first.

        With each, whether it waited for something of its own: that is no failure.
        """
        killed = worker is not None and bool(worker.kill_why)
        ordered = worker is not None and is_ordered(worker)
        for case, waits in reversed(lost):
            self.step.lost.add(case.request_id)
            again = may_be_resent(self.ledger, case, event, now)
            (self.step.may_wait if again else self.step.must_settle).append(case)
            if waits:
                self.ledger.seen["lost while it was paused"] += 1
            elif not ordered and not (case.cancel and killed):
                self.circuits.failed(case, now)
            self.circuits.released(case)

    def _inherit(self, heir: Case, case: Case, event: WorkerExited, now: float) -> None:
        """What a case left behind was lost, and another is to have its resend, if there is to be one."""
        heir.resends = case.resends
        if not may_be_resent(self.ledger, heir, event, now):
            self.step.must_settle.append(heir)
        self.step.heirs.append((heir, case.resends))

    def _has_a_place(self, worker: Any) -> bool:
        """Whether a worker is in service or about to be; what ends one that leaves has no say in the next launch."""
        succession = worker.pool.succession
        return worker.pool.places[worker.place].worker is worker or (
            succession is not None and succession.spare is worker
        )

    def _programmed(self, event: ProgramSet, peer: bytes, now: float) -> None:
        pools = {version.version: version.pool for version in event.versions}
        self.ledger.seen["swapped while it runs"] += any("@" in case.asks for case in self.ledger.open.values())
        self.ledger.set_program(event.name, pools, event.aliases)

    def _operated(self, event: Any, peer: bytes, now: float) -> None:
        ledger = self.ledger
        ledger.operated = True
        ledger.drained_one = ledger.drained_one or type(event) is DrainWorker
        if type(event) is Resize and ledger.drain_due is None:
            least, most = event.size, event.size if event.max_size is None else event.max_size
            if 0 < least <= most or least == most == 0:
                ledger.bounds[event.pool] = (least, most)

    def _memory(self, event: MemoryRead, peer: bytes, now: float) -> None:
        self.ledger.memory_used = event.used
        if event.used >= PAUSED_FROM:
            self.ledger.memory_paused = True
        elif event.used < RESUMED_BELOW:
            self.ledger.memory_paused = False

    def _cpu(self, event: CpuRead, peer: bytes, now: float) -> None:
        self.ledger.cpu_used = event.used

    def _letter_released(self, event: DropLetter | PardonLetter, peer: bytes, now: float) -> None:
        letter = self.tables.poison.find(event.letter_id)
        message = letter.message
        [fingerprint] = [
            known
            for known in self.suspects.letters
            if (known[0][0], *known[1:]) == (message.operation, message.payload, message.lm)
            and letter.fingerprint == fingerprint_of(message, version_of(known[0][1]))
        ]
        self.suspects.released(fingerprint, now, pardoned=type(event) is PardonLetter)

    def _drain(self, event: Drain, peer: bytes, now: float) -> None:
        due = self.ledger.drain_due
        self.ledger.drain_due = now + event.budget_s if due is None else min(due, now + event.budget_s)
