from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.messages import ERROR, OK, PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL, Bye, Cancel, Reply
from pools.config import BreakerConfig
from pools.core import keys
from pools.core.events import Drain, Resize, Signalled
from pools.core.keys import KEPT_S, Keys, Name, Outcome
from tests.support.fleet import Sim, pool

KEY = "order 7"


def ask(sim: Sim, payload: bytes = b"1", *, key: str = KEY, **fields: Any) -> int:
    return sim.submit("pay", payload=payload, idempotency_key=key, **fields)


def attempts(sim: Sim) -> int:
    """Return how many attempts workers hold."""
    return sum(len(worker.attempts) for worker in sim.processes.values())


def idle(sim: Sim) -> None:
    """Assert that nothing is left of any request."""
    assert not sim.tables.requests
    assert not sim.tables.keys.running
    assert sim.pool().following == sim.pool().queued == sim.pool().in_flight == 0


def test_what_comes_while_it_runs_gets_its_outcome() -> None:
    sim = Sim()
    other = sim.connect(2)
    first, second, third = ask(sim), ask(sim), ask(sim, peer=other)
    assert attempts(sim) == 1
    sim.reply(first, payload=b"paid", tokens=5)
    for one in (first, second, third):
        reply = sim.replies[one]
        assert (reply.status, reply.payload, reply.worker, reply.attempt) == (OK, b"paid", "general-1.1", 1)
    requests = sim.fleet.stats(sim.now)["requests"]
    assert (requests["attached"], requests["accepted"], requests["settled"]) == (2, 3, 3)
    idle(sim)


def test_what_comes_later_is_answered_from_memory() -> None:
    sim = Sim()
    sim.reply(ask(sim), payload=b"paid")
    again = ask(sim)
    assert sim.replies[again].payload == b"paid"
    assert attempts(sim) == 0
    assert sim.fleet.stats(sim.now)["requests"]["attached"] == 1


def test_one_run_is_one_outcome_whoever_shares_it() -> None:
    sim = Sim()
    first, *_ = [ask(sim) for _ in range(3)]
    sim.reply(first, payload=b"paid")
    ask(sim)
    failed, *_ = [ask(sim, key="other") for _ in range(3)]
    sim.reply_error(failed, "REMOTE_ERROR")
    ask(sim, key="other")
    pool_ = sim.pool()
    assert (pool_.completed, pool_.failed) == (4, 4)
    assert (pool_.outcomes, pool_.credits.outcomes("pay")) == (2, 2)


def test_who_waits_for_another_and_gives_up_is_no_outcome() -> None:
    sim = Sim()
    first, cancelled = ask(sim), ask(sim)
    late = ask(sim, deadline_ms=50.0)
    sim.start(first)
    sim.cancel(cancelled)
    sim.tick(0.1)
    assert (sim.error(cancelled).code, sim.error(late).code) == ("CANCELLED", "DEADLINE_EXCEEDED")
    assert sim.pool().outcomes == 0
    sim.reply(first)
    assert sim.pool().outcomes == 1


def test_an_error_for_good_is_remembered_and_one_that_may_pass_is_not() -> None:
    sim = Sim()
    sim.reply_error(ask(sim), "REMOTE_ERROR")
    assert sim.error(ask(sim)).code == "REMOTE_ERROR"
    lost = ask(sim, key="other", deadline_ms=50.0)
    sim.start(lost)
    sim.die("general-1.1")
    assert sim.error(lost).code == "WORKER_LOST"
    sim.boot("general-1.2")
    sim.reply(ask(sim, key="other"))


def test_a_key_is_its_principals_and_its_operations() -> None:
    sim = Sim(pool(slots=8))
    stranger = sim.connect(2, "somebody else")
    ask(sim)
    ask(sim, peer=stranger)
    sim.submit("refund", payload=b"1", idempotency_key=KEY)
    assert attempts(sim) == 3


@pytest.mark.parametrize("ended", [True, False])
def test_another_payload_is_refused(ended: bool) -> None:
    sim = Sim(pool("general"), pool("neural"))
    first = ask(sim)
    if ended:
        sim.reply(first)
    for refused in (ask(sim, b"2"), ask(sim, lm="default"), ask(sim, pool="neural")):
        error = sim.error(refused)
        assert (error.code, error.details["path"], error.details["conflict"]) == (
            "INVALID_REQUEST", "idempotency_key", True,
        )  # fmt: skip


