from __future__ import annotations

import pytest

from bridge.protocol import messages as wire
from bridge.protocol.errors import CANCELLED, INVALID_REQUEST, decode_error
from bridge.protocol.messages import ERROR, Credit, ToolCall, ToolReply
from pools.core.events import ClientConnected, ClientGone, Signalled
from tests.support.fleet import Sim, pool


def call(sim: Sim, request_id: int, number: int = 1) -> ToolCall:
    """Have the program of a request call a tool; return the call."""
    worker, attempt = sim.attempt(request_id)
    sim.start(request_id)
    message = ToolCall(request_id=request_id, epoch=attempt.epoch, name="search", number=number, payload=b"args")
    sim.say(worker.worker_id, message)
    return message


def answer(message: ToolCall) -> ToolReply:
    return ToolReply(request_id=message.request_id, epoch=message.epoch, number=message.number, payload=b"found")


def replies(sim: Sim, worker_id: str = "general-1.1") -> list[ToolReply]:
    return sim.sent_to(sim.process(worker_id).peer, ToolReply)


def refused(reply: ToolReply) -> bool:
    error = decode_error(reply.payload or b"")
    return (reply.status, error.code, error.message) == (ERROR, CANCELLED, "the caller that has the tool is gone")


def test_a_tool_call_goes_to_the_caller_and_its_answer_back_to_the_attempt() -> None:
    sim = Sim(pool(size=2))
    request_id, _ = sim.submit(), sim.submit()
    asked = call(sim, request_id)
    assert sim.sent_to(sim.client, ToolCall) == [asked]
    sim.handle(answer(asked), sim.client)
    worker = sim.attempt(request_id)[0].worker_id
    assert replies(sim, worker) == [answer(asked)]
    assert not sim.tables.tool_calls


def test_calls_of_attempts_that_are_not_wanted_are_fenced() -> None:
    sim = Sim(pool(size=2))
    one, two = sim.submit(), sim.submit(deadline_ms=1000.0)
    worker, attempt = sim.attempt(one)
    other, late = sim.attempt(two)
    sim.start(two)
    sim.say(worker.worker_id, ToolCall(request_id=one, epoch=99))
    sim.say(worker.worker_id, ToolCall(request_id=two, epoch=attempt.epoch))
    sim.say(other.worker_id, ToolCall(request_id=one, epoch=attempt.epoch))
    sim.handle(ToolCall(request_id=one, epoch=attempt.epoch), b"a stranger")
    sim.tick(1.1)
    assert two in sim.replies
    sim.say(other.worker_id, ToolCall(request_id=two, epoch=late.epoch))
    assert sim.tables.fenced == 5
    assert not sim.sent_to(sim.client, ToolCall)


def test_answers_of_others_and_of_attempts_that_are_over_are_dropped() -> None:
    sim = Sim()
    request_id = sim.submit(flags=wire.FLAG_IDEMPOTENT)
    asked = call(sim, request_id)
    sim.handle(answer(asked), sim.connect(2))
    sim.handle(wire.ToolReply(request_id=request_id, epoch=asked.epoch + 1), sim.client)
    sim.handle(wire.ToolReply(request_id=12345, epoch=asked.epoch), sim.client)
    sim.die(reason=Signalled(11))
    sim.handle(answer(asked), sim.client)  # it waits to be sent again
    sim.boot("general-1.2")
    sim.tick(1.0)
    sim.handle(answer(asked), sim.client)
    assert not replies(sim)
    assert not replies(sim, "general-1.2")
    again = call(sim, request_id)
    sim.handle(answer(again), sim.client)
    assert replies(sim, "general-1.2") == [answer(again)]
    sim.reply(request_id)
    sim.handle(answer(again), sim.client)
    assert len(replies(sim, "general-1.2")) == 1
    assert not sim.tables.fenced


def test_a_client_that_leaves_while_its_tool_runs_ends_its_requests() -> None:
    sim = Sim()
    request_id = sim.submit()
    asked = call(sim, request_id)
    sim.handle(ClientGone(), sim.client)
    assert [message.request_id for message in sim.sent_to(sim.process().peer, wire.Cancel)] == [request_id]
    call(sim, request_id, number=2)
    assert len(sim.sent_to(sim.client, ToolCall)) == 1
    sim.handle(answer(asked), sim.client)
    assert not replies(sim)


def test_who_shares_a_run_does_not_answer_its_tools() -> None:
    sim = Sim()
    runner = sim.submit(idempotency_key="k")
    other = sim.connect(2)
    sim.submit(peer=other, idempotency_key="other")
    follower = sim.submit(idempotency_key="k")
    asked = call(sim, runner)
    sim.handle(wire.ToolReply(request_id=follower, epoch=asked.epoch, number=1), sim.client)
    assert not replies(sim)


