"""A random walk over everything that can happen to a fleet. `Sim` checks the books after every event."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError, encode_error
from pools.config import RestartConfig
from pools.core.entries import SLOT_WORDS
from pools.core.events import (
    ClientGone,
    Drain,
    DrainWorker,
    Exited,
    MemoryRead,
    Resize,
    Restart,
    Signalled,
)  # fmt: skip
from tests.support.books import check_books
from tests.support.fleet import Sim, SimWorker, deployed, pool, undeployed

POOLS = ("general", "neural")
INDEX = st.integers(0, 1 << 16)
KEYS = st.sampled_from(["", "", "", "", "k"])
INTENSITY: dict[str, Any] = {"max_restarts": 3, "window_s": 10.0, "backoff_s": (0.1, 2.0)}


class FleetModel(RuleBasedStateMachine):
    """Workers are real enough: they mark their page before they run, answer recalls truthfully, and die."""

    @initialize(
        slots=st.integers(1, 3),
        prefetch=st.sampled_from([None, 0, 1, 3]),
        grace_s=st.sampled_from([0.5, 5.0]),
        kind=st.sampled_from(["permanent", "permanent", "transient", "temporary"]),
        max_requests=st.sampled_from([0, 2]),
        max_size=st.sampled_from([None, 4]),
    )
    def begin(
        self, slots: int, prefetch: int | None, grace_s: float,
        kind: Literal["permanent", "transient", "temporary"], max_requests: int, max_size: int | None,
    ) -> None:  # fmt: skip
        restart = RestartConfig(type=kind, **INTENSITY)
        common: dict[str, Any] = {
            "grace_s": grace_s, "restart": restart, "max_queue": 6, "max_requests": max_requests,
        }  # fmt: skip
        self.sim = Sim(
            pool("general", size=2, max_size=max_size, slots=slots, prefetch=prefetch, **common),
            pool("neural", size=1, slots=1, prefetch=prefetch, default_deadline_s=3.0, **common),
            client_rows=14,
        )
        self.clients = [self.sim.client, self.sim.connect(2)]
        self.submitted: dict[bytes, list[int]] = {peer: [] for peer in self.clients}
        self.next_client_no = 3
        self.draining = False

    # --- clients -------------------------------------------------------------------------------------

    @rule(
        who=INDEX,
        operation=st.sampled_from(["fast", "slow", "qa"]),
        where=st.sampled_from(["", *POOLS, "none"]),
        rows=st.sampled_from([1, 1, 1, 2, 5]),
        deadline_ms=st.sampled_from([None, None, 50.0, 700.0, 8000.0]),
        key=KEYS,
    )
    def submit(self, who: int, operation: str, where: str, rows: int, deadline_ms: float | None, key: str) -> None:
        if self.clients:
            peer = self.clients[who % len(self.clients)]
            request_id = self.sim.submit(
                operation, peer=peer, pool=where, rows=rows, deadline_ms=deadline_ms, idempotency_key=key
            )
            self.submitted[peer].append(request_id)
            assert (request_id in self.sim.tables.requests) != (request_id in self.sim.replies)

    @rule(who=INDEX, which=INDEX, force=st.booleans())
    def cancel(self, who: int, which: int, force: bool) -> None:
        if self.clients:
            peer = self.clients[who % len(self.clients)]
            ids = self.submitted[peer][-10:]
            if ids:
                self.sim.cancel(ids[which % len(ids)], force=force, peer=peer)

    @precondition(lambda self: len(self.clients) > 1)
    @rule(who=INDEX, politely=st.booleans())
    def leave(self, who: int, politely: bool) -> None:
        peer = self.clients.pop(who % len(self.clients))
        self.sim.handle(wire.Bye() if politely else ClientGone(), peer)

    @rule()
    def connect(self) -> None:
        peer = self.sim.connect(self.next_client_no)
        self.next_client_no += 1
        self.clients.append(peer)
        self.submitted[peer] = []

    # --- workers ----------------------------------------------------------------------------------------

    def _holding(self) -> list[SimWorker]:
        """Return the workers that may still say something of an attempt: a dead one's words may be on their way."""
        return [one for name, one in self.sim.processes.items() if one.attempts and name in self.sim.tables.workers]

    def _pick(self, which: int) -> tuple[SimWorker, wire.Request] | None:
        all_attempts = [(worker, attempt) for worker in self._holding() for attempt in worker.attempts.values()]
        return all_attempts[which % len(all_attempts)] if all_attempts else None

    @staticmethod
    def _started(worker: SimWorker, attempt: wire.Request) -> bool:
        return worker.page[attempt.epoch % SLOT_WORDS] >= attempt.epoch

    def _start(self, worker: SimWorker, attempt: wire.Request) -> None:
        word = attempt.epoch % SLOT_WORDS
        worker.page[word] = max(worker.page[word], attempt.epoch)
        self.sim.executed.add(attempt.request_id)

    @rule(which=INDEX)
    def start(self, which: int) -> None:
        picked = self._pick(which)
        if picked is not None and not picked[0].dead:
            self._start(*picked)

    @rule(
        which=INDEX,
        how=st.sampled_from(["ok", "ok", "ok", "failed", "cancelled"]),
        run_ms=st.sampled_from([0.2, 6.0, 80.0]),
    )
    def reply(self, which: int, how: str, run_ms: float) -> None:
        picked = self._pick(which)
        if picked is None or (picked[0].dead and not self._started(*picked)):
            return  # the dead start nothing
        worker, attempt = picked
        self._start(worker, attempt)
        del worker.attempts[attempt.epoch]
        fields: dict[str, Any] = {"run_ms": run_ms}
        if how != "ok":
            code = "CANCELLED" if how == "cancelled" else "REMOTE_ERROR"
            fields |= {"status": wire.ERROR, "payload": encode_error(BridgeError(code, how))}
        message = wire.Reply(request_id=attempt.request_id, epoch=attempt.epoch, **fields)
        self.sim.say(worker.worker_id, message)
        if which % 7 == 0:
            fenced = self.sim.tables.fenced
            self.sim.say(worker.worker_id, message)  # said twice
            assert self.sim.tables.fenced == fenced + 1

    @rule(which=INDEX, on=st.booleans())
    def pause(self, which: int, on: bool) -> None:
        """An attempt lends its slot out, or has it back, also with its worker's last breath."""
        picked = self._pick(which)
        if picked is None or (picked[0].dead and not self._started(*picked)):
            return
        worker, attempt = picked
        self._start(worker, attempt)
        kind = wire.Pause if on else wire.Resume
        self.sim.resumed.add(worker.worker_id)
        self.sim.say(worker.worker_id, kind(request_id=attempt.request_id, epoch=attempt.epoch))

    @rule(which=INDEX, where=st.sampled_from(["", "", "neural"]), rows=st.sampled_from([1, 1, 3]), key=KEYS)
    def nest(self, which: int, where: str, rows: int, key: str) -> None:
        """A program asks for something itself; some that have been told to stop try to."""
        picked = self._pick(which)
        if picked is None or picked[0].dead:
            return
        worker, attempt = picked
        self._start(worker, attempt)
        peer = self.sim.inside(worker.worker_id)
        request_id = self.sim.submit(
            "fast", peer=peer, pool=where, rows=rows, idempotency_key=key, parent_request_id=attempt.request_id
        )
        self.submitted.setdefault(peer, []).append(request_id)
        assert (request_id in self.sim.tables.requests) != (request_id in self.sim.replies)

    @rule(which=INDEX, answered=st.booleans())
    def call_tool(self, which: int, answered: bool) -> None:
        picked = self._pick(which)
        if picked is None or not self._started(*picked):
            return
        worker, attempt = picked
        entry = self.sim.tables.requests.get(attempt.request_id)
        asked = wire.ToolCall(request_id=attempt.request_id, epoch=attempt.epoch, number=which)
        self.sim.say(worker.worker_id, asked)
        if entry is not None and answered:
            reply = wire.ToolReply(request_id=attempt.request_id, epoch=attempt.epoch, number=which)
            self.sim.handle(reply, entry.client.peer)

    @rule(which=INDEX)
    def answer_recall(self, which: int) -> None:
        pending = [(worker, recall) for worker in self._holding() for recall in worker.recalls]
        if pending:
            self._answer_recall(*pending[which % len(pending)])

    def _answer_recall(self, worker: SimWorker, recall: wire.Recall) -> None:
        worker.recalls.remove(recall)
        attempt = worker.attempts.get(recall.epoch)
        answer: wire.Message = wire.Started(request_id=recall.request_id, epoch=recall.epoch)
        if attempt is not None and not self._started(worker, attempt):
            del worker.attempts[recall.epoch]
            answer = wire.Recalled(request_id=recall.request_id, epoch=recall.epoch)
        self.sim.say(worker.worker_id, answer)

    @rule(which=INDEX)
    def live(self, which: int) -> None:
        """A worker that is on its way up takes its next step, also with its last breath."""
        workers = [worker for worker in self.sim.tables.workers.values() if worker.state in ("launching", "booting")]
        if workers:
            worker = workers[which % len(workers)]
            if worker.state == "launching":
                self.sim.hello(worker.worker_id)
            else:
                self.sim.say(worker.worker_id, wire.Ready(slots=worker.pool.slots))

    @rule(which=INDEX)
    def die(self, which: int) -> None:
        alive = [name for name in self.sim.tables.workers if not self.sim.process(name).dead]
        if alive:
            name = alive[which % len(alive)]
            inside = self.sim.insides.get(name)
            self.sim.died(name)
            if inside is not None and which % 2:
                self.sim.handle(ClientGone(), inside)

    @rule(which=INDEX, code=st.sampled_from([0, 1]))
    def bury(self, which: int, code: int) -> None:
        dead = [name for name in self.sim.tables.workers if self.sim.process(name).dead]
        if dead:
            self.sim.exited(dead[which % len(dead)], Exited(code) if which % 2 else Signalled(9))

    @rule(which=INDEX)
    def beat(self, which: int) -> None:
        workers = list(self.sim.processes)
        self.sim.say(workers[which % len(workers)], wire.Heartbeat(rss_bytes=which))

    # --- everything else -------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.2, 1.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.sim.run_until(self.sim.now + seconds)

    @rule(where=st.sampled_from(POOLS), version=st.integers(1, 3), is_there=st.booleans())
    def programs(self, where: str, version: int, is_there: bool) -> None:
        self.sim.handle(deployed("qa", version, pool=where) if is_there else undeployed("qa"))

    @rule(where=st.sampled_from(POOLS), size=st.integers(0, 3), max_size=st.sampled_from([None, None, 2, 5]))
    def resize(self, where: str, size: int, max_size: int | None) -> None:
        self._ask(Resize(where, size, max_size))

    @rule(used=st.sampled_from([0.5, 0.87, 0.95]))
    def read_memory(self, used: float) -> None:
        self.sim.handle(MemoryRead(used))

    @rule(which=INDEX)
    def drain_worker(self, which: int) -> None:
        names = list(self.sim.processes)
        self._ask(DrainWorker(names[which % len(names)]))

    @rule(which=INDEX, grace_s=st.sampled_from([None, 0.0, 1.0]))
    def restart(self, which: int, grace_s: float | None) -> None:
        names = [*self.sim.processes, *POOLS]
        self._ask(Restart(names[which % len(names)], grace_s))

    def _ask(self, event: Resize | DrainWorker | Restart) -> None:
        with contextlib.suppress(BridgeError):
            self.sim.handle(event)
        check_books(self.sim)

    @rule()
    def execute(self) -> None:
        """The launcher kills whom it was told to."""
        self.sim.bury_killed()

    @precondition(lambda self: sum(map(len, self.submitted.values())) > 12)
    @rule(budget_s=st.sampled_from([0.0, 0.5, 20.0]))
    def drain(self, budget_s: float) -> None:
        self.draining = True
        self.sim.handle(Drain(budget_s))

    # --- the end ------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "sim"):
            return
        for _ in range(200):
            if not self._unfinished():
                break
            self._make_progress()
        assert not self._unfinished(), "work is stuck"
        tables = self.sim.tables
        assert not tables.requests
        assert not tables.children
        assert not tables.tool_calls
        assert len(tables.deadlines) == 0
        assert all(not worker.attempts and worker.held == 0 for worker in tables.workers.values())
        assert all(not one.queue and one.over == one.lent == 0 for one in tables.pools.values())
        assert all(client.in_flight == 0 for client in tables.clients.values())
        for ids in self.submitted.values():
            assert set(ids) <= self.sim.replies.keys()  # each exactly once: Sim refuses a second
        if not self.draining:
            self._fill()
        self._end()

    def _fill(self) -> None:
        """Whatever happened: every place that is in service has a worker that is ready, and nobody is left over."""
        pools = self.sim.tables.pools.values()
        for _ in range(100):
            if all(len(one.ready) == len(one.wanted) == len(one.lives) for one in pools):
                break
            for worker_id in [name for name, worker in self.sim.tables.workers.items() if worker.told_to_stop]:
                self.sim.exited(worker_id, Exited(0))
            self._make_progress()
        for one in pools:
            assert sorted(worker.place for worker in one.ready) == [place.number for place in one.wanted]
            assert len(one.lives) == len(one.ready)
            assert one.succession is None
            assert not one.wishes

    def _unfinished(self) -> bool:
        return bool(self.sim.tables.requests) or any(worker.attempts for worker in self.sim.tables.workers.values())

    def _make_progress(self) -> None:
        """Bury the dead and the killed, boot the young, answer everything; then let time pass for restarts."""
        self.sim.bury_killed()
        for name in list(self.sim.tables.workers):
            if self.sim.process(name).dead:
                self.sim.exited(name)
            elif self.sim.entry(name).state == "launching":
                self.sim.hello(name)
            elif self.sim.entry(name).state == "booting":
                self.sim.say(name, wire.Ready(slots=self.sim.entry(name).pool.slots))
        for worker in self._holding():
            for recall in list(worker.recalls):
                self._answer_recall(worker, recall)
            for attempt in list(worker.attempts.values()):
                if attempt.epoch not in worker.attempts or worker.dead:
                    continue
                self._start(worker, attempt)
                del worker.attempts[attempt.epoch]
                self.sim.say(worker.worker_id, wire.Reply(request_id=attempt.request_id, epoch=attempt.epoch))
        self.sim.run_until(self.sim.now + 0.5)

    def _end(self) -> None:
        """Drain: every worker is told or killed, and nothing is left."""
        sim = self.sim
        sim.handle(Drain(0.0))
        sim.run_until(sim.now + 3.0)
        killed = {name for name, _ in sim.kills()}
        assert {name for name in sim.tables.workers if not sim.process(name).dead} <= killed
        for name in list(sim.tables.workers):
            sim.exited(name)
        assert sim.fleet.stopped
        assert not sim.tables.workers_by_peer
        launched = len(sim.launches())
        sim.run_until(sim.now + 60.0)
        assert len(sim.launches()) == launched
        assert sim.launches() == list(dict.fromkeys(sim.launches())), "an incarnation lives once"


TestFleetModel = FleetModel.TestCase
TestFleetModel.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
