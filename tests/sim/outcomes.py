"""What must hold of everything that clients are sent: one outcome for each request, and one that was earned."""

from __future__ import annotations

from typing import Any, Final

from bridge.protocol import messages as wire
from bridge.protocol.errors import CANCELLED, DEADLINE_EXCEEDED, OVERLOADED, BridgeError, decode_error
from pools.core.events import Tick, WorkerExited
from tests.sim.hearing import DEATHS
from tests.sim.ledger import OUT, QUEUED, SETTLED, Case, Desk, Ledger, label
from tests.sim.step import Step, broken

_EPSILON_S: Final = 1e-6
_REFUSALS: Final = frozenset({"NOT_FOUND", "INVALID_REQUEST", "UNAVAILABLE", "OVERLOADED"})


def desk_of(case: Case) -> Desk:
    """Return where a case is, or was last."""
    assert case.desk is not None
    return case.desk


class Outcomes:
    """Checks each message to a client, and writes outcomes down."""

    def __init__(self, ledger: Ledger, step: Step, tables: Any) -> None:
        self.ledger = ledger
        self.step = step
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
        elif kind is wire.Invalid:
            self.step.invalid = True

    def _check_reply(self, peer: bytes, reply: wire.Reply, now: float) -> None:
        case = self.ledger.cases.get(reply.request_id)
        if case is None:
            self._check_refusal(peer, reply)
            return
        if case.state == SETTLED:
            broken("one outcome", f"a second Reply to {case}")
        if case.peer != peer:
            broken("answers go to who asked", f"{case} to {peer!r}")
        if reply.attempt > 1:
            broken("attempts within the limit", f"{case} had {reply.attempt}")
        if case is self.step.heard:
            event = self.step.event
            if (reply.status, reply.payload, reply.epoch) != (event.status, event.payload, event.epoch):
                broken("outcomes are the attempt's", f"{case}: {reply} for {event}")
            self.ledger.seen["outcome OK" if reply.status == wire.OK else "outcome error of the attempt"] += 1
        else:
            self._check_own(case, reply, now)
        self.ledger.settle(case)
        if case.client_asked:
            self.step.must_answer.append(case)

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
        if case.state == OUT:
            self.step.must_tell.append(case)
        return ""

    def _check_cancelled(self, case: Case, error: BridgeError, now: float) -> str:
        due = self.ledger.drain_due
        if due is not None and now >= due - _EPSILON_S and type(self.step.event) is Tick:
            return ""
        if not case.cancel:
            return "nobody asked for it"
        if case.state == OUT and (case.request_id not in self.step.lost or not desk_of(case).killed):
            return "its attempt lives"
        return ""

    def _check_lost(self, case: Case, error: BridgeError, now: float) -> str:
        executed = error.details.get("executed")
        if type(self.step.event) is not WorkerExited:
            return "no worker exited"
        if case.state == OUT:
            return "" if case.request_id in self.step.lost and executed == "maybe" else f"executed={executed}"
        if case.started or executed != "no":
            return f"executed={executed}, started={case.started}"
        return "" if case.deaths >= DEATHS else f"held by {case.deaths} workers that died"

    def _check_unavailable(self, case: Case, error: BridgeError, now: float) -> str:
        if case.state != QUEUED:
            return "it was not queued"
        return "" if not self._any_ready(case.pool) else "a worker is ready"

    def _any_ready(self, pool: str) -> bool:
        workers = self.tables.workers.values()
        return any(
            worker.pool.name == pool and not worker.stop_wanted and self.ledger.desks[worker.worker_id].takes_work
            for worker in workers
        )

    def _check_refusal(self, peer: bytes, reply: wire.Reply) -> None:
        case = self.step.asking
        if case is None or case.request_id != reply.request_id or case.peer != peer:
            broken("answers go to who asked", f"a Reply to {label(reply.request_id)} for {peer!r}")
        self.step.asking = None
        error = decode_error(reply.payload or b"")
        if reply.status != wire.ERROR or error.code not in _REFUSALS:
            broken("refusals are typed", f"{case}: {error.code}")
        if error.code == OVERLOADED and error.details["retry_after_s"] <= 0.0:
            broken("refusals say when to try again", f"{case}: {error.details}")
        if error.message.startswith("memory is"):
            if not self.ledger.memory_paused:
                broken("refused for memory while it is short", f"{case}: {error.message}")
            self.ledger.seen["refused for memory"] += 1
        self.ledger.seen[f"refused {error.code}"] += 1

    def _check_cancel_reply(self, peer: bytes, message: wire.CancelReply) -> None:
        self.ledger.seen[f"cancelled {message.stage}/{message.how}"] += 1
        case = self.ledger.cases.get(message.request_id)
        if message.how == "none":
            if case is not None:
                case.answered_cancel = True
            return
        if case is None or case.peer != peer or not case.cancel or case.answered_cancel:
            broken("cancellations answered once", f"{case or label(message.request_id)}: {message.stage}/{message.how}")
        if message.how == "dequeued" and case.started:
            broken("dequeued means not run", repr(case))
        if message.how == "killed" and not desk_of(case).killed:
            broken("killed means killed", repr(case))
        case.answered_cancel = True

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
}
