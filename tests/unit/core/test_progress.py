"""What workers run, and how far it is, as their heartbeats say."""

from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from tests.support.fleet import Sim, pool


def beat(sim: Sim, *progress: tuple[int, float, int, int, float]) -> None:
    sim.say("general-1.1", wire.Heartbeat(attempts=[(sim.attempt(one)[1].epoch, *rest) for one, *rest in progress]))  # type: ignore[misc]


def listed(sim: Sim) -> list[dict[str, object]]:
    return list(sim.fleet.workers(sim.now)[0]["running"])


def test_what_runs_is_listed_longest_first() -> None:
    sim = Sim(pool(slots=4))
    short, long, unstarted = sim.submit("fast"), sim.submit("optimize", rows=10), sim.submit()
    assert listed(sim) == []
    sim.start(short)
    sim.start(long)
    beat(sim, (short, 100.0, 0, 0, 100.0), (long, 5000.0, 3, 7, 1500.0))
    sim.now += 0.5
    assert listed(sim) == [
        {
            "request_id": long, "operation": "optimize", "rows": 10, "rows_done": 3,
            "running_s": pytest.approx(5.5), "lm_calls": 7, "quiet_s": pytest.approx(2.0),
        },
        {
            "request_id": short, "operation": "fast", "rows": 1, "rows_done": 0,
            "running_s": pytest.approx(0.6), "lm_calls": 0, "quiet_s": pytest.approx(0.6),
        },
    ]  # fmt: skip
    sim.reply(long)  # over, whatever the heartbeat said
    assert [row["request_id"] for row in listed(sim)] == [short]
    sim.reply(unstarted)
    sim.say("general-1.1", wire.Heartbeat())
    assert listed(sim) == []


def test_at_most_32_are_listed() -> None:
    sim = Sim(pool(slots=100))
    asked = [sim.submit() for _ in range(40)]
    beat(sim, *((request_id, float(n), 0, 0, 0.0) for n, request_id in enumerate(asked)))
    assert [row["request_id"] for row in listed(sim)] == asked[:7:-1]


def test_a_call_that_is_cancelled_and_goes_on_is_still_listed() -> None:
    sim = Sim()
    request_id = sim.submit(deadline_ms=1000.0)
    sim.start(request_id)
    beat(sim, (request_id, 900.0, 0, 2, 400.0))
    sim.run_until(sim.now + 1.1)
    assert sim.error(request_id).code == "DEADLINE_EXCEEDED"
    assert [row["request_id"] for row in listed(sim)] == [request_id]


def test_a_deadline_says_how_far_a_running_call_was() -> None:
    sim = Sim()
    request_id = sim.submit(rows=10, deadline_ms=1000.0)
    sim.start(request_id)
    beat(sim, (request_id, 900.0, 4, 12, 700.0))
    sim.run_until(sim.now + 1.1)
    message = sim.error(request_id).message
    assert message.endswith("(4 of 10 rows done, 12 LM calls, quiet for 1.7 s)")  # not heard of since
    assert sim.error(request_id).details == {"stage": "running"}


def test_a_deadline_without_a_word_of_progress_says_what_it_knows() -> None:
    sim = Sim()
    running, queued = sim.submit(deadline_ms=1000.0), sim.submit(deadline_ms=1000.0)
    sim.start(running)
    sim.run_until(sim.now + 1.1)
    assert sim.error(running).message.endswith("s after it was accepted")
    assert "was still queued" in sim.error(queued).message
