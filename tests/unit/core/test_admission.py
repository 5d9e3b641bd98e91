from __future__ import annotations

import math
from typing import Any

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import decode_error
from pools.core.events import ClientConnected, Drain, Exited
from tests.support.fleet import Sim, deployed, pool, undeployed

# --- request ids --------------------------------------------------------------------------------------


def invalid(sim: Sim, peer: bytes) -> list[tuple[int, str, str]]:
    answers = sim.sent_to(peer, wire.Invalid)
    errors = [(answer.request_id, decode_error(answer.payload or b"")) for answer in answers]
    return [(request_id, error.code, error.message) for request_id, error in errors]


def test_a_request_before_hello_is_answered_invalid() -> None:
    sim = Sim()
    sim.handle(wire.Request(request_id=(7 << 40) + 1, operation="echo"), b"stranger")
    assert invalid(sim, b"stranger") == [((7 << 40) + 1, "INVALID_REQUEST", "say Hello first")]
    assert not sim.tables.requests


@pytest.mark.parametrize("request_id", [1, (2 << 40) + 1, (1 << 39), -5])
def test_an_id_of_another_client_is_refused(request_id: int) -> None:
    sim = Sim()
    sim.handle(wire.Request(request_id=request_id, operation="echo"), sim.client)
    [(answered, code, text)] = invalid(sim, sim.client)
    assert (answered, code) == (request_id, "INVALID_REQUEST")
    assert "not one of this client's" in text
    assert not sim.replies


def test_an_id_that_is_not_above_the_last_one_is_a_duplicate() -> None:
    sim = Sim()
    base = wire.request_id_base(1)
    sim.handle(wire.Request(request_id=base + 5, operation="echo"), sim.client)
    for n in (5, 4, 0):
        sim.handle(wire.Request(request_id=base + n, operation="echo"), sim.client)
    sim.handle(wire.Request(request_id=base + 9, operation="echo"), sim.client)
    assert [request_id - base for request_id, _, _ in invalid(sim, sim.client)] == [5, 4, 0]
    assert [request_id - base for request_id in sim.tables.requests] == [5, 9]


def test_a_refused_request_uses_its_id_up() -> None:
    sim = Sim()
    refused = sim.submit(rows=0)
    assert sim.error(refused).code == "INVALID_REQUEST"
    sim.handle(wire.Request(request_id=refused, operation="echo"), sim.client)
    assert "used already" in invalid(sim, sim.client)[0][2]


def test_a_second_hello_changes_nothing() -> None:
    sim = Sim()
    request_id = sim.submit()
    sim.handle(ClientConnected(2, "other"), sim.client)
    assert sim.tables.clients[sim.client].client_no == 1
    assert sim.tables.clients[sim.client].last_id == request_id


def test_control_operations_go_to_the_shell_and_are_not_counted() -> None:
    sim = Sim()
    request_id = sim.submit("dspool.stats")
    [(peer, message)] = sim.control
    assert (peer, message.request_id) == (sim.client, request_id)
    assert sim.fleet.stats(sim.now)["requests"]["accepted"] == 0
    assert request_id not in sim.replies


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("deadline_s", {"deadline_ms": 0.0}),
        ("deadline_s", {"deadline_ms": -1.0}),
        ("deadline_s", {"deadline_ms": 1e308}),
        ("deadline_s", {"deadline_ms": math.inf}),
        ("deadline_s", {"deadline_ms": math.nan}),
        ("rows", {"rows": 0}),
        ("rows", {"rows": -1}),
        ("rows", {"rows": 1025}),
        ("priority", {"priority": 3}),
        ("priority", {"priority": -1}),
        ("operation", {"operation": ""}),
        ("operation", {"operation": "x" * 201}),
    ],
)
def test_an_invalid_field_is_named(path: str, fields: dict[str, Any]) -> None:
    sim = Sim()
    error = sim.error(sim.submit(**fields))
    assert (error.code, error.details["path"], error.retryable) == ("INVALID_REQUEST", path, False)
    assert 1 <= sim.fleet.stats(sim.now)["requests"]["rejected"] <= 1024


@pytest.mark.parametrize(
    "fields",
    [
        {"deadline_ms": 366 * 86_400_000.0}, {"deadline_ms": 0.001}, {"rows": 1024}, {"rows": 1},
        {"priority": wire.PRIORITY_HIGH}, {"priority": wire.PRIORITY_LOW}, {"operation": "x" * 200},
        {"lm": "default"},
    ],
)  # fmt: skip
def test_the_ends_of_each_range_are_accepted(fields: dict[str, Any]) -> None:
    sim = Sim()
    assert sim.submit(**fields) in sim.tables.requests


def test_an_absurd_number_of_rows_does_not_spoil_the_count() -> None:
    sim = Sim()
    sim.submit(rows=1 << 62)
    assert sim.fleet.stats(sim.now)["requests"]["rejected"] <= 1024


def test_a_pool_that_does_not_exist_is_named_with_close_ones() -> None:
    sim = Sim(pool("general"), pool("neural"))
    error = sim.error(sim.submit(pool="neurl"))
    assert (error.code, error.details["suggestions"][0]) == ("NOT_FOUND", "neural")


def test_an_unknown_language_model_is_named_with_close_ones() -> None:
    sim = Sim(lms=frozenset({"default", "gpt"}))
    error = sim.error(sim.submit(lm="gtp"))
    assert (error.code, error.details["suggestions"]) == ("NOT_FOUND", ["gpt"])
    assert "`lms:`" in error.message


def test_nothing_is_accepted_while_draining() -> None:
    sim = Sim()
    sim.submit()
    sim.handle(Drain(30.0))
    error = sim.error(sim.submit())
    assert (error.code, error.retryable) == ("UNAVAILABLE", True)
    assert "shutting down" in error.message


