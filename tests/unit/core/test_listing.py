from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from pools.core.entries import DEAD_WORKERS_KEPT
from pools.core.events import Drain, DrainWorker, Exited, LaunchFailed, Signalled, Vanished
from tests.support.fleet import Sim, pool


def test_stats_count_rows_and_add_up() -> None:
    sim = Sim(pool("general", slots=2, prefetch=0, max_queue=3), pool("neural", size=2))
    done = sim.submit(rows=2)
    sim.submit(rows=3)
    sim.submit(rows=9)  # refused
    sim.submit("embed", pool="neural")
    stats = sim.fleet.stats(sim.now)
    assert stats["requests"] == {
        "accepted": 6, "settled": 0, "queued": 3, "in_flight": 3, "rejected": 9, "cancelled": 0, "fenced": 0,
        "resent": 0, "shed": 0, "attached": 0,
    }  # fmt: skip
    sim.now += 0.05
    sim.reply(done, status=wire.ROWS)
    stats = sim.fleet.stats(sim.now)
    assert stats["requests"]["settled"] == 2
    general = stats["pools"]["general"]
    assert (general["size"], general["ready"], general["busy"]) == (1, 1, 1)
    assert (general["queued"], general["in_flight"], general["completed"], general["failed"]) == (0, 3, 2, 0)
    assert general["p50_ms"] == pytest.approx(50.0, rel=0.1)
    assert general["p99_ms"] == pytest.approx(50.0, rel=0.1)
    neural = stats["pools"]["neural"]
    assert (neural["ready"], neural["busy"], neural["p50_ms"]) == (2, 1, None)


def test_a_pools_state_says_how_it_is() -> None:
    sim = Sim(pool("general", size=2), pool("neural", size=0), pool("extra"), ready=False)

    def states() -> dict[str, str]:
        return {row["pool"]: row["state"] for row in sim.fleet.pools(sim.now)}

    assert sim.fleet.pool_names() == ["general", "neural", "extra"]
    assert states() == {"general": "starting", "neural": "off", "extra": "starting"}
    sim.boot("general-1.1")
    sim.die("extra-1.1", Exited(1), log_tail=("boom",))
    assert states() == {"general": "ok", "neural": "off", "extra": "degraded"}
    problems = {row["pool"]: row["problem"] for row in sim.fleet.pools(sim.now)}
    assert problems["general"] is None
    assert "boom" in problems["extra"]
    assert problems["neural"] is None
    sim.boot("general-2.1")
    assert states()["general"] == "ok"
    for worker_id in ("general-1.1", "general-2.1"):
        sim.handle(DrainWorker(worker_id))
    assert states()["general"] == "off"
    assert "drained" in sim.fleet.pools(sim.now)[0]["problem"]


def test_living_workers_are_listed_by_place() -> None:
    sim = Sim(pool(size=3), ready=False)
    sim.hello("general-2.1")
    sim.boot("general-3.1")
    sim.submit(rows=2)
    sim.say("general-3.1", wire.Heartbeat(rss_bytes=1 << 20))
    sim.now += 5.0
    rows = sim.fleet.workers(sim.now)
    assert [(row["id"], row["state"], row["in_flight"]) for row in rows] == [
        ("general-1.1", "launching", 0), ("general-2.1", "booting", 0), ("general-3.1", "busy", 2),
    ]  # fmt: skip
    last = rows[-1]
    assert (last["pool"], last["incarnation"], last["rss_bytes"], last["age_s"]) == ("general", 1, 1 << 20, 5.0)
    assert last["exit"] is None


def test_a_worker_without_attempts_is_ready_and_a_stopping_one_draining() -> None:
    sim = Sim()
    assert sim.fleet.workers(sim.now)[0]["state"] == "ready"
    sim.reply(sim.submit(rows=3))
    assert sim.fleet.workers(sim.now)[0]["requests"] == 3
    sim.handle(Drain(1.0))
    assert sim.fleet.workers(sim.now)[0]["state"] == "draining"


@pytest.mark.parametrize(
    ("reason", "kind", "code", "signal", "cause"),
    [
        (Exited(3), "exited", 3, None, "exit code 3"),
        (Signalled(9), "signalled", None, 9, "signal 9"),
        (Vanished(), "vanished", None, None, "gone, no report of how"),
        (LaunchFailed("no memory"), "launch_failed", None, None, "launch failed: no memory"),
    ],
)
def test_dead_workers_stay_listed_with_their_cause(
    reason: Exited | Signalled | Vanished | LaunchFailed, kind: str, code: int | None, signal: int | None, cause: str
) -> None:
    sim = Sim()
    sim.now += 2.0
    lines, stacks = tuple(f"line {n}" for n in range(30)), ("Thread 1", "  File 2")
    sim.die(reason=reason, peak_rss_bytes=5000, log_tail=lines, stacks=stacks)
    [row] = [row for row in sim.fleet.workers(sim.now) if row["state"] == "exited"]
    assert (row["id"], row["age_s"], row["in_flight"]) == ("general-1.1", 2.0, 0)
    assert row["exit"] == {
        "cause": cause, "kind": kind, "code": code, "signal": signal, "peak_rss_bytes": 5000,
        "log_tail": [f"line {n}" for n in range(10, 30)], "stacks": ["Thread 1", "  File 2"],
    }  # fmt: skip


def test_dead_workers_are_forgotten_after_an_hour_and_bounded_before() -> None:
    sim = Sim(pool(heartbeat_limit_s=1e9))
    sim.die()
    sim.boot("general-1.2")
    sim.run_until(sim.now + 3599.0)
    sim.die("general-1.2")
    dead = [row["id"] for row in sim.fleet.workers(sim.now) if row["state"] == "exited"]
    assert dead == ["general-1.2", "general-1.1"]  # latest first
    sim.run_until(sim.now + 3.0)
    dead = [row["id"] for row in sim.fleet.workers(sim.now) if row["state"] == "exited"]
    assert dead == ["general-1.2"]
    for incarnation in range(3, 3 + 2 * DEAD_WORKERS_KEPT):
        while f"general-1.{incarnation}" not in sim.tables.workers:
            sim.run_until(sim.now + 30.0)
        sim.boot(f"general-1.{incarnation}")
        sim.die(f"general-1.{incarnation}")
    assert len(sim.pool().dead) == DEAD_WORKERS_KEPT
