"""Programs that wait: they lend their slot out, and call tools of their callers. What must hold of both.

The worker's side decides, by noise of its own, which attempts do so; histories are the same without it. The ledger's
side follows what the coordinator hears of it: a paused attempt is on its worker's desk and takes none of its slots.
"""

from __future__ import annotations

from typing import Any, Final

from bridge.protocol import messages as wire
from bridge.protocol.errors import CANCELLED, error_code
from tests.sim.ledger import SETTLED, Case, Desk, Ledger, label
from tests.sim.noise import Noise
from tests.sim.step import Step, broken

_WAITS: Final = 0.2
_CALLS: Final = 0.15
_NEVER_GOES_ON: Final = 0.3
# A worker with so many paused attempts for each of its slots, or so many in all, is given no more.
_PER_SLOT: Final = 4
_MOST: Final = 128


def waits_of(seed: int, epoch: int, run_s: float) -> list[tuple[float, str]]:
    """Return what an attempt does while it runs, and when: pause, resume, call."""
    noise = Noise(seed, f"waits {epoch}")
    acts = []
    if noise.next() < _WAITS:
        acts.append((run_s * 0.3, "pause"))
        if noise.next() >= _NEVER_GOES_ON:
            acts.append((run_s * (0.4 + 0.5 * noise.next()), "resume"))
    if noise.next() < _CALLS:
        acts.append((run_s * noise.next(), "call"))
    return acts


def takes_more(desk: Desk, slots: int) -> bool:
    """Whether a worker may begin what nobody who waits has asked for."""
    return len(desk.paused) < min(_PER_SLOT * slots, _MOST)


class Nesting:
    """Follows pauses, and checks where tool calls and their answers go."""

    def __init__(self, ledger: Ledger, step: Step) -> None:
        self._ledger = ledger
        self._step = step

    def paused(self, message: wire.Pause | wire.Resume, peer: bytes, now: float) -> None:
        """Take in that an attempt lends its slot out, or has it back."""
        desk = self._ledger.by_peer[peer]
        case = desk.attempts.get(message.epoch)
        if case is not None and (message.epoch in desk.paused) != (type(message) is wire.Pause):
            desk.toggle(message.epoch, case)
            if message.epoch not in desk.paused:
                self._ledger.resumed.add(desk.worker_id)
            self._ledger.seen["paused" if message.epoch in desk.paused else "resumed"] += 1

    def called(self, message: wire.ToolCall, peer: bytes, now: float) -> None:
        """Take in that a program calls a tool: of who is not there for it, the fleet says so, or fences it."""
        case = self._ledger.by_peer[peer].attempts.get(message.epoch)
        clients = self._ledger.clients
        is_wanted = case is not None and (_goes_on(case) if case.state == SETTLED else case.peer in clients)
        self._step.must_fence = 0 if is_wanted else 1

    def answered(self, message: wire.ToolReply, peer: bytes, now: float) -> None:
        """Take in that a tool has answered."""
        case = self._ledger.open.get(message.request_id)
        if case is not None and case.peer == peer and case.epoch == message.epoch:
            self._ledger.calls.get(message.epoch, set()).discard(message.number)

    def to_client(self, peer: bytes, message: wire.ToolCall) -> None:
        """Check a call that is passed on: to the caller, for a live attempt."""
        case = self._ledger.open.get(message.request_id)
        if case is None or case.peer != peer or case.epoch != message.epoch or peer not in self._ledger.clients:
            broken("tool calls of live attempts", f"of request {label(message.request_id)} to {peer!r}")
        self._ledger.calls.setdefault(message.epoch, set()).add(message.number)
        self._ledger.seen["tool called"] += 1

    def to_worker(self, desk: Desk, message: wire.ToolReply) -> None:
        """Check an answer that a worker is given: the caller's own, or, where it is gone, that nobody is there."""
        case = desk.attempts.get(message.epoch)
        if case is None or case.request_id != message.request_id:
            broken("tools answer live attempts", f"{label(message.request_id)} at {desk.worker_id}")
        if message.status == wire.ERROR:
            is_known = error_code(message.payload or b"") == CANCELLED
            if not is_known or not _is_left(case):
                broken("a caller that is there answers", f"{case} at {desk.worker_id}")
            self._ledger.seen["tool without a caller"] += 1
        elif type(self._step.event) is not wire.ToolReply or case.state == SETTLED:
            broken("tools answer live attempts", f"{case} at {desk.worker_id}")
        else:
            self._ledger.seen["tool answered"] += 1

    def credited(self, desk: Desk, message: wire.Credit) -> None:
        """Check that credit is the caller's own, or, where it is gone, without end."""
        case = desk.attempts.get(message.epoch)
        if case is None or case.request_id != message.request_id:
            broken("credit is a live attempt's", f"{label(message.request_id)} at {desk.worker_id}")
        event = self._step.event
        if message.events == wire.UNREAD_EVENTS:
            if not _is_left(case):
                broken("a caller that is there reads", f"{case} at {desk.worker_id}")
            self._ledger.seen["credit without a caller"] += 1
        elif type(event) is not wire.Credit or event.request_id != case.request_id or case.state == SETTLED:
            broken("credit is the caller's", f"{case} at {desk.worker_id}")
        else:
            self._ledger.seen["credit passed on"] += 1


def _is_left(case: Case) -> bool:
    """Whether the caller of an attempt is gone, while others wait for it, or did a moment ago."""
    return case.state == SETTLED and case.work is not None and case.work.runner is case


def _goes_on(case: Any) -> bool:
    """Whether others wait for the outcome of a settled case's attempt."""
    return isinstance(case, Case) and case.shares_its_run