@pytest.mark.parametrize("how", ["cancel", "leave"])
def test_a_program_that_goes_on_for_others_is_told_that_nobody_has_its_tools(how: str) -> None:
    sim = Sim()
    mine = sim.connect(2)
    runner = sim.submit(peer=mine, idempotency_key="k")
    follower = sim.submit(idempotency_key="k")
    asked = [call(sim, runner, number) for number in (1, 2, 3)]
    sim.handle(answer(asked[1]), mine)
    if how == "cancel":
        sim.cancel(runner, peer=mine)
    else:
        sim.handle(ClientGone(), mine)
    assert [(reply.number, refused(reply)) for reply in replies(sim)] == [(2, False), (1, True), (3, True)]
    call(sim, runner, 4)
    assert [reply.number for reply in replies(sim)] == [2, 1, 3, 4]
    assert refused(replies(sim)[-1])
    assert len(sim.sent_to(mine, ToolCall)) == 3
    assert sim.tables.fenced == 0
    assert not sim.tables.tool_calls
    sim.reply(runner, payload=b"done")
    assert sim.replies[follower].payload == b"done"


def test_what_the_coordinator_asks_for_itself_has_no_tools() -> None:
    sim = Sim()
    sim.handle(ClientConnected(0, "coordinator"), b"")
    sim.handle(wire.Request(request_id=1, operation="load"), b"")
    call(sim, 1)
    assert [refused(reply) for reply in replies(sim)] == [True]
    assert not sim.sent_to(b"", ToolCall)


# --- credit ----------------------------------------------------------------------------------------------


def test_credit_goes_to_the_attempt_that_is_out() -> None:
    sim = Sim(pool(slots=1, prefetch=0))
    request_id, queued = sim.submit(event_window=8), sim.submit(event_window=8)
    epoch = sim.attempt(request_id)[1].epoch
    sim.handle(Credit(request_id=request_id, events=4), sim.client)
    sim.handle(Credit(request_id=request_id, events=5, epoch=epoch), sim.client)
    for dropped in (
        Credit(request_id=request_id, events=6, epoch=epoch + 1),
        Credit(request_id=request_id, events=0),
        Credit(request_id=request_id, events=-3),
        Credit(request_id=queued, events=7),
        Credit(request_id=999, events=8),
    ):
        sim.handle(dropped, sim.client)
    sim.handle(Credit(request_id=request_id, events=9), sim.connect(2))
    sent = sim.sent_to(sim.process().peer, Credit)
    assert [(credit.request_id, credit.epoch, credit.events) for credit in sent] == [
        (request_id, epoch, 4), (request_id, epoch, 5),
    ]  # fmt: skip


def test_a_stream_that_goes_on_for_others_waits_for_nobody_to_read_it() -> None:
    sim = Sim()
    runner = sim.submit(idempotency_key="k", event_window=8, flags=wire.FLAG_EVENTS)
    sim.submit(idempotency_key="k")
    sim.start(runner)
    sim.cancel(runner)
    [credit] = sim.sent_to(sim.process().peer, Credit)
    assert credit.epoch == sim.attempt(runner)[1].epoch
    assert credit.events == wire.UNREAD_EVENTS


def test_what_a_tool_asks_for_is_nested_in_the_request_that_called_it() -> None:
    sim = Sim(pool(slots=2))
    request_id = sim.submit()
    stranger = sim.connect(2)
    before = sim.submit(parent_request_id=request_id)
    asked = call(sim, request_id)
    during = sim.submit(parent_request_id=request_id)
    theirs = sim.submit(peer=stranger, parent_request_id=request_id)
    sim.handle(answer(asked), sim.client)
    after = sim.submit(parent_request_id=request_id)
    attempt = sim.attempt(during)[1]
    assert (attempt.depth, attempt.priority, attempt.parent_request_id) == (1, wire.PRIORITY_HIGH, request_id)
    for refused_id in (before, theirs, after):
        assert sim.error(refused_id).code == INVALID_REQUEST
    sim.start(during)
    sim.reply(request_id)
    worker = sim.attempt(during)[0]
    assert [told.request_id for told in sim.sent_to(sim.process(worker.worker_id).peer, wire.Cancel)] == [during]


def test_tools_that_use_the_client_do_not_fill_a_pool() -> None:
    sim = Sim(pool(slots=1, max_queue=100))
    agents = [sim.submit() for _ in range(20)]
    done = 0
    while done < len(agents):
        running = [entry.request_id for entry in sim.tables.requests.values() if entry.worker is not None]
        agent = next(request_id for request_id in running if request_id in agents)
        asked = call(sim, agent)
        sim.pause(agent)
        child = sim.submit(parent_request_id=agent)
        sim.reply(child)
        sim.handle(answer(asked), sim.client)
        sim.resume(agent)
        sim.reply(agent)
        done += 1
    assert all(sim.replies[agent].status == wire.OK for agent in agents)