def test_a_key_is_for_one_row_and_has_a_length() -> None:
    sim = Sim()
    assert sim.error(ask(sim, rows=2)).details["path"] == "idempotency_key"
    assert sim.error(ask(sim, key="k" * 201)).details["path"] == "idempotency_key"
    assert ask(sim, key="k" * 200) in sim.tables.requests


def test_a_follower_that_is_cancelled_leaves_alone() -> None:
    sim = Sim()
    first, second = ask(sim), ask(sim)
    sim.start(first)
    sim.cancel(second, force=True)
    assert sim.error(second).code == "CANCELLED"
    assert sim.cancel_replies(second) == [("queued", "dequeued")]
    sim.reply(first)
    assert sim.replies[first].status == OK
    idle(sim)


def test_a_follower_has_its_own_deadline() -> None:
    sim = Sim()
    first, second = ask(sim), ask(sim, deadline_ms=100.0)
    sim.tick(0.2)
    assert sim.error(second).code == "DEADLINE_EXCEEDED"
    sim.reply(first)
    idle(sim)


def test_a_client_that_leaves_a_pool_without_workers_has_all_of_its_own_settled_once() -> None:
    sim = Sim(jitter=0.9)
    first, second = ask(sim), ask(sim)
    sim.start(first)
    sim.die("general-1.1")
    sim.handle(Resize("general", 0))
    sim.handle(Bye(), sim.client)
    assert [sim.error(one).code for one in (first, second)] == ["CANCELLED", "CANCELLED"]
    idle(sim)


def test_a_client_that_leaves_a_dead_letter_has_all_of_its_own_settled_once() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0), poison_deaths=2, jitter=0.9)
    first, second = ask(sim), ask(sim)
    sim.start(first)
    sim.die("general-1.1")
    equal = sim.submit("pay", payload=b"1", peer=sim.connect(2))
    sim.start(equal)
    sim.die("general-2.1")
    assert sim.error(equal).code == "POISON_REQUEST"
    sim.handle(Bye(), sim.client)
    assert [sim.error(one).code for one in (first, second)] == ["CANCELLED", "CANCELLED"]
    idle(sim)


@pytest.mark.parametrize("how", ["answered", "handed over", "cancelled", "abandoned"])
def test_what_is_over_is_not_kept_by_its_key(how: str) -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    busy = sim.submit("work")
    if how == "abandoned":
        sim.reply(busy)
    entries = [sim.tables.requests[one] for one in (ask(sim), ask(sim))]
    first, second = (entry.request_id for entry in entries)
    for one in {"answered": [], "handed over": [first]}.get(how, [first, second]):
        sim.cancel(one)
    if how == "abandoned":
        sim.start(first)
        sim.reply_error(first, "CANCELLED")
    else:
        sim.reply(busy)
    if sim.tables.requests:
        sim.reply(first if how == "answered" else second)
    assert not sim.tables.keys.running
    # The garbage collector does not look into entries: what they and their work hold of each other would stay.
    assert not any(entry.keyed is not None and entry.keyed.runner is entry for entry in entries)


def test_what_is_out_of_time_together_begins_nothing() -> None:
    sim = Sim(pool(slots=1, prefetch=None))
    for number in range(8):
        sim.reply(ask(sim, key=str(number)), run_ms=0.01)  # quick: a worker takes many of them
    while not sim.queued():
        sim.submit("work")  # and few of what nobody knows yet
    first, second = ask(sim, deadline_ms=50.0), ask(sim, deadline_ms=50.0)
    sim.tick(0.1)
    assert [sim.error(one).code for one in (first, second)] == ["DEADLINE_EXCEEDED"] * 2
    assert not any(sim.replies[one].epoch for one in (first, second))


def test_a_client_that_leaves_begins_nothing_for_itself() -> None:
    sim = Sim(pool(size=2), jitter=0.9)
    other = sim.connect(2)
    first, second = ask(sim), ask(sim)
    theirs = ask(sim, peer=other)
    sim.start(first)
    sim.die("general-1.1")  # it pauses before its resend
    sim.handle(Bye(), sim.client)
    assert [sim.error(one).code for one in (first, second)] == ["CANCELLED", "CANCELLED"]
    sim.tick(5.0)
    sim.reply(theirs)
    assert sim.replies[theirs].status == 0
    idle(sim)


