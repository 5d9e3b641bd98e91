"""What must hold of idempotency keys: one run at a time, and one outcome for all that ask with it.

The first request with a key runs, those that come meanwhile follow it. What one of them comes to by itself, cancelled
or out of time, is no outcome: what is out goes on for the others, or for those that will come. If that comes to nothing
either, the oldest of them runs; where it is lost, one of them waits for the resend.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from bridge.protocol import messages as wire
from bridge.protocol.errors import decode_error
from pools.core.deadlines import WIDTH_S
from pools.core.events import WorkerExited
from tests.sim.circuits import Circuits
from tests.sim.ledger import QUEUED, SETTLED, WAITING, Case, Desk, Ledger
from tests.sim.step import Step, broken
from tests.sim.suspects import Suspects

_KEPT_S: Final = 600.0
_OWN: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED"})

Name = tuple[str, str, str]
Digest = tuple[str, str, int, bytes | None]
# What a request came to: status, payload, and whether it ran in the place of what was asked for.
Outcome = tuple[int, bytes | None, bool]


class Known(NamedTuple):
    """An outcome that is remembered."""

    digest: Digest
    outcome: Outcome
    ended_at: float


class Work:
    """What requests with one key share. run: where user code runs for them, the desk and the epoch."""

    def __init__(self, name: Name, digest: Digest, runner: Case) -> None:
        self.name = name
        self.digest = digest
        self.runner = runner
        self.followers: dict[int, Case] = {}
        self.run: tuple[Desk, int] | None = None

    def ran(self, case: Case, desk: Desk, epoch: int) -> None:
        """User code of a case starts."""
        if self.runner is not case:
            return
        if self.run is not None:
            before, other = self.run
            if other in before.attempts and not before.dead:
                broken("a key runs once at a time", f"{case} at {desk.worker_id}, beside {before.worker_id}")
        self.run = desk, epoch


class Keys:
    """The keys of one history."""

    def __init__(self, ledger: Ledger, step: Step, circuits: Circuits, suspects: Suspects) -> None:
        self._ledger = ledger
        self._circuits = circuits
        self._suspects = suspects
        self._step = step
        self._running: dict[Name, Work] = {}
        self._known: dict[Name, Known] = {}
        self.attached = 0

    # --- as they come -------------------------------------------------------------------------------

    def conflicts(self, case: Case, now: float) -> bool:
        """Whether a case's key stands for something else."""
        work, known = self._running.get(case.name), self.known(case, now)
        found = work.digest if work is not None else known.digest if known is not None else case.digest
        return bool(case.key) and found != case.digest

    def known(self, case: Case, now: float) -> Known | None:
        """Return the outcome that a case is to have, None if there is none yet."""
        known = self._known.get(case.name) if case.key else None
        return known if known is not None and now < known.ended_at + _KEPT_S else None

    def is_shared(self, case: Case, now: float) -> bool:
        """Whether a case is to have the outcome of others."""
        return bool(case.key) and (case.name in self._running or self.known(case, now) is not None)

    def accepted(self, case: Case, now: float) -> None:
        """A case was accepted: the first with its key, or one that follows. A known outcome is replayed at once."""
        if not case.key:
            return
        if self.conflicts(case, now):
            broken("a key stands for one payload", repr(case))
        if self.known(case, now) is not None:
            self.attached += case.rows
            self._ledger.seen["replayed"] += 1
            return
        work = self._running.get(case.name)
        if work is None:
            case.work = self._running[case.name] = Work(case.name, case.digest, case)
            return
        self.attached += case.rows
        self._ledger.seen["attached"] += 1
        self._ledger.follow(case)
        case.work = work
        work.followers[case.request_id] = case
        runner = work.runner
        if runner.state == SETTLED and not is_out(runner):
            self._hand_over(work)
        elif runner.state in (QUEUED, WAITING) and case.priority < runner.priority:
            self._ledger.seen["hurried"] += 1
            self._ledger.hurry(runner, case.priority)

    def runner(self, case: Case) -> Case | None:
        """Return whose outcome a case that comes now would wait for, None if nobody's."""
        work = self._running.get(case.name) if case.key else None
        return work.runner if work is not None else None

    def outcome(self, case: Case, now: float) -> Outcome | None:
        """Return what a case that comes now is to be answered; None if nothing is known of its key."""
        known = self.known(case, now)
        return known.outcome if known is not None and known.digest == case.digest else None

    # --- as they run --------------------------------------------------------------------------------

    def ended(self, case: Case, reply: wire.Reply | None, now: float) -> None:
        """The attempt of a case that was settled before has come to its end, None = it never began."""
        work = case.work
        if work is None or work.runner is not case:
            return
        if reply is None or _is_own(reply):
            self._hand_over(work)
        else:
            self._end(work, reply, now)

    def settled(self, case: Case, reply: wire.Reply, now: float, *, was_shed: bool) -> None:
        """A case has its outcome. Called when the ledger has it. was_shed: for its age, which is its own."""
        work = case.work
        if work is None or self._running.get(work.name) != work:
            return
        if case is not work.runner:
            del work.followers[case.request_id]
            if work.runner.state == SETTLED and not work.followers:
                if is_out(work.runner):
                    self._step.must_tell.append(work.runner)
                else:
                    del self._running[work.name]
        elif not (_is_own(reply) or was_shed):
            self._end(work, reply, now)
        elif not is_out(case):
            self._hand_over(work)

    def bereaved(self, case: Case) -> Case | None:
        """The attempt of a case that was settled before was lost as it ran: return whose it is to be, if anybody's.

        Who has most time left is to have the resend.
        """
        work = case.work
        if work is None or work.runner is not case or not work.followers:
            return None
        heir: Case = max(
            work.followers.values(), key=lambda other: math.inf if other.deadline is None else other.deadline
        )
        del work.followers[heir.request_id]
        work.runner = heir
        self._ledger.seen["bereaved"] += 1
        return heir

    def audit(self, tables: Any) -> None:
        """Compare what the fleet counts and keeps with this."""
        if tables.attached != self.attached:
            broken("counters add up", f"{tables.attached} attached instead of {self.attached}")
        if len(tables.keys.running) != len(self._running):
            broken("keys run while somebody waits", f"{len(tables.keys.running)} instead of {len(self._running)}")
        for name, keyed in tables.keys.running.items():
            runner = self._ledger.cases[keyed.runner.request_id]
            if runner.state == SETTLED and not is_out(runner) and not keyed.followers:
                broken("keys run while somebody waits", f"{name.key} of {runner}")

    def _hand_over(self, work: Work) -> None:
        """The oldest follower that has any time left is to run, first in its lane; without followers it is over."""
        if not work.followers:
            del self._running[work.name]
            return
        ledger = self._ledger
        latest = ledger.now - WIDTH_S
        in_time = [case for case in work.followers.values() if case.deadline is None or case.deadline > latest]
        if not in_time:
            return  # they are about to be told
        ledger.seen["handed over"] += 1
        # Beside what a dead worker gives back it has the place of the one before it.
        of_the_dead = type(self._step.event) is WorkerExited
        place = work.runner.epoch if of_the_dead else -ledger.next_number()
        case = work.runner = in_time[0]
        del work.followers[case.request_id]
        ledger.take_up(case, (-self._step.number, place))
        case.astray = self._suspects.suspects(case.fingerprint, ledger.now)
        self._circuits.accepted(case, ledger.now)

    def _end(self, work: Work, reply: wire.Reply, now: float) -> None:
        """All followers are to have the outcome, and it is remembered if asking again would end the same."""
        del self._running[work.name]
        outcome = reply.status, reply.payload, work.runner.elsewhere
        if _is_final(reply):
            self._known[work.name] = Known(work.digest, outcome, now)
        for case in work.followers.values():
            case.due = outcome
            self._step.must_settle.append(case)


def is_out(case: Case) -> bool:
    """Whether a worker has an attempt of a case, as far as it has said."""
    return case.desk is not None and case.epoch in case.desk.attempts


def _is_own(reply: wire.Reply) -> bool:
    return reply.status == wire.ERROR and decode_error(reply.payload or b"").code in _OWN


def _is_final(reply: wire.Reply) -> bool:
    if reply.status != wire.ERROR:
        return True
    error = decode_error(reply.payload or b"")
    return not error.retryable and error.code not in _OWN and error.code != "POISON_REQUEST"
