"""A random walk of calls in sessions through everything that can happen to a fleet.

A worker of this walk keeps what a real one would, and believes nothing: whoever is told that the session is there must
have it, as it was left by the call before.
"""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.sessions import cut_tail, pack_change, unpack_snapshot
from pools.config import RestartConfig, SessionsConfig
from pools.core.events import ExpireSession, OpenSession
from pools.core.session import Session
from tests.support.fleet import Sim, SimWorker, pool
from tests.unit.core.test_fleet_model import INDEX, INTENSITY, POOLS, FleetModel

NAMES = st.sampled_from(["a", "a", "b", "c"])
# (worker, session, generation) -> seq, state, turns
Live = dict[tuple[str, str, int], tuple[int, bytes, list[bytes]]]


class SessionModel(FleetModel):
    """FleetModel, with calls in sessions among the others."""

    @initialize(
        slots=st.integers(1, 2),
        prefetch=st.sampled_from([None, 0, 1]),
        affinity=st.sampled_from(["hint", "strict_queue", "strict_fail_fast"]),
        on_loss=st.sampled_from(["restore", "fail"]),
    )
    def begin(self, slots: int, prefetch: int | None, affinity: str, on_loss: str) -> None:
        common: dict[str, Any] = {"grace_s": 0.5, "restart": RestartConfig(**INTENSITY), "max_queue": 6}
        self.sim = Sim(
            pool("general", size=2, slots=slots, prefetch=prefetch, **common),
            pool("neural", size=1, slots=1, prefetch=prefetch, default_deadline_s=3.0, **common),
            client_rows=14,
            sessions=SessionsConfig(ttl_s=20.0, max=3, affinity=affinity, on_loss=on_loss, history=4),
        )
        self.clients = [self.sim.client, self.sim.connect(2)]
        self.submitted: dict[bytes, list[int]] = {peer: [] for peer in self.clients}
        self.next_client_no = 3
        self.draining = False
        self.kept: Live = {}
        self.read = 0  # of what was sent to workers
        self.admitted: list[int] = []  # in sessions, in order
        self.begun: dict[int, int] = {}  # by session: the place in that order of the last one that was given out
        self.seqs: dict[int, int] = {}
        self.homes: dict[int, str] = {}
        self.known: dict[int, Session] = {}

    # --- what is asked -----------------------------------------------------------------------------

    @rule(
        who=INDEX, name=NAMES, where=st.sampled_from(["", "", *POOLS]), late=st.booleans(), again=st.booleans(),
        deadline_ms=st.sampled_from([None, None, 50.0, 3000.0]),
    )  # fmt: skip
    def call(self, who: int, name: str, where: str, late: bool, again: bool, deadline_ms: float | None) -> None:
        if not self.clients:
            return
        peer = self.clients[who % len(self.clients)]
        there = None
        if late:  # a handle of some session that was there once
            known = [each for each in self.known.values() if each.id == name]
            there = wire.InSession(known[who % len(known)].generation) if known else None
        fields: dict[str, Any] = {"flags": wire.FLAG_IDEMPOTENT if again else 0, "deadline_ms": deadline_ms}
        self._call(peer, session=name, in_session=there, pool=where, **fields)

    @rule(which=INDEX, name=NAMES)
    def nest_in_session(self, which: int, name: str) -> None:
        picked = self._pick(which)
        if picked is not None and not picked[0].dead:
            worker, attempt = picked
            self._start(worker, attempt)
            self._call(self.sim.inside(worker.worker_id), session=name, parent_request_id=attempt.request_id)

    def _call(self, peer: bytes, **fields: Any) -> None:
        before = len(self.sim.to_workers)
        request_id = self.sim.submit("qa", peer=peer, **fields)
        self.submitted.setdefault(peer, []).append(request_id)
        assert (request_id in self.sim.tables.requests) != (request_id in self.sim.replies)
        entry = self.sim.tables.requests.get(request_id)
        if entry is not None:
            assert entry.session is not None
            wanted = fields["in_session"].generation if fields.get("in_session") is not None else 0
            assert wanted in (0, entry.session.generation), "in a stranger's place"
            self.known[id(entry.session)] = entry.session
            self.admitted.append(request_id)
        assert self.read <= before

    @rule(name=NAMES, ttl_s=st.sampled_from([None, 0.5, 60.0]), on_loss=st.sampled_from([None, "restore", "fail"]))
    def open(self, name: str, ttl_s: float | None, on_loss: str | None) -> None:
        with contextlib.suppress(BridgeError):
            self.sim.handle(OpenSession("default", name, ttl_s, None, on_loss))

    @rule(name=NAMES)
    def end(self, name: str) -> None:
        with contextlib.suppress(BridgeError):
            self.sim.handle(ExpireSession("default", name))

    # --- what workers answer --------------------------------------------------------------------------

    @rule(
        which=INDEX,
        how=st.sampled_from(["ok", "ok", "ok", "failed", "cancelled", "nothing"]),
        run_ms=st.sampled_from([0.2, 6.0, 80.0]),
    )
    def reply(self, which: int, how: str, run_ms: float) -> None:
        self._follow()
        picked = self._pick(which)
        if picked is not None and not (picked[0].dead and not self._started(*picked)):
            self._answer(*picked, how, run_ms)

    def _answer(self, worker: SimWorker, attempt: wire.Request, how: str = "ok", run_ms: float = 1.0) -> None:
        self._start(worker, attempt)
        del worker.attempts[attempt.epoch]
        reply = wire.Reply(request_id=attempt.request_id, epoch=attempt.epoch, run_ms=run_ms)
        if how in ("failed", "cancelled"):
            code = "CANCELLED" if how == "cancelled" else "REMOTE_ERROR"
            reply = wire.Reply(
                request_id=attempt.request_id, epoch=attempt.epoch, run_ms=run_ms, status=wire.ERROR,
                payload=encode_error(BridgeError(code, how)),
            )  # fmt: skip
        if not attempt.session:
            self.sim.say(worker.worker_id, reply)
            return
        session = self._session_of(worker, attempt)
        seq, state, turns = self._enter(worker.worker_id, attempt)
        if session is not None and not session.ended:
            assert (seq, state, turns) == (session.seq, session.state, [turn for _, turn in session.turns])
        if how == "nothing":  # it lost it
            self.kept.pop(self._name(worker.worker_id, attempt), None)
            self.sim.say(worker.worker_id, reply)
            return
        new = None if how != "ok" else b"%s.%d" % (state[-20:], attempt.request_id & 0xFFFF)
        turn = b"%d" % (attempt.request_id & 0xFFFF)
        turns = [*turns, turn][-4:]
        self.kept[self._name(worker.worker_id, attempt)] = seq + 1, state if new is None else new, turns
        tail = pack_change(new, turn)
        change = wire.SessionChange(seq + 1, len(tail))
        whole = wire.Reply(
            request_id=reply.request_id, epoch=reply.epoch, run_ms=run_ms, status=reply.status,
            payload=(reply.payload or b"") + tail, session=change,
        )  # fmt: skip
        self.sim.say(worker.worker_id, whole)
        if session is not None and not session.ended:
            assert session.seq == seq + 1
            assert session.state == (state if new is None else new)

    def _session_of(self, worker: SimWorker, attempt: wire.Request) -> Session | None:
        known = self.sim.tables.workers.get(worker.worker_id)
        entry = known.attempts.get(attempt.epoch) if known is not None else None
        return entry.session if entry is not None else None

    @staticmethod
    def _name(worker_id: str, attempt: wire.Request) -> tuple[str, str, int]:
        assert attempt.in_session is not None
        return worker_id, attempt.session, attempt.in_session.generation

    def _enter(self, worker_id: str, attempt: wire.Request) -> tuple[int, bytes, list[bytes]]:
        there = attempt.in_session
        assert there is not None
        if there.snapshot:
            _, tail = cut_tail(attempt.payload or b"", there.tail)
            return (there.seq, *unpack_snapshot(tail))
        found = self.kept[self._name(worker_id, attempt)]  # whoever is told that it is there has it
        assert found[0] == there.seq
        return found

    # --- what must hold -----------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Read what was sent to workers since: who is given a turn, and what is forgotten."""
        names = {worker.peer: worker.worker_id for worker in self.sim.processes.values()}
        fresh = self.sim.to_workers[self.read :]
        self.read += len(fresh)
        for peer, message in fresh:
            if isinstance(message, wire.SessionEnd):
                self.kept.pop((names[peer], message.session, message.generation), None)
            elif isinstance(message, wire.Request) and message.session:
                self._given(names[peer], message)

    def _given(self, worker_id: str, attempt: wire.Request) -> None:
        assert attempt.in_session is not None
        generation = attempt.in_session.generation
        place = self.admitted.index(attempt.request_id)
        assert place >= self.begun.get(generation, -1), "out of its turn"
        self.begun[generation] = place
        assert attempt.in_session.seq >= self.seqs.get(generation, 0), "a change is forgotten"
        self.seqs[generation] = attempt.in_session.seq

    def _check_sessions(self) -> None:
        tables = self.sim.tables
        out: dict[int, int] = {}
        for worker in tables.workers.values():
            for entry in worker.attempts.values():
                if entry.session is not None:
                    out[id(entry.session)] = out.get(id(entry.session), 0) + 1
                    assert entry.session.holder is entry
        assert all(count == 1 for count in out.values()), "two at once in one session"
        assert len(tables.sessions) <= 3
        assert tables.sessions.bytes == sum(each.size for each in tables.sessions.by_key.values())
        assert not tables.stirred
        assert not tables.leavers
        for session in tables.sessions.by_key.values():
            assert not session.ended
            assert session.holder is not None or not session.line, "nobody has the turn"

    @invariant()
    def sessions_are_sound(self) -> None:
        if hasattr(self, "sim"):
            self._follow()
            self._check_sessions()

    # --- the end --------------------------------------------------------------------------------------------

    def _make_progress(self) -> None:
        self._follow()
        self.sim.bury_killed()
        for worker in self._holding():
            for recall in list(worker.recalls):
                self._answer_recall(worker, recall)
            for attempt in list(worker.attempts.values()):
                self._follow()
                if attempt.epoch in worker.attempts and not worker.dead:
                    self._answer(worker, attempt)
        super()._make_progress()

    def _end(self) -> None:
        self._follow()
        self._check_sessions()
        assert not any(session.busy for session in self.sim.tables.sessions.by_key.values())
        self.sim.run_until(self.sim.now + 62.0)
        assert not self.sim.tables.sessions.by_key
        assert not self.sim.tables.sessions.of_principal
        assert self.sim.tables.sessions.bytes == 0
        assert all(not one.following and not one.lined for one in self.sim.tables.pools.values())
        super()._end()


TestSessionModel = SessionModel.TestCase
TestSessionModel.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