@pytest.mark.parametrize("force", [True, False])
def test_the_attempt_of_a_cancelled_runner_goes_on_for_others(force: bool) -> None:
    sim = Sim()
    first, second = ask(sim), ask(sim)
    sim.start(first)
    sim.cancel(first, force=force)
    assert sim.error(first).code == "CANCELLED"
    assert not sim.sent_to(sim.process().peer, Cancel)
    third = ask(sim)
    sim.reply(first, payload=b"paid")
    assert sim.replies[second].payload == sim.replies[third].payload == b"paid"
    assert sim.replies[second].worker == "general-1.1"
    assert sim.replies[ask(sim)].payload == b"paid"
    sim.tick(10.0)
    assert not sim.kills()
    idle(sim)


def test_the_attempt_of_a_runner_out_of_time_is_stopped_and_its_outcome_counts_if_it_has_one() -> None:
    sim = Sim()
    first, second = ask(sim, deadline_ms=100.0), ask(sim)
    sim.start(first)
    sim.tick(0.2)
    assert sim.error(first).code == "DEADLINE_EXCEEDED"
    assert len(sim.sent_to(sim.process().peer, Cancel)) == 1
    sim.reply(first, payload=b"paid")
    assert sim.replies[second].payload == b"paid"
    idle(sim)


def test_a_run_that_hangs_is_killed_however_many_wait_for_it() -> None:
    sim = Sim(pool(heartbeat_limit_s=1000.0, grace_s=1.0), jitter=0.5)
    hung = ask(sim, deadline_ms=1000.0)
    sim.start(hung)
    for _ in range(3):
        ask(sim, deadline_ms=2000.0)
        sim.tick(1.0)
    assert [worker_id for worker_id, _ in sim.kills()] == ["general-1.1"]
    sim.die("general-1.1")
    sim.tick(0.1)
    sim.boot("general-1.2")
    [again] = sim.process("general-1.2").attempts.values()
    sim.reply(again.request_id, payload=b"paid")
    assert sim.replies[again.request_id].payload == b"paid"
    idle(sim)


def test_who_comes_back_while_the_run_that_took_too_long_is_out_shares_it() -> None:
    sim = Sim(pool(size=2, slots=1, prefetch=0))
    first = ask(sim, deadline_ms=100.0)
    sim.start(first)
    sim.tick(0.2)
    assert sim.error(first).code == "DEADLINE_EXCEEDED"
    again = ask(sim, deadline_ms=1000.0)
    assert attempts(sim) == 1
    sim.reply(first, payload=b"paid")
    assert (sim.replies[again].payload, sim.replies[again].worker) == (b"paid", "general-1.1")
    idle(sim)


@pytest.mark.parametrize("cancelled", [True, False])
def test_an_outcome_that_comes_after_its_caller_gave_up_is_kept(cancelled: bool) -> None:
    sim = Sim()
    first = ask(sim, deadline_ms=100.0)
    sim.start(first)
    if cancelled:
        follower = ask(sim)
        sim.cancel(first)
        sim.cancel(follower)
    sim.tick(0.2)
    sim.reply(first, payload=b"paid")
    assert sim.replies[ask(sim)].payload == b"paid"
    assert attempts(sim) == 0
    idle(sim)


def test_after_a_run_that_was_stopped_who_comes_runs() -> None:
    sim = Sim()
    first = ask(sim, deadline_ms=100.0)
    sim.start(first)
    sim.tick(0.2)
    sim.reply_error(first, "DEADLINE_EXCEEDED")
    idle(sim)
    sim.reply(ask(sim))


def test_where_the_time_of_all_is_over_nobody_runs() -> None:
    sim = Sim(pool(slots=1, prefetch=0, heartbeat_limit_s=1000.0))
    blocking = sim.submit()
    first, *rest = [ask(sim, deadline_ms=deadline_ms) for deadline_ms in (100.0, 101.0, 300.0)]
    sim.stand_still(0.2)
    sim.cancel(first)
    assert sim.queued() == [rest[1]]
    sim.stand_still(0.4)
    sim.cancel(rest[1])
    last = ask(sim)
    assert sim.queued() == [last]
    sim.tick(1.0)
    sim.reply(blocking)
    sim.reply(last)
    idle(sim)


