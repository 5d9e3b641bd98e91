"""What must hold of sessions: one call at a time in each, in order, and each begins from what the last one left.

What a session is follows from what was said of it: the options that it was opened with, the answers that the fleet has
heard, where its calls were sent. A worker that ended, or is about to, has nothing of it any more.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from bridge.protocol import messages as wire
from bridge.protocol.errors import (
    INVALID_REQUEST,
    NOT_FOUND,
    OVERLOADED,
    SESSION_LOST,
    UNAVAILABLE,
    WORKER_BUSY,
    BridgeError,
)
from bridge.protocol.sessions import cut_tail, unpack_change, unpack_snapshot
from pools.config import SessionsConfig
from pools.core.events import ExpireSession, OpenSession, SessionRestored, SessionsSynced
from pools.core.states import READY
from tests.sim.circuits import Circuits
from tests.sim.keys import is_out
from tests.sim.kinship import Kinship
from tests.sim.ledger import FOLLOWING, OUT, SETTLED, Case, Desk, Ledger
from tests.sim.step import Step, broken
from tests.sim.talk import Name, Options, Talk

_FAIL_FAST: Final = "strict_fail_fast"
# An operation that puts values into a session's state without being a turn in it.
SET: Final = "session.set"


class Sessions:
    """The sessions of one history. tables: the fleet's, read for who serves and for what it has of each session.

    are_on: there may be any. used: there was one.
    """

    def __init__(self, ledger: Ledger, step: Step, circuits: Circuits, kinship: Kinship, tables: Any) -> None:
        self._ledger = ledger
        self._step = step
        self._circuits = circuits
        self._kinship = kinship
        self._tables = tables
        self._config = ledger.config.sessions
        self.talks: dict[Name, Talk] = {}
        self._active: dict[Talk, None] = {}  # those that are busy, ended ones too
        self._generation = 0
        self._error: BridgeError | None = None  # with which the event was refused
        self.synced = not self._config.durable
        self.verdict = ""  # the code with which what has arrived must be refused, "" if with none
        self._crowded = False  # no further session may be begun
        self.are_on = self._config != SessionsConfig()
        self.used = False

    # --- as they come -------------------------------------------------------------------------------

    def arrived(self, case: Case, message: wire.Request, now: float) -> None:
        """A request for a session has arrived: judge it by that."""
        case.session = message.session
        if message.operation == SET and not message.pool:
            self._place(case, now)
        self.verdict = self._judge(case, message, now)

    def _place(self, case: Case, now: float) -> None:
        """What is the session's own runs where that is."""
        talk = self._find((case.principal, case.session), now)
        session = self._tables.sessions.by_key.get(talk.key) if talk is not None else None
        known = (session.at, session.home) if session is not None else ()
        worker = next((one for one in known if one is not None and _serves(one)), None)
        if worker is None or talk is None:
            return
        if talk.at is not None and self._serves(talk.at) and talk.at.pool != worker.pool.name:
            broken("what is the session's own runs where it is", f"{case}: {worker.worker_id}")
        case.pool = worker.pool.name
        self._ledger.set_deadline(case)

    def _judge(self, case: Case, message: wire.Request, now: float) -> str:
        there = message.in_session
        if (there is not None and (there.seq or not message.session)) or case.rows > 1 or case.key:
            return INVALID_REQUEST
        if "\0" in message.session:
            return INVALID_REQUEST
        if not self.synced:
            return UNAVAILABLE
        talk = self._find((case.principal, message.session), now)
        wanted = there.generation if there is not None else 0
        if talk is None:
            self._crowded = self._is_crowded(case.principal, now, sure=True)
            return SESSION_LOST if wanted else ""
        if wanted not in (0, talk.generation) or self.is_lost(talk):
            return SESSION_LOST
        if talk.busy and case.parent and self._waits_for_itself(case, talk):
            return INVALID_REQUEST
        return WORKER_BUSY if talk.options[1] == _FAIL_FAST and self._is_full(case, talk) else ""

    def _waits_for_itself(self, case: Case, talk: Talk) -> bool:
        runner = talk.holder or next(iter(talk.line.values()))
        return self._kinship.waits_for_itself(case, runner)

    def _is_full(self, case: Case, talk: Talk) -> bool:
        home = talk.home
        if talk.busy or home is None or not self._serves(home):
            return talk.busy
        return home.pool == case.pool and home.held >= self._ledger.pools[home.pool].slots

    def _find(self, name: Name, now: float) -> Talk | None:
        talk = self.talks.get(name)
        return None if talk is None or talk.has_expired(now) else talk

    def _is_crowded(self, principal: str, now: float, *, sure: bool) -> bool:
        """Whether there are as many sessions as there may be. sure: without those that may have been forgotten."""
        limit = self._config.max
        alive = [talk for talk in self.talks.values() if not (sure and talk.has_expired(now))]
        if len(alive) >= limit:
            return True
        theirs = sum(1 for talk in alive if talk.name[0] == principal)
        return not sure and theirs >= max(1, limit // 2)

    def may_be_refused(self, case: Case, code: str, now: float) -> bool:
        """Whether a case may be refused with this code for the sake of its session."""
        if not case.session and not self.verdict:
            return False
        if code == OVERLOADED:
            name = case.principal, case.session
            return self._find(name, now) is None and self._is_crowded(case.principal, now, sure=False)
        return code == self.verdict

    def is_in_line(self, case: Case) -> bool:
        """Whether a case waits for its turn, so that no queue is asked for room."""
        talk = self.talks.get((case.principal, case.session)) if case.session else None
        return talk is not None and talk.busy

    def accepted(self, case: Case, now: float) -> None:
        """A case was accepted into its session: it stands in line."""
        if self.verdict:
            broken("sessions take what they may", f"{case}, to be refused as {self.verdict}")
        name = case.principal, case.session
        talk = self._find(name, now)
        if talk is None:
            if self._crowded:
                broken("sessions are bounded", f"{case} begins one more than {self._config.max}")
            config = self._config
            talk = self._begin(name, (config.ttl_s, config.affinity, config.on_loss), now)
            self._ledger.seen["session begun by a call"] += 1
        else:
            self._ledger.seen["waits for its turn"] += talk.busy
        case.talk = talk
        talk.line[case.request_id] = case
        self._active[talk] = None
        self._ledger.follow(case)

    def _begin(self, name: Name, options: Options, now: float) -> Talk:
        self.used = True
        talk = self.talks[name] = Talk(name, options, now)
        return talk

    # --- turns --------------------------------------------------------------------------------------

    def take_turn(self, case: Case, now: float) -> None:
        """A case that waits in line is about to be dispatched: it must have the turn."""
        talk: Talk = case.talk
        if talk.holder is not None and not _is_over(talk.holder):
            broken("one call at a time in a session", f"{case} beside {talk.holder} in {talk}")
        first = next(iter(talk.line.values()))
        if first is not case:
            broken("turns by admission", f"{case} before {first} in {talk}")
        del talk.line[case.request_id]
        talk.holder = case
        self._ledger.take_up(case, (0, self._ledger.next_number()))
        case.astray = True
        self._circuits.accepted(case, now)

    def settled(self, case: Case) -> None:
        """A case of a session has its outcome."""
        case.talk.line.pop(case.request_id, None)

    def dispatched(self, case: Case, desk: Desk, message: wire.Request) -> None:
        """Check an attempt in a session, which is about to be sent."""
        talk: Talk = case.talk
        there = message.in_session
        if talk.holder is not case or talk.ended or talk.lost:
            broken("a session that is lost runs no more", f"{case} of {talk}, to {desk.worker_id}")
        if there is None or message.session != talk.key or (there.generation != talk.generation and talk.generation):
            broken("calls go to their own session", f"{case} of {talk}: {message.session!r} {there}")
        if there.seq != talk.seq:
            broken("calls begin from the last answer", f"{case} of {talk}: change {there.seq}, not {talk.seq}")
        if there.snapshot:
            state, _ = unpack_snapshot(cut_tail(message.payload or b"", there.tail)[1])
            if state != talk.state:
                broken("calls begin from the last answer", f"{case} of {talk}: {state!r}, not {talk.state!r}")
        elif talk.at is not desk:
            broken("who has no copy is sent one", f"{case} of {talk} to {desk.worker_id}")
        home, is_strict = talk.home, talk.options[1] != "hint"
        serves = home is not None and self._serves(home)
        if is_strict and serves and home is not desk and home is not None and home.pool == case.pool:
            broken("strict sessions stay where they are", f"{case} of {talk} to {desk.worker_id}, not {home.worker_id}")
        if not (is_strict and serves):
            talk.home = desk
        seen = self._ledger.seen
        seen["session sent along"] += there.snapshot and bool(talk.seq)
        seen["session there"] += not there.snapshot
        seen["session restored"] += talk.at is not None and not self._serves(talk.at)
        if talk.at is not desk:
            seen["session moved"] += talk.at is not None and self._serves(talk.at)
            talk.at = None
        case.base = (talk.seq, talk.state)

    def begun(self, request: wire.Request, desk: Desk, seq: int, state: bytes) -> None:
        """A program begins in its session: check what it finds there."""
        case = self._ledger.cases[request.request_id]
        if (seq, state) != case.base:
            broken("calls begin from the last answer", f"{case} at {desk.worker_id}: {seq}, {state!r}, not {case.base}")

    def heard(self, case: Case, desk: Desk, reply: wire.Reply) -> wire.Reply:
        """An attempt in a session was answered: what it changed holds from now on, whether anybody waits for it.

        Return the answer as its caller is to have it.
        """
        talk: Talk = case.talk
        change = reply.session
        if change is None:
            talk.at = None
            return reply
        payload, tail = cut_tail(reply.payload or b"", change.tail)
        state = unpack_change(tail)[0] if tail else None
        if not talk.ended and change.seq > talk.seq:
            talk.seq = change.seq
            talk.kept = True
            if state is not None and reply.status != wire.ERROR:
                talk.state = state
            self._ledger.seen["session changed" if state is not None else "session turn alone"] += 1
            self._ledger.seen["session changed too late"] += case.state == SETTLED
        talk.at = desk
        return replace(reply, payload=payload, session=None)

    def died(self, case: Case, desk: Desk) -> None:
        """A worker is buried with a call that ran in a session: that was there, whatever was said of it."""
        case.talk.at = desk

    # --- beginnings and ends ------------------------------------------------------------------------

    def refused(self, error: BridgeError) -> None:
        """What was asked of a session is refused."""
        self._error = error

    def restored(self, event: SessionRestored, peer: bytes, now: float) -> None:
        """A session was kept by a run before."""
        image = event.image
        talk = self._begin((image.principal, image.id), (image.ttl_s, image.affinity, image.on_loss), now)
        talk.used_at = now - image.idle_s
        talk.seq, talk.state, talk.kept = image.seq, image.state or b"", True
        talk.lost = image.on_loss == "fail"

    def after(self, event: Any, now: float) -> None:
        """Pass turns on, as the fleet must have; compare what it has of each session with this."""
        kind = type(event)
        if kind is SessionsSynced:
            self.synced = self.synced or not event.problem
        error, self._error = self._error, None
        self.verdict, self._crowded = "", False
        if not self.used and kind is not OpenSession:
            return
        if kind is OpenSession:
            self._opened(event, error, now)
        elif kind is ExpireSession:
            self._expired(event, error, now)
        for talk in list(self._active):
            self._pass_on(talk, now)
        self._compare(now)
        for talk in self.talks.values():
            talk.lost = self.is_lost(talk)
        for name, pool in self._tables.pools.items():
            lined = self._ledger.lined[name] = sum(worker.lined for worker in pool.lined.values())
            self._ledger.seen["waits for its worker"] += bool(lined)
            if pool.following != self._ledger.following[name] + lined:
                broken("turns are passed on", f"{name}: {pool.following} rows wait beside the queue, {lined} in lines")

    def _pass_on(self, talk: Talk, now: float) -> None:
        if talk.holder is not None and not _is_over(talk.holder):
            return
        talk.holder = None
        talk.used_at = now
        if talk.line:
            if talk.ended:
                broken("what waits in an ended session is lost", repr(next(iter(talk.line.values()))))
            self.take_turn(next(iter(talk.line.values())), now)
            return
        del self._active[talk]
        if not talk.kept and not talk.ended:
            self._ledger.seen["session of nothing"] += 1
            self._end(talk)

    def _opened(self, event: OpenSession, error: BridgeError | None, now: float) -> None:
        name = event.principal, event.id
        talk = self._find(name, now)
        is_lost = talk is not None and self.is_lost(talk)
        is_new = talk is None or is_lost
        code = INVALID_REQUEST if event.affinity == "never" else "" if self.synced else UNAVAILABLE
        if error is not None:
            if error.code != code and not (
                error.code == OVERLOADED and is_new and self._is_crowded(name[0], now, sure=False)
            ):
                broken("sessions are opened", f"{event}: {error}")
            if is_lost and talk is not None and not code:
                self._end(talk)
            return
        if code:
            broken("sessions are opened for a reason", f"{event}, to be refused as {code}")
        config = self._config
        before: Options = (config.ttl_s, config.affinity, config.on_loss)
        if talk is not None and not is_lost:
            before = talk.options
        options = (
            before[0] if event.ttl_s is None else event.ttl_s, event.affinity or before[1], event.on_loss or before[2]
        )  # fmt: skip
        if is_lost and talk is not None:
            self._ledger.seen["lost session opened anew"] += 1
            self._end(talk)
        if is_new or talk is None:
            if talk is not None and not is_lost:
                self._end(talk)
            if self._is_crowded(name[0], now, sure=True):
                broken("sessions are bounded", f"{event} begins one more than {config.max}")
            talk = self._begin(name, options, now)
        else:
            self._ledger.seen["session attached to"] += 1
            if talk.at is not None and not self._serves(talk.at):
                talk.at = None  # it was to go on elsewhere, whatever is said of it now
        talk.options, talk.kept, talk.used_at = options, True, now

    def _expired(self, event: ExpireSession, error: BridgeError | None, now: float) -> None:
        talk = self._find((event.principal, event.id), now)
        is_meant = talk is not None and event.generation in (0, talk.generation)
        if error is not None:
            code = SESSION_LOST if event.generation else NOT_FOUND
            if not self.synced and (event.principal, event.id) not in self.talks:
                code = UNAVAILABLE
            if is_meant or error.code != code:
                broken("sessions end when they are told to", f"{event}: {error}")
        elif not is_meant or talk is None:
            broken("sessions end when they are told to", f"{event}: there is none")
        else:
            self._ledger.seen["session ended, busy" if talk.busy else "session ended"] += 1
            self._end(talk)

    def _end(self, talk: Talk) -> None:
        talk.ended = True
        del self.talks[talk.name]
        waiting = [*talk.line.values(), *([talk.holder] if talk.holder is not None else ())]
        for case in waiting:
            if case.state not in (SETTLED, OUT):
                broken("what waits in an ended session is lost", f"{case} of {talk}")

    def is_lost(self, talk: Talk) -> bool:
        """Whether a session went with its worker."""
        at = talk.at
        return talk.lost or (at is not None and talk.options[2] == "fail" and not self._serves(at))

    def earns_lost(self, case: Case) -> str:
        """Return why a case should not have been told that its session is lost; the empty string if it should."""
        talk, event = case.talk, self._step.event
        if talk is None or case.state == OUT:
            return "a worker has it"
        is_ending = type(event) is ExpireSession and (event.principal, event.id) == talk.name
        return "" if is_ending or talk.ended or self.is_lost(talk) else f"{talk} is there"

    def _serves(self, desk: Desk) -> bool:
        worker = self._tables.workers.get(desk.worker_id)
        return worker is not None and _serves(worker)

    # --- what the fleet has of them -----------------------------------------------------------------

    def _compare(self, now: float) -> None:
        known = self._tables.sessions.by_key
        for talk in list(self.talks.values()):
            session = known.get(talk.key)
            if session is None:
                if not talk.has_expired(now):
                    broken("sessions stay while they are used", f"{talk} is gone")
                self._ledger.seen["session expired"] += 1
                self._end(talk)
                continue
            if not talk.generation:
                if session.generation <= self._generation:
                    broken("generations grow", f"{session.generation} after {self._generation}")
                talk.generation = self._generation = session.generation
            mine = talk.generation, talk.seq, talk.state, talk.busy, talk.options
            theirs = session.generation, session.seq, session.state, session.busy, tuple(session.options)
            if mine != theirs:
                broken("sessions are as their last answer left them", f"{talk}: {theirs} instead of {mine}")
            if list(session.line) != list(talk.line):
                broken("turns by admission", f"{talk}: {list(session.line)} wait instead of {list(talk.line)}")
        if len(known) != len(self.talks):
            broken("sessions end", f"{sorted(known)}, not {[talk.key for talk in self.talks.values()]}")


def _serves(worker: Any) -> bool:
    return bool(worker.state == READY and not worker.died)


def _is_over(case: Case) -> bool:
    return case.state == SETTLED and not is_out(case)


def waits_in_line(case: Case) -> bool:
    """Whether a case waits for its turn in a session."""
    return case.state == FOLLOWING and case.talk is not None
