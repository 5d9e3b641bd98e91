"""The health monitor: every issue by its name, raised once, over once, with what is done about it."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError, encode_error
from pools.config import DegradationConfig, RestartConfig
from pools.core.events import BootFailed, CpuRead, DrainWorker, MemoryRead, Restart, Signalled
from pools.core.health import OVER_AFTER_S
from pools.core.issues import STUCK_S
from tests.support.fleet import Sim, pool

FOREVER_S = 1e6


def fleet(*pools: Any, **fields: Any) -> Sim:
    return Sim(*(pools or (pool(heartbeat_limit_s=FOREVER_S, **fields),)), degradation=DegradationConfig())


def health(sim: Sim) -> dict[str, Any]:
    return sim.fleet.health(sim.now)


def names(sim: Sim) -> list[tuple[str, str]]:
    return [(issue["name"], issue["subject"]) for issue in health(sim)["issues"]]


def only_issue(sim: Sim) -> dict[str, Any]:
    [issue] = health(sim)["issues"]
    assert set(issue) == {"name", "subject", "level", "since_s", "text", "action"}
    assert issue["text"]
    assert issue["action"]
    return dict(issue)


def wait(sim: Sim, seconds: float) -> None:
    sim.run_until(sim.now + seconds)


def boot_fails(sim: Sim, worker_id: str, text: str = "ImportError: no module named nowhere") -> None:
    """A worker comes up and cannot boot."""
    sim.hello(worker_id)
    error = encode_error(BridgeError("UNAVAILABLE", text))
    sim.say(worker_id, wire.BootFailed(payload=error))
    sim.die(worker_id, BootFailed(error))


def test_a_fleet_at_work_has_no_issue() -> None:
    sim = fleet()
    sim.reply(sim.submit())
    wait(sim, 60.5)
    assert health(sim) == {"status": "ok", "mode": "normal", "issues": [], "error_rate": None, "p99_ms": None} | {
        "p99_ms": sim.pool().latency.quantile_ms(0.99)
    }
    assert not sim.logs("issue_raised")


def test_an_issue_is_told_once_lasts_while_it_comes_and_goes_and_is_over_once() -> None:
    sim = fleet()
    raised_at = sim.now + 1.0
    for used in (0.95, 0.5, 0.95):
        sim.handle(MemoryRead(used))
        wait(sim, 2.0)
    issue = only_issue(sim)
    assert (issue["name"], issue["subject"], issue["level"]) == ("memory_short", "", "critical")
    assert issue["since_s"] == pytest.approx(sim.now - raised_at)
    assert health(sim)["status"] == "critical"
    sim.handle(MemoryRead(0.5))
    wait(sim, OVER_AFTER_S + 1.0)
    assert names(sim) == []
    [raised], [over] = sim.logs("issue_raised"), sim.logs("issue_over")
    assert (raised.level, raised.fields["name"], over.fields["name"]) == ("error", "memory_short", "memory_short")
    assert over.fields["lasted_s"] == 5.0


def test_a_pool_whose_workers_cannot_boot() -> None:
    sim = fleet(pool(heartbeat_limit_s=FOREVER_S), pool("optimizer", heartbeat_limit_s=FOREVER_S))
    sim.die("general-1.1")
    boot_fails(sim, "general-1.2")
    wait(sim, 1.0)
    issue = only_issue(sim)
    assert (issue["name"], issue["subject"], issue["level"]) == ("pool_degraded", "general", "critical")
    assert "ImportError: no module named nowhere" in issue["text"]
    sim.boot(sim.launches()[-1])
    wait(sim, OVER_AFTER_S + 1.0)
    assert names(sim) == []


def test_a_pool_of_which_every_worker_was_drained() -> None:
    sim = fleet()
    sim.handle(DrainWorker("general-1.1"))
    sim.die("general-1.1")
    wait(sim, 1.0)
    issue = only_issue(sim)
    assert (issue["name"], issue["subject"], issue["level"]) == ("pool_out_of_service", "general", "critical")
    assert "drained" in issue["text"]
    assert "dspool restart general" in issue["action"]
    row = sim.fleet.stats(sim.now)["pools"]["general"]
    assert (row["state"], "drained" in row["why"]) == ("off", True)


def test_a_pool_that_is_off_is_no_issue() -> None:
    sim = fleet(pool(size=0))
    wait(sim, 10.0)
    assert names(sim) == []
    assert sim.fleet.stats(sim.now)["pools"]["general"]["min_size"] == 0


def test_workers_that_end_faster_than_they_may() -> None:
    sim = fleet(restart=RestartConfig(max_restarts=3, window_s=30.0))
    for life in range(1, 4):
        wait(sim, 2.0)
        assert names(sim) == []
        sim.die(f"general-1.{life}", Signalled(11))
        sim.boot(f"general-1.{life + 1}")
    wait(sim, 1.0)
    issue = only_issue(sim)
    assert (issue["name"], issue["subject"], issue["level"]) == ("workers_flapping", "general", "warning")
    assert "general-1.3: signal 11" in issue["text"]
    assert health(sim)["status"] == "degraded"
    wait(sim, 40.0)
    assert names(sim) == []


def test_growth_that_cannot_boot() -> None:
    sim = fleet(slots=1, prefetch=0, max_size=2)
    for _ in range(3):
        sim.submit()
    wait(sim, 2.0)
    assert sim.launches()[-1] == "general-2.1"
    boot_fails(sim, "general-2.1", "RuntimeError: no such device")
    wait(sim, 2.0)
    boot_fails(sim, "general-2.2", "RuntimeError: no such device")
    wait(sim, 1.0)
    assert sim.pool().boot_error is None
    issue = only_issue(sim)
    assert (issue["name"], issue["subject"], issue["level"]) == ("growth_blocked", "general", "warning")
    assert issue["text"] == "1 of 2 workers serve, the others cannot boot (2 tries): RuntimeError: no such device"
    sim.boot(sim.launches()[-1])
    wait(sim, OVER_AFTER_S + 1.0)
    assert names(sim) == []


def test_an_old_worker_that_holds_up_the_replacements_of_its_pool() -> None:
    sim = fleet(size=2)
    for _ in range(2):
        sim.start(sim.submit())
    sim.handle(Restart("general"))
    sim.boot(sim.launches()[-1])
    wait(sim, STUCK_S)
    assert names(sim) == []
    wait(sim, 2.0)
    issue = only_issue(sim)
    assert (issue["name"], issue["subject"], issue["level"]) == ("replacement_stuck", "general-1.1", "warning")
    assert "has not finished 1 rows that it holds, 1 more wait for that" in issue["text"]


def test_a_queue_that_stands_and_processors_that_are_busy_meanwhile() -> None:
    sim = fleet(slots=1, prefetch=0, max_queue=10)
    for _ in range(7):
        sim.submit()
    sim.handle(CpuRead(0.93))
    wait(sim, 7.0)
    assert names(sim) == [("queue_standing", "general"), ("cpu_short", "")]
    assert [issue["level"] for issue in health(sim)["issues"]] == ["warning", "warning"]
    assert "6 rows wait, 10 may" in health(sim)["issues"][0]["text"]
    assert "93 % busy" in health(sim)["issues"][1]["text"]
    assert health(sim)["mode"] == "degraded"


def test_a_breaker_that_is_open() -> None:
    sim = fleet(default_deadline_s=0.1)
    for _ in range(10):
        late = sim.submit()
        sim.start(late)
        wait(sim, 0.2)
        sim.reply(late)
    wait(sim, 1.0)
    issue = only_issue(sim)
    assert (issue["name"], issue["subject"], issue["level"]) == ("breaker_open", "general/echo", "warning")
    assert issue["text"].startswith("10 of the last 10 ")
    wait(sim, 20.0)
    assert names(sim) == []


def test_requests_in_quarantine() -> None:
    sim = Sim(pool(heartbeat_limit_s=FOREVER_S), poison_deaths=2)
    for life in (1, 2):
        request_id = sim.submit("crash", payload=b"x")
        sim.start(request_id)
        sim.die(f"general-1.{life}", Signalled(11))
        sim.boot(f"general-1.{life + 1}")
    wait(sim, 1.0)
    issue = only_issue(sim)
    assert (issue["name"], issue["subject"], issue["level"]) == ("quarantine", "", "warning")
    assert issue["text"] == "1 request is in quarantine, for workers died of it: crash"
    [letter] = sim.tables.poison.letters.values()
    sim.tables.poison.drop(letter.letter_id)
    wait(sim, OVER_AFTER_S + 1.0)
    assert names(sim) == []


def test_a_peer_that_was_muted_is_news_for_ten_minutes() -> None:
    sim = fleet()
    sim.fleet.peer_muted("it sent what cannot be read", sim.now)
    wait(sim, 1.0)
    issue = only_issue(sim)
    assert (issue["name"], issue["level"]) == ("peers_muted", "warning")
    assert "it sent what cannot be read" in issue["text"]
    wait(sim, 590.0)
    assert names(sim) == [("peers_muted", "")]
    wait(sim, 20.0)
    assert names(sim) == []


def test_a_coordinator_whose_timers_are_late() -> None:
    sim = fleet()
    wait(sim, 20.0)
    assert names(sim) == []
    for _ in range(4):
        sim.stand_still(2.0)
        wait(sim, 1.0)
    assert names(sim) == [("coordinator_slow", "")]
    wait(sim, 60.0)
    assert names(sim) == []


def test_the_error_rate_is_that_of_the_last_minute() -> None:
    sim = fleet()
    for _ in range(3):
        sim.reply_error(sim.submit(), "REMOTE_ERROR")
    sim.reply(sim.submit())
    assert health(sim)["error_rate"] == 0.75
    wait(sim, 62.0)
    assert health(sim)["error_rate"] is None
    sim.reply(sim.submit())
    assert health(sim)["error_rate"] == 0.0