def test_where_the_worker_minds_the_runners_deadline_a_follower_runs() -> None:
    sim = Sim()
    first, second, third = ask(sim, deadline_ms=100.0), ask(sim), ask(sim)
    sim.start(first)
    sim.tick(0.2)
    sim.reply_error(first, "DEADLINE_EXCEEDED")
    sim.reply(second, payload=b"paid")
    assert sim.replies[third].payload == b"paid"
    idle(sim)


def test_where_the_runner_is_cancelled_in_the_queue_a_follower_runs() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    blocking = sim.submit()
    first, second, third = ask(sim), ask(sim), ask(sim)
    sim.cancel(first)
    assert sim.cancel_replies(first) == [("queued", "dequeued")]
    assert sim.queued() == [second]
    sim.reply(blocking)
    sim.reply(second, payload=b"paid")
    assert sim.replies[third].payload == b"paid"
    idle(sim)


def test_a_runner_that_was_asked_to_stop_before_the_first_follower_came_is_followed_by_a_run() -> None:
    sim = Sim()
    first = ask(sim)
    sim.start(first)
    sim.cancel(first)
    second = ask(sim)
    sim.reply_error(first, "CANCELLED")
    assert sim.cancel_replies(first) == [("running", "cooperative")]
    sim.reply(second, payload=b"paid")
    assert sim.replies[second].payload == b"paid"
    idle(sim)


@pytest.mark.parametrize("force", [True, False])
def test_an_attempt_that_nobody_wants_any_more_is_stopped(force: bool) -> None:
    sim = Sim()
    first, second = ask(sim), ask(sim)
    sim.start(first)
    sim.cancel(first)
    sim.cancel(second, force=force)
    assert len(sim.sent_to(sim.process().peer, Cancel)) == 1
    sim.tick(10.0)
    assert bool(sim.kills()) == force
    if force:
        sim.die("general-1.1")
    else:
        sim.reply_error(first, "CANCELLED")
    idle(sim)


def test_an_attempt_that_nobody_wants_and_has_not_begun_is_asked_back() -> None:
    sim = Sim(pool(slots=1, prefetch=2))
    sim.start(sim.submit())
    first, second = ask(sim), ask(sim)
    sim.cancel(first)
    sim.handle(Bye(), sim.client)
    sim.answer_recall(first, started=False)
    assert second in sim.replies
    assert not sim.tables.keys.running


def test_an_unbegun_attempt_of_a_settled_runner_is_lost_and_a_follower_runs() -> None:
    sim = Sim()
    first, second = ask(sim), ask(sim)
    sim.cancel(first)
    sim.die("general-1.1")
    sim.boot("general-1.2")
    sim.reply(second)
    assert sim.replies[second].status == OK
    idle(sim)


def test_a_begun_attempt_of_a_settled_runner_is_lost_and_sent_again_for_who_has_most_time() -> None:
    sim = Sim(pool(heartbeat_limit_s=1000.0), jitter=0.5)
    first, second, third = ask(sim), ask(sim, deadline_ms=40.0), ask(sim, deadline_ms=5000.0)
    sim.start(first)
    sim.cancel(first)
    sim.die("general-1.1")
    assert [sim.tables.requests[one].resends for one in (second, third)] == [0, 1]
    sim.tick(0.1)
    assert sim.error(second).code == "DEADLINE_EXCEEDED"
    sim.boot("general-1.2")
    sim.reply(third, payload=b"paid")
    assert sim.replies[third].payload == b"paid"
    assert sim.pool().resent == 1
    idle(sim)


def test_who_shares_a_run_shares_its_resends() -> None:
    sim = Sim(pool(heartbeat_limit_s=1000.0))
    asked = [ask(sim) for _ in range(4)]
    for number in range(3):
        runner = asked[number]
        sim.start(runner)
        sim.cancel(runner)
        sim.die(f"general-1.{number + 1}")
        sim.tick(1.0)
        sim.boot(f"general-1.{number + 2}")
    error = sim.error(asked[3])
    assert (error.code, error.details["retry"]) == ("WORKER_LOST", "resent 2 times")
    idle(sim)