def test_a_pool_that_is_off_says_how_to_turn_it_on() -> None:
    sim = Sim(pool(), pool("neural", size=0))
    error = sim.error(sim.submit(pool="neural"))
    assert error.code == "UNAVAILABLE"
    assert "pools.neural.size" in error.message


def test_a_client_has_so_many_rows_in_flight_and_no_more() -> None:
    sim = Sim(client_rows=10)
    other = sim.connect(2)
    first = sim.submit(rows=6)
    assert sim.submit(rows=4) in sim.tables.requests
    error = sim.error(sim.submit())
    assert (error.code, error.retryable) == ("OVERLOADED", True)
    assert "limit 10" in error.message
    assert sim.submit(peer=other) in sim.tables.requests
    sim.reply(first, status=wire.ROWS)
    assert sim.submit(rows=6) in sim.tables.requests


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=3))
    running = sim.submit()
    for _ in range(3):
        sim.submit()
    error = sim.error(sim.submit())
    assert (error.code, error.retryable) == ("OVERLOADED", True)
    assert error.details["retry_after_s"] == 0.05  # never at once
    sim.reply(running, run_ms=2000.0)
    assert sim.submit() in sim.tables.requests
    error = sim.error(sim.submit())
    assert error.details["retry_after_s"] == 2.0  # rows of 2 s in one lane: then there is a place
    assert "2.00 s" in error.message


def test_retry_after_is_at_most_a_minute() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=1))
    sim.reply(sim.submit(), run_ms=1e6)
    sim.submit()
    sim.submit()
    assert sim.error(sim.submit()).details["retry_after_s"] == 60.0


def test_queue_length_counts_rows() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=10))
    sim.submit()
    sim.submit(rows=8)
    assert sim.error(sim.submit(rows=3)).code == "OVERLOADED"
    assert sim.submit(rows=2) in sim.tables.requests
    assert sim.pool().rejected == 3


def test_a_chunk_larger_than_the_queue_may_wait_alone() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=10))
    sim.submit()
    assert sim.submit(rows=100) in sim.tables.requests
    assert sim.error(sim.submit()).code == "OVERLOADED"


def test_without_a_queue_only_what_runs_at_once_is_accepted() -> None:
    sim = Sim(pool(slots=1, prefetch=0, max_queue=0))
    running = sim.submit()
    assert running in sim.tables.requests
    assert sim.error(sim.submit()).code == "OVERLOADED"
    sim.reply(running)
    assert sim.submit() in sim.tables.requests


def test_a_pool_that_cannot_boot_answers_unavailable_until_one_is_ready() -> None:
    sim = Sim(ready=False)
    waiting = sim.submit()
    sim.die(reason=Exited(3), log_tail=("ImportError: no module named nothing",))
    for request_id in (waiting, sim.submit()):
        error = sim.error(request_id)
        assert error.code == "UNAVAILABLE"
        assert "ImportError" in error.message
    sim.tick(0.2)
    assert sim.entry("general-1.2").state == "launching"
    assert sim.error(sim.submit()).code == "UNAVAILABLE"
    sim.boot("general-1.2")
    assert sim.submit() in sim.tables.requests


# --- acceptance ----------------------------------------------------------------------------------------------


def test_a_request_waits_for_the_first_worker_to_boot() -> None:
    sim = Sim(ready=False)
    request_id = sim.submit()
    assert request_id in sim.queued()
    sim.boot()
    assert sim.attempt(request_id)[0].worker_id == "general-1.1"


def test_an_operation_runs_where_it_is_at_home_unless_told_otherwise() -> None:
    sim = Sim(pool("general"), pool("neural"), homes={"embed": "neural"})
    assert sim.attempt(sim.submit("embed"))[0].worker_id == "neural-1.1"
    assert sim.attempt(sim.submit("echo"))[0].worker_id == "general-1.1"
    assert sim.attempt(sim.submit("embed", pool="general"))[0].worker_id == "general-1.1"


def test_a_program_runs_in_its_pool() -> None:
    sim = Sim(pool("general"), pool("neural"))
    sim.handle(deployed("qa", pool="neural"))
    assert sim.attempt(sim.submit("qa"))[0].worker_id == "neural-1.1"
    sim.handle(undeployed("qa"))
    assert sim.attempt(sim.submit("qa"))[0].worker_id == "general-1.1"


@pytest.mark.parametrize(
    ("asked_ms", "default_s", "deadline_s"), [(1500.0, 60.0, 1.5), (None, 60.0, 60.0), (None, None, None)]
)
def test_the_deadline_is_the_callers_or_the_pools(
    asked_ms: float | None, default_s: float | None, deadline_s: float | None
) -> None:
    sim = Sim(pool(default_deadline_s=default_s))
    request_id = sim.submit(deadline_ms=asked_ms)
    assert sim.tables.requests[request_id].deadline == (None if deadline_s is None else sim.now + deadline_s)
    assert sim.attempt(request_id)[1].deadline_ms == (None if deadline_s is None else pytest.approx(deadline_s * 1e3))


def test_the_attempt_carries_the_request() -> None:
    sim = Sim()
    peer = sim.connect(5, principal="alice")
    request_id = sim.submit(
        "qa", peer=peer, payload=b"xyz", rows=3, lm="default", traceparent="tp", depth=9,
        flags=wire.FLAG_EVENTS, principal="mallory", epoch=99,
    )  # fmt: skip
    _, attempt = sim.attempt(request_id)
    assert attempt == wire.Request(
        request_id=request_id, operation="qa", payload=b"xyz", rows=3, lm="default", traceparent="tp",
        depth=0, flags=wire.FLAG_EVENTS, principal="alice", pool="general", epoch=1,
    )  # fmt: skip
