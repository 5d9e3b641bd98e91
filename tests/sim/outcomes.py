"""What must hold of everything that clients are sent: one outcome for each request, and one that was earned."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from bridge.protocol import messages as wire
from bridge.protocol.errors import (
    CANCELLED,
    CIRCUIT_OPEN,
    DEADLINE_EXCEEDED,
    OVERLOADED,
    SESSION_LOST,
    BridgeError,
    decode_error,
)
from pools.core.events import Tick, WorkerExited
from tests.sim.admissions import Admissions
from tests.sim.circuits import Circuits
from tests.sim.hearing import DEATHS
from tests.sim.keys import Keys
from tests.sim.kills import Kills
from tests.sim.kinship import Kinship
from tests.sim.ledger import OUT, QUEUED, SETTLED, WAITING, Case, Desk, Ledger, label
from tests.sim.nesting import Nesting
from tests.sim.services import NAME, Services
from tests.sim.sessions import Sessions, waits_in_line
from tests.sim.step import Step, broken
from tests.sim.suspects import Suspects

_EPSILON_S: Final = 1e-6
# A lane in which every request has waited for so long as it was dispatched has a standing queue.
STANDING_S: Final = 1.0
# What is said to those that make room, and to nobody else.
_MAKES_ROOM: Final = "others are due more of it"


def desk_of(case: Case) -> Desk:
    """Return where a case is, or was last."""
    assert case.desk is not None
    return case.desk


class Outcomes:
    """Checks each message to a client, and writes outcomes down."""

    def __init__(
        self,
        ledger: Ledger,
        step: Step,
        circuits: Circuits,
        admissions: Admissions,
        keys: Keys,
        suspects: Suspects,
        kills: Kills,
        nesting: Nesting,
        kinship: Kinship,
        sessions: Sessions,
        services: Services,
        tables: Any,
    ) -> None:
        self.ledger = ledger
        self.step = step
        self._circuits = circuits
        self._admissions = admissions
        self._keys = keys
        self._suspects = suspects
        self._kills = kills
        self._nesting = nesting
        self._kinship = kinship
        self._sessions = sessions
        self._services = services
        self.tables = tables

    def to_client(self, peer: bytes, message: Any, now: float) -> None:
        """Check one message to a client."""
        kind = type(message)
        if kind is wire.Reply:
            self._check_reply(peer, message, now)
        elif kind is wire.CancelReply:
            self._check_cancel_reply(peer, message)
        elif kind is wire.Event:
            case = self.ledger.open.get(message.request_id)
            if case is None or case.peer != peer or case.epoch != message.epoch or not case.flags & wire.FLAG_EVENTS:
                broken("events of live attempts", f"of request {label(message.request_id)} to {peer!r}")
            self.ledger.seen["event passed on"] += 1
        elif kind is wire.ToolCall:
            self._nesting.to_client(peer, message)
        elif kind is wire.Invalid:
            self.step.invalid = True

    def _check_reply(self, peer: bytes, reply: wire.Reply, now: float) -> None:
        case = self.ledger.cases.get(reply.request_id)
        if case is None:
            case = self._replayed(peer, reply, now)
            if case is None:
                return
        if case.state == SETTLED:
            broken("one outcome", f"a second Reply to {case}")
        if case.peer != peer:
            broken("answers go to who asked", f"{case} to {peer!r}")
        if case.due is None and reply.attempt > 1 + case.resends:
            broken("attempts within the limit", f"{case} had {reply.attempt}, {case.resends} of them resends")
        if case is self.step.heard:
            event = self.step.event
            if (reply.status, reply.payload, reply.epoch) != (
                event.status,
                event.payload,
                event.epoch,
            ) or reply.session:
                broken("outcomes are the attempt's", f"{case}: {reply} for {event}")
            self._circuits.answered(case, event)
            self.ledger.seen["outcome OK" if reply.status == wire.OK else "outcome error of the attempt"] += 1
        elif case.due is not None:
            self._check_due(case, reply)
        else:
            self._check_own(case, reply, now)
        if reply.fallback_used != (case.due[2] if case.due is not None else case.elsewhere):
            broken("fallbacks are told", f"{case}: {reply.fallback_used}")
        self._circuits.released(case)
        self.ledger.settle(case)
        self._keys.settled(case, reply, now, was_shed=case is self.step.shed)
        self._kinship.settled(case)
        if case.talk is not None:
            self._sessions.settled(case)
        if case.client_asked:
            self.step.must_answer.append(case)

    def _replayed(self, peer: bytes, reply: wire.Reply, now: float) -> Case | None:
        """Take in a Reply to a request that has just come: an outcome that was known, or a refusal."""
        asking = self.step.asking
        keys = self._keys
        is_known = asking is not None and asking.request_id == reply.request_id and keys.known(asking, now) is not None
        if not is_known and asking is not None and self.tables.attached > keys.attached:
            return self._admissions.accepted(now)  # it took the place of who ran, and could not run either
        outcome = reply.status, reply.payload, reply.fallback_used
        if asking is None or not is_known or (reply.status == wire.ERROR and keys.outcome(asking, now) != outcome):
            self._admissions.refused(peer, reply, now)
            return None
        case = self._admissions.accepted(now)
        if case is not None:
            case.due = self._keys.outcome(case, now)
        return case

    def _check_due(self, case: Case, reply: wire.Reply) -> None:
        """A request that shared another's run, or came after it, has the same outcome."""
        if case.due != (reply.status, reply.payload, reply.fallback_used):
            broken("one key, one outcome", f"{case}: {reply}")
        self.ledger.seen["outcome of its key"] += 1

    def _check_own(self, case: Case, reply: wire.Reply, now: float) -> None:
        """An outcome that is the fleet's own must follow from what happened."""
        if reply.status != wire.ERROR:
            broken("outcomes are earned", f"{case} succeeded without a live attempt that did")
        error = decode_error(reply.payload or b"")
        check = _OWN.get(error.code)
        why = check(self, case, error, now) if check is not None else "nothing that happened leads there"
        if why:
            broken(f"outcome {error.code} is earned", f"{case}: {why}")
        executed = f" executed={error.details['executed']}" if "executed" in error.details else ""
        self.ledger.seen[f"outcome {error.code}{executed}"] += 1

    def _check_deadline(self, case: Case, error: BridgeError, now: float) -> str:
        if type(self.step.event) is not Tick or case.deadline is None or now < case.deadline - _EPSILON_S:
            return "its deadline has not passed"
        running = case.state == OUT and case.desk is not None and case.desk.marked(case.epoch)
        if error.details.get("stage") != ("running" if running else "queued"):
            return f"stage {error.details.get('stage')}"
        if ("was lost with its worker" in error.message) != (case.resends > 0 and not running):
            return f"{case.resends} attempts were lost: {error.message}"
        if case.state == OUT:
            case.expired = True
            self.step.must_tell.append(case)
        if running:
            self._circuits.ran_out(case, now)
        return ""

    def _check_cancelled(self, case: Case, error: BridgeError, now: float) -> str:
        due = self.ledger.drain_due
        if due is not None and now >= due - _EPSILON_S and type(self.step.event) is Tick:
            return ""
        is_orphan = self._kinship.heed(case)
        if not case.cancel:
            return "nobody asked for it"
        was_killed = case.request_id in self.step.lost and (desk_of(case).killed or is_orphan)
        if case.state == OUT and not case.shares_its_run and not was_killed:
            return "its attempt lives"
        return ""

    def _check_lost(self, case: Case, error: BridgeError, now: float) -> str:
        if case.pool == NAME:
            return "what services held is unavailable"
        executed = error.details.get("executed")
        if case.state == WAITING:
            self.heed_the_deaf(now)
            serves = self._any_ready(case.pool) and not self._circuits.refuses(case, now)
            serves = serves and (case.talk is None or not (case.talk.ended or self._sessions.is_lost(case.talk)))
            return "its pool serves" if executed != "maybe" or serves else ""
        if any(case is heir for heir, _ in self.step.heirs):
            return "" if executed == "maybe" else f"executed={executed}"
        if type(self.step.event) is not WorkerExited:
            return "no worker exited"
        if case.state == OUT:
            return "" if case.request_id in self.step.lost and executed == "maybe" else f"executed={executed}"
        if executed != ("maybe" if case.runs or case.resends else "no"):
            return f"executed={executed}, it ran {case.runs} times"
        return "" if case.deaths >= DEATHS else f"held by {case.deaths} workers that died"

    def _check_overloaded(self, case: Case, error: BridgeError, now: float) -> str:
        if case.state != QUEUED or case.epoch:
            return "a worker had it"
        if error.details["retry_after_s"] <= 0.0:
            return "nobody is told when to try again"
        newcomer = self.step.asking
        if _MAKES_ROOM in error.message:
            why_not = "nobody came" if newcomer is None else self._why_not_pushed_out(case, newcomer)
            self.step.pushed_out.append(case)
            self.ledger.seen["pushed out"] += 1
        else:
            why_not = self._why_not_shed(case, now)
            self.step.shed = case
            self.ledger.seen["shed"] += 1
        return why_not

    def _why_not_pushed_out(self, case: Case, newcomer: Case) -> str:
        """Return why a case should not have made room for a newcomer; the empty string if it should."""
        ledger = self.ledger
        limit, queued = self._admissions.room(newcomer, case.pool), ledger.taken_rows(case.pool)
        if queued + newcomer.rows <= limit:
            return f"there is room for {newcomer}: {queued} rows of {limit}"
        if case.priority < newcomer.priority:
            return f"{newcomer} is of a lower class"
        if sum(other.rows for other in self.step.pushed_out) >= newcomer.rows:
            return f"{len(self.step.pushed_out)} others did before, and that is as much as {newcomer} takes"
        waiting = [other for other in ledger.queues[case.pool].values() if not other.astray]
        held: Counter[str] = Counter({newcomer.principal: 0})
        for other in waiting:
            held[other.principal] += other.rows
        is_due = held[newcomer.principal] + newcomer.rows <= limit / len(held)
        if not is_due and newcomer.priority >= case.priority and not ledger.waiting[case.pool]:
            return f"{newcomer} is of no higher class, and its principal has {held[newcomer.principal]} rows of {limit}"
        if case.astray:
            return ""  # it was under suspicion, and came back into its lane as that was cleared: nobody knows where
        lane = [other for other in waiting if other.lane == case.lane and not other.epoch]
        is_last = max(lane, key=lambda other: other.rank, default=None) is case
        return "" if is_last else "it is not the latest of its lane"

    def _why_not_shed(self, case: Case, now: float) -> str:
        """Return why a case should not have been given up for its age; the empty string if it should."""
        if case.talk is not None:
            return "it waited for its turn"
        waited_s, limit_s = now - case.came_at, self.ledger.pools[case.pool].queue_age_s
        if case.deadline is not None:
            half_s = (case.deadline - case.came_at) / 2.0
            limit_s = half_s if limit_s is None else min(half_s, limit_s)
        if limit_s is None or waited_s <= limit_s - _EPSILON_S:
            return f"it has waited {waited_s:.3f} s of {limit_s}"
        in_lane = [other for other in self.ledger.queues[case.pool].values() if other.lane == case.lane]
        if len(in_lane) == 1 and self.step.asking is None and not self.ledger.waiting[case.pool]:
            return "nobody waits behind it"
        if case.key:
            return ""  # it may have followed another until now, in no queue
        fresh_at = self.ledger.fresh_at.get(case.lane, 0.0)
        return "" if now - fresh_at >= STANDING_S - _EPSILON_S else "its lane was empty, or fast, a moment ago"

    def _check_broken(self, case: Case, error: BridgeError, now: float) -> str:
        if not (case.state in (QUEUED, WAITING) or waits_in_line(case)) or case.epoch:
            return "a worker had it"
        if not self._circuits.refuses(case, now):
            self.step.must_be_open.append(case)  # what opens it may be told after those that are refused
        return ""

    def heed_the_deaf(self, now: float) -> None:
        """Count what did not stop when it was asked, once its worker is to be killed for it."""
        if type(self.step.event) is Tick and not self.tables.is_reading(now):
            for case in self._kills.deaf(now):
                self._circuits.did_not_stop(case, now)

    def _check_poison(self, case: Case, error: BridgeError, now: float) -> str:
        return "" if case.fingerprint in self._suspects.letters else "it is not in quarantine"

    def _check_unavailable(self, case: Case, error: BridgeError, now: float) -> str:
        if case.pool == NAME:
            return self._services.why_not(case, str(error.details.get("executed")))
        if case.state == OUT:
            return "a worker has it"
        return "" if not self._any_ready(case.pool) else "a worker is ready"

    def _check_session(self, case: Case, error: BridgeError, now: float) -> str:
        return self._sessions.earns_lost(case)

    def _any_ready(self, pool: str) -> bool:
        workers = self.tables.workers.values()
        return any(
            worker.pool.name == pool and not worker.stop_wanted and self.ledger.desks[worker.worker_id].takes_work
            for worker in workers
        )

    def _check_cancel_reply(self, peer: bytes, message: wire.CancelReply) -> None:
        self.ledger.seen[f"cancelled {message.stage}/{message.how}"] += 1
        case = self.ledger.cases.get(message.request_id)
        is_orphan = case is not None and self._kinship.heed(case)
        if message.how == "none":
            if case is not None:
                case.answered_cancel = True
            return
        if case is None or case.peer != peer or not case.cancel or case.answered_cancel:
            broken("cancellations answered once", f"{case or label(message.request_id)}: {message.stage}/{message.how}")
        if message.how == "dequeued" and case.runs:
            broken("dequeued means not run", repr(case))
        is_lost = is_orphan and self._is_lost(case)
        if message.how == "killed" and not case.resends and not is_lost and not desk_of(case).killed:
            broken("killed means killed", repr(case))
        case.answered_cancel = True

    def _is_lost(self, case: Case) -> bool:
        """Whether a case's attempt, or the one that it inherits, has just been lost."""
        return case.request_id in self.step.lost or any(case is heir for heir, _ in self.step.heirs)

    def control(self, request: wire.Request) -> None:
        """The shell answers a request itself: it is none of the fleet's."""
        if self.step.asking is None or self.step.asking.request_id != request.request_id:
            broken("answers go to who asked", f"control request {label(request.request_id)}")
        self.step.asking = None


_OWN: Final = {
    DEADLINE_EXCEEDED: Outcomes._check_deadline,
    CANCELLED: Outcomes._check_cancelled,
    "WORKER_LOST": Outcomes._check_lost,
    "UNAVAILABLE": Outcomes._check_unavailable,
    OVERLOADED: Outcomes._check_overloaded,
    CIRCUIT_OPEN: Outcomes._check_broken,
    "POISON_REQUEST": Outcomes._check_poison,
    SESSION_LOST: Outcomes._check_session,
}