def test_a_lost_run_is_not_sent_again_for_want_of_memory() -> None:
    sim = Sim()
    first, second = ask(sim), ask(sim)
    sim.start(first)
    sim.cancel(first)
    sim.die("general-1.1", Signalled(9, out_of_memory=True))
    assert sim.error(second).details["retry"] == "not after want of memory"
    idle(sim)


def test_the_loss_of_a_run_that_nobody_waits_for_leaves_nothing() -> None:
    sim = Sim()
    first = ask(sim, deadline_ms=100.0)
    sim.start(first)
    sim.tick(0.2)
    sim.die("general-1.1")
    idle(sim)


def test_a_hand_over_does_not_pass_an_open_breaker() -> None:
    breaker = BreakerConfig(window=10, min_calls=2, failure_rate=0.5, open_s=10.0)
    sim = Sim(replace(pool(size=2, slots=1, prefetch=0), breaker=breaker))
    first, second = ask(sim), ask(sim)
    sim.start(first)
    for number in range(2):
        bad = sim.submit("pay", payload=b"%d" % number)
        sim.start(bad)
        sim.die(f"general-2.{number + 1}")
        sim.boot(sim.launches()[-1])
    sim.cancel(first)
    sim.reply_error(first, "CANCELLED")
    assert sim.error(second).code == "CIRCUIT_OPEN"
    idle(sim)


def test_who_is_handed_the_run_is_the_first_of_its_lane() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    first, second, other = ask(sim), ask(sim), sim.submit()
    sim.start(first)
    sim.cancel(first)
    sim.reply_error(first, "CANCELLED")
    sim.reply(second)
    sim.reply(other)
    idle(sim)


@pytest.mark.parametrize("priority", [PRIORITY_HIGH, PRIORITY_NORMAL])
def test_a_run_that_waits_is_of_the_highest_class_that_waits_for_it(priority: int) -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    sim.start(sim.submit(priority=PRIORITY_HIGH))
    sim.start(sim.submit(priority=PRIORITY_HIGH))
    low, other = ask(sim, priority=PRIORITY_LOW), sim.submit(priority=PRIORITY_LOW)
    assert sim.pool().queue.head().request_id == low
    others = [sim.submit(priority=PRIORITY_NORMAL) for _ in range(2)]
    urgent = ask(sim, priority=priority)
    order: list[int] = []
    while sim.tables.requests:
        order.extend(one for one in [next(iter(sim.process().attempts.values())).request_id] if one != urgent)
        sim.reply(order[-1])
    ours = [one for one in order if one in (low, other, *others)]
    assert ours == ([low, *others, other] if priority == PRIORITY_HIGH else [*others, low, other])
    assert urgent in sim.replies
    idle(sim)


def test_a_run_that_pauses_comes_back_in_the_highest_class_that_waits_for_it() -> None:
    sim = Sim(pool(slots=1, prefetch=0), jitter=0.5)
    low = ask(sim, priority=PRIORITY_LOW)
    sim.start(low)
    sim.die("general-1.1")
    normal = sim.submit()
    ask(sim, priority=PRIORITY_HIGH)
    sim.tick(0.1)
    sim.boot("general-1.2")
    assert next(iter(sim.process("general-1.2").attempts.values())).request_id == low
    assert sim.queued() == [normal]


def test_all_who_share_a_fallbacks_outcome_are_told_where_it_ran() -> None:
    sim = Sim(replace(pool("general"), fallback="other"), pool("other"))
    sim.handle(Resize("general", 0))
    first, second = ask(sim), ask(sim)
    sim.tick(0.5)
    sim.reply(first, payload=b"paid")
    for reply in (sim.replies[one] for one in (first, second, ask(sim))):
        assert (reply.pool, reply.worker, reply.fallback_used) == ("other", "other-1.1", True)
    rows = sim.fleet.stats(sim.now)["pools"]
    assert (rows["general"]["p50_ms"], rows["other"]["p50_ms"] > 0.0) == (None, True)


def test_followers_outlive_a_fallbacks_runner_and_are_told_where_it_ran() -> None:
    sim = Sim(replace(pool("general"), fallback="other"), pool("other"))
    sim.handle(Resize("general", 0))
    first, second = ask(sim), ask(sim)
    sim.start(first)
    sim.cancel(first)
    sim.reply(first, payload=b"paid")
    reply = sim.replies[second]
    assert (reply.pool, reply.worker, reply.fallback_used) == ("other", "other-1.1", True)


