"""Programs that ask for more work while they run, in pools that are too small for it: everything comes to its end.

Nothing here has a deadline and nobody cancels: what waits for ever is found, for then nobody has anything left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import pytest

from bridge.protocol import messages as wire
from pools.core.entries import SLOT_WORDS
from tests.support.fleet import Sim, SimWorker, pool

HISTORIES = 60
CALLERS = 12
DEATHS = 2
STEPS_MAX = 20_000

Step = Callable[[], object]


class Program:
    """What one attempt does: asks for `children` others at once, waits for them with its slot lent, and answers.

    asked: their ids, None before. waits: its slot is lent out.
    """

    def __init__(self, attempt: wire.Request, children: int) -> None:
        self.attempt = attempt
        self.children = children
        self.asked: list[int] | None = None
        self.waits = False


class History:
    """One fleet, its callers and its workers; `random` decides whose turn it is."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        prefetch = random.choice([None, 0, 1, 3])
        common: dict[str, Any] = {
            "prefetch": prefetch,
            "max_queue": random.choice([0, 2, 6, 1000]),
            "heartbeat_limit_s": 1e6,
        }
        self.sim = Sim(
            pool("general", size=random.choice([1, 1, 2]), slots=random.choice([1, 1, 2]), **common),
            pool("neural", size=1, slots=random.choice([1, 2]), **common),
            poison_deaths=random.choice([0, 1, 2]),
        )
        self.calls: list[int] = []
        self.asked = 0
        self.deepest = 0
        self.deaths = 0
        self.running: dict[str, dict[int, Program]] = {}

    def play(self) -> None:
        """Take one step after the other until all that was asked for has ended."""
        for _ in range(STEPS_MAX):
            self.sim.now += 0.001
            steps = [step for worker in list(self.sim.processes.values()) for step in self._steps(worker)]
            if len(self.calls) < CALLERS:
                steps.append(self._call)
            if steps:
                self.random.choice(steps)()
            elif not self.sim.tables.requests:
                return
            else:
                before = self.sim.now
                self._wait()
                assert self.sim.now < before + 60.0
                assert self._can_go_on(), "what is left waits for itself"
        raise AssertionError("it never ends")

    def _can_go_on(self) -> bool:
        return not self.sim.tables.requests or any(
            True for one in self.sim.processes.values() for _ in self._steps(one)
        )

    def _wait(self) -> None:
        """Let time pass for what the fleet has put off: places that are filled again, resends."""
        for _ in range(20):
            self.sim.tick(0.5)
            for name in [name for name, worker in self.sim.tables.workers.items() if worker.state == "launching"]:
                self.sim.boot(name)
            if self._can_go_on():
                return

    # --- what may be done next ------------------------------------------------------------------------

    def _call(self) -> None:
        kinds: list[dict[str, Any]] = [{}, {}, {"flags": wire.FLAG_IDEMPOTENT}, {"priority": wire.PRIORITY_HIGH}]
        how = self.random.choice(kinds)
        self.calls.append(self.sim.submit(rows=self.random.choice([1, 1, 3]), **how))

    def _steps(self, worker: SimWorker) -> Iterator[Step]:
        """Yield what a worker may do next: each of its slots runs one program, nested ones first."""
        name = worker.worker_id
        if name not in self.sim.tables.workers or worker.dead:
            return
        if self.sim.entry(name).state == "launching":
            yield partial(self.sim.boot, name)
            return
        programs = self.running.setdefault(name, {})
        for recall in worker.recalls:
            yield partial(self._answer, worker, recall)
        has_slot = sum(not one.waits for one in programs.values()) < self.sim.entry(name).pool.slots
        fresh = [one for epoch, one in worker.attempts.items() if epoch not in programs]
        if has_slot and fresh:
            first = min(fresh, key=lambda one: (not one.depth, one.priority, one.epoch))
            yield partial(self._begin, worker, first)
        for epoch, program in programs.items():
            if program.waits:
                if has_slot and all(child in self.sim.replies for child in program.asked or ()):
                    yield partial(self._go_on, program)
            elif program.asked is None and program.children:
                yield partial(self._ask, worker, program)
            else:
                yield partial(self._end, worker, epoch, program)
        if programs and self.deaths < DEATHS and self.random.random() < 0.01:
            yield partial(self._die, worker)

    def _answer(self, worker: SimWorker, recall: wire.Recall) -> None:
        if recall.epoch in worker.attempts:
            self.sim.answer_recall(recall.request_id, started=recall.epoch in self.running[worker.worker_id])
        else:  # it has ended
            worker.recalls.remove(recall)
            self.sim.say(worker.worker_id, wire.Started(request_id=recall.request_id, epoch=recall.epoch))

    def _begin(self, worker: SimWorker, attempt: wire.Request) -> None:
        word = attempt.epoch % SLOT_WORDS
        worker.page[word] = max(worker.page[word], attempt.epoch)
        self.sim.executed.add(attempt.request_id)
        children = self.random.choice([0, 1, 2, 3]) if attempt.depth < 3 else self.random.choice([0, 0, 0, 1])
        self.running[worker.worker_id][attempt.epoch] = Program(attempt, children)

    def _ask(self, worker: SimWorker, program: Program) -> None:
        parent_id = program.attempt.request_id
        asks_first = self.random.random() < 0.5  # the two travel on different ways
        if not asks_first:
            self._pause(program)
        program.asked = [self._ask_once(parent_id) for _ in range(program.children)]
        if asks_first:
            self._pause(program)
        self.asked += len(program.asked)
        self.deepest = max(self.deepest, program.attempt.depth + 1)

    def _ask_once(self, parent_id: int) -> int:
        key = self.random.choice(["", "", "", "k", "l"])
        where, rows = self.random.choice(["", "", "neural"]), self.random.choice([1, 1, 2])
        return self.sim.nest(parent_id, pool=where, rows=1 if key else rows, idempotency_key=key)

    def _pause(self, program: Program) -> None:
        program.waits = True
        self.sim.pause(program.attempt.request_id)

    def _go_on(self, program: Program) -> None:
        program.waits = False
        self.sim.resume(program.attempt.request_id)

    def _end(self, worker: SimWorker, epoch: int, program: Program) -> None:
        del self.running[worker.worker_id][epoch]
        status = wire.OK if program.attempt.rows == 1 else wire.ROWS
        self.sim.reply(program.attempt.request_id, status=status, run_ms=self.random.choice([0.01, 5.0, 90.0]))

    def _die(self, worker: SimWorker) -> None:
        self.deaths += 1
        self.sim.die(worker.worker_id)


@pytest.mark.parametrize("first", range(0, HISTORIES, HISTORIES // 4))
def test_nothing_waits_for_itself(first: int) -> None:
    histories = [History(seed) for seed in range(first, first + HISTORIES // 4)]
    for history in histories:
        history.play()
        sim = history.sim
        assert set(history.calls) <= sim.replies.keys()
        assert not sim.tables.children
        assert not sim.tables.tool_calls
        for one in sim.tables.pools.values():
            assert (one.lent, one.over, one.queued, one.in_flight) == (0, 0, 0, 0)
    assert max(history.deepest for history in histories) >= 4
    assert sum(history.asked for history in histories) > 100
    assert sum(history.deaths for history in histories) > 2