def test_a_key_means_that_it_may_run_again() -> None:
    sim = Sim(jitter=0.0)
    first, second = ask(sim), ask(sim)
    sim.start(first)
    sim.die("general-1.1")
    sim.tick(0.01)
    sim.boot("general-1.2")
    sim.reply(first, payload=b"paid")
    assert (sim.replies[second].payload, sim.replies[second].attempt) == (b"paid", 2)
    idle(sim)


def test_poison_ends_all_who_share_it_and_is_not_remembered_by_key() -> None:
    sim = Sim(poison_deaths=1)
    first, second = ask(sim), ask(sim)
    sim.start(first)
    sim.die("general-1.1")
    assert [sim.error(one).code for one in (first, second)] == ["POISON_REQUEST"] * 2
    assert not sim.tables.keys.outcomes
    idle(sim)


def test_followers_take_no_room_in_the_queue() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=2))
    first = ask(sim)
    followers = [ask(sim) for _ in range(5)]
    others = [sim.submit() for _ in range(2)]
    assert all(one in sim.tables.requests for one in [*followers, *others])
    assert sim.error(sim.submit()).code == "OVERLOADED"
    sim.reply(first)
    assert all(sim.replies[one].status == OK for one in followers)


def test_a_client_that_leaves_takes_only_its_own_along() -> None:
    sim = Sim()
    other = sim.connect(2)
    first, second, third = ask(sim), ask(sim), ask(sim, peer=other)
    sim.start(first)
    sim.handle(Bye(), sim.client)
    assert first in sim.replies
    assert second in sim.replies
    sim.reply(first, payload=b"paid")
    assert sim.replies[third].payload == b"paid"
    idle(sim)


def test_the_end_of_the_fleet_settles_all_once() -> None:
    sim = Sim()
    asked = [ask(sim) for _ in range(4)]
    sim.start(asked[0])
    sim.handle(Drain(0.1))
    sim.tick(0.2)
    assert [sim.error(one).code for one in asked] == ["CANCELLED"] * 4
    sim.die("general-1.1")
    idle(sim)


def test_outcomes_are_forgotten_in_time() -> None:
    sim = Sim(pool(heartbeat_limit_s=10_000.0))
    sim.reply(ask(sim))
    sim.tick(KEPT_S - 1.0)
    assert ask(sim) in sim.replies
    sim.tick(2.0)
    assert not sim.tables.keys.outcomes
    sim.reply(ask(sim))


def test_outcomes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_KEPT", 3)
    monkeypatch.setattr(keys, "MAX_KEPT_BYTES", 10)
    kept = Keys()

    def keep(number: int, size: int) -> None:
        kept.keep(Name("me", "pay", str(number)), Outcome(b"", Reply(payload=b"x" * size), float(number)))

    for number in range(5):
        keep(number, 1)
    assert [name.key for name in kept.outcomes] == ["2", "3", "4"]
    keep(5, 9)
    assert [name.key for name in kept.outcomes] == ["4", "5"]
    keep(6, 11)
    assert [name.key for name in kept.outcomes] == ["4", "5"]


def test_a_large_error_is_kept_as_it_is() -> None:
    sim = Sim()
    large = encode_error(BridgeError("REMOTE_ERROR", "x" * 100_000))
    sim.reply(ask(sim), status=ERROR, payload=large)
    assert sim.replies[ask(sim)].payload == large


def test_a_run_that_is_shed_for_its_age_is_handed_over_and_one_that_makes_room_is_not() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=2, heartbeat_limit_s=1000.0))
    blocking = sim.submit()
    first, second = ask(sim, deadline_ms=4000.0), ask(sim, deadline_ms=60_000.0)
    sim.submit(deadline_ms=60_000.0)
    sim.tick(3.0)
    sim.reply(blocking)
    assert sim.error(first).code == "OVERLOADED"
    pushed_out, too = (ask(sim, key="other", priority=PRIORITY_LOW) for _ in range(2))
    for _ in range(3):
        sim.submit(priority=PRIORITY_HIGH)
    assert [sim.error(one).code for one in (pushed_out, too)] == ["OVERLOADED"] * 2
    sim.reply(second, payload=b"paid")
    assert sim.replies[second].payload == b"paid"
