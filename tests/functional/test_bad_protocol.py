"""Sound messages at the wrong time, of the wrong kind or by the wrong peer, one test for each kind."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from bridge.protocol import codec
from bridge.protocol.errors import decode_error
from bridge.protocol.messages import (
    Cancel,
    CancelReply,
    Event,
    Heartbeat,
    Hello,
    Invalid,
    Refused,
    Reply,
    Request,
    Welcome,
)
from bridge.protocol.values import encode_value
from tests.support.bad_peers import House
from tests.support.coordinator import CoordinatorProcess, WireClient, code_of, value_of
from tests.support.fleet import Sim
from tests.support.waiting import wait_until

SHORT_S = 0.2


@pytest.fixture(scope="module")
def coordinator() -> Iterator[CoordinatorProcess]:
    with tempfile.TemporaryDirectory(prefix="p") as folder, CoordinatorProcess(Path(folder)) as process:
        assert process.next_report() == {"event": "ready"}
        yield process


@pytest.fixture
def house(coordinator: CoordinatorProcess) -> Iterator[House]:
    with WireClient(coordinator.endpoint) as good:
        found = House(coordinator, good)
        yield found
        found.serves()


@contextlib.contextmanager
def dealer(endpoint: str, identity: bytes) -> Iterator[zmq.Socket[bytes]]:
    """Give a DEALER that chose its own name."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as own:
        own.setsockopt(zmq.LINGER, 0)
        own.setsockopt(zmq.ROUTING_ID, identity)
        own.connect(endpoint)
        yield own


def _kind(value: object) -> str:
    return type(value).__name__


def hello() -> list[bytes]:
    return codec.encode_frames([Hello(pid=os.getpid())])[0]


def welcomed(own: zmq.Socket[bytes], timeout_s: float) -> bool:
    """Return whether a Welcome comes within so long."""
    own.send_multipart(hello())
    if not own.poll(int(timeout_s * 1000)):
        return False
    return type(codec.decode(own.recv_multipart()).messages[0]) is Welcome


# --- types and identities -----------------------------------------------------------------------------


def test_a_message_of_an_unknown_type_is_skipped_and_counted(house: House) -> None:
    unknown, malformed = house.wire("unknown"), house.wire("malformed")
    with house.stranger() as peer:
        request_id = next(peer.ids)
        echo = Request(request_id=request_id, operation="echo", payload=encode_value(2))
        peer.send_raw(msgpack.packb([1, 99, 5, None, "?"]) + codec.encode(echo)[0], b"its body")
        assert value_of(peer.expect(Reply)) == 2
    assert (house.wire("unknown"), house.wire("malformed")) == (unknown + 1, malformed)


def test_the_name_of_a_connected_peer_cannot_be_taken(house: House) -> None:
    with dealer(house.endpoint, b"mine") as owner:
        assert welcomed(owner, 10.0)
        with dealer(house.endpoint, b"mine") as thief:
            assert not welcomed(thief, SHORT_S)
        assert not welcomed(owner, SHORT_S)  # a second Hello, counted and not answered: it is still the owner's
        request = Request(request_id=0, operation="echo", payload=encode_value(1))
        owner.send_multipart(codec.encode_frames([request])[0])
        assert owner.poll(10_000)
        assert type(codec.decode(owner.recv_multipart()).messages[0]) is Invalid


def test_a_reply_from_a_client_settles_nothing(house: House) -> None:
    before = house.wire("malformed")
    held = house.good.request("sleep", {"seconds": 0.3})
    with house.stranger() as forger:
        for epoch in range(5):
            forger.send(Reply(request_id=held, epoch=epoch, payload=encode_value("forged")))
        assert forger.call("echo", 1) == 1
    assert value_of(house.good.expect(Reply)) == {"seconds": 0.3}
    assert house.wire("malformed") == before + 5


def test_an_event_from_a_client_reaches_nobody(house: House) -> None:
    held = house.good.request("sleep", {"seconds": 0.2}, flags=1)
    with house.stranger() as forger:
        forger.send(Event(request_id=held, epoch=1, kind="token", sequence=1))
        assert forger.call("echo", 1) == 1
    house.good.expect(Reply)
    with pytest.raises(AssertionError, match="no Event"):
        house.good.expect(Event, timeout_s=0.0)


def test_events_with_gaps_pass_as_they_are_and_none_passes_behind_the_end() -> None:
    sim = Sim()
    request_id = sim.submit(flags=1)
    worker, attempt = sim.attempt(request_id)
    for sequence in (1, 5, 3):
        sim.say(worker.worker_id, Event(request_id=request_id, epoch=attempt.epoch, sequence=sequence))
    sim.reply(request_id)
    sim.say(worker.worker_id, Event(request_id=request_id, epoch=attempt.epoch, sequence=6))
    assert [event.sequence for event in sim.sent_to(sim.client, Event)] == [1, 5, 3]


# --- hellos -------------------------------------------------------------------------------------------


def test_a_second_hello_is_counted_and_the_first_one_holds(house: House) -> None:
    before = house.wire("malformed")
    with house.stranger() as peer:
        held = peer.request("sleep", {"seconds": 0.1})
        peer.send(Hello(pid=os.getpid(), principal="somebody else"))
        assert peer.expect(Reply).request_id == held
        assert peer.call("echo", 1) == 1
    assert house.wire("malformed") == before + 1


def test_work_before_hello_is_invalid_and_hello_is_still_taken(house: House) -> None:
    with house.stranger(hello=False) as peer:
        peer.send(Request(request_id=9, operation="echo", payload=encode_value(1)))
        assert peer.expect(Invalid).request_id == 9
        peer.send(Hello(pid=os.getpid()))
        assert peer.expect(Welcome).client_no > 0


@pytest.mark.parametrize("principal", ["evil\0", "x" * 201])
def test_a_principal_that_no_store_takes_is_refused(house: House, principal: str) -> None:
    with house.stranger(hello=False) as peer:
        peer.send(Hello(pid=os.getpid(), principal=principal))
        error = decode_error(peer.expect(Refused).payload or b"")
        assert (error.code, error.details) == ("INVALID_REQUEST", {"path": "principal"})
        peer.send(Hello(pid=os.getpid(), principal="x" * 200))
        assert peer.expect(Welcome).client_no > 0


@pytest.mark.parametrize("version", [0, 999])
def test_another_version_is_refused_whatever_it_says(house: House, version: int) -> None:
    with house.stranger(hello=False) as peer:
        peer.send_raw(msgpack.packb([version, 1, 0, b"", "9.9"]))
        error = decode_error(peer.expect(Refused).payload or b"")
        assert error.code == "VERSION_MISMATCH"
        assert str(version) in error.message


# --- fields -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline_ms", [0.0, -1.0, -1e308, 1e308])
def test_a_deadline_that_is_none_is_refused(house: House, deadline_ms: float) -> None:
    assert code_of(house.good.call("echo", 1, deadline_ms=deadline_ms)) == "INVALID_REQUEST"


def test_a_deadline_in_words_is_a_bad_field(house: House) -> None:
    with house.stranger() as peer:
        peer.send_raw(msgpack.packb([1, 3, 77, b"\x01", "echo", "", "", "", 1, "soon"]))
        assert peer.expect(Invalid).request_id == 77
        assert peer.call("echo", 1) == 1


@pytest.mark.parametrize("request_id", ["", "x" * (1 << 18), b"x" * 60_000, None, 1.5, [1]], ids=_kind)
def test_an_id_of_another_kind_is_a_bad_field(house: House, request_id: object) -> None:
    house.misreads(msgpack.packb([1, 3, request_id, b"\x01", "echo"]))


def test_an_id_of_a_megabyte_is_not_read(house: House) -> None:
    house.misreads(msgpack.packb([1, 3, "x" * (1 << 20), b"\x01", "echo"]))


def test_an_id_that_was_used_runs_nothing(house: House) -> None:
    used = house.good.request("echo", 1)
    house.good.expect(Reply)
    accepted = house.good.call("dspool.stats")["requests"]["accepted"]
    for request_id in (used, used - 1, 0):
        house.good.send(Request(request_id=request_id, operation="echo", payload=encode_value(1)))
        assert house.good.expect(Invalid).request_id == request_id
    assert house.good.call("dspool.stats")["requests"]["accepted"] == accepted


def test_what_is_unknown_finished_or_anothers_cannot_be_cancelled(house: House) -> None:
    held = house.good.request("sleep", {"seconds": 0.3})
    finished = house.good.request("echo", 1)
    house.good.expect(Reply)
    with house.stranger() as other:
        for request_id in (held, finished, held + 1000, 0, 2**62):
            other.send(Cancel(request_id=request_id, force=True))
            assert other.expect(CancelReply).stage == "finished"
    house.good.send(Cancel(request_id=finished))
    assert house.good.expect(CancelReply).stage == "finished"
    assert value_of(house.good.expect(Reply)) == {"seconds": 0.3}


# --- floods and other protocols -----------------------------------------------------------------------


def test_a_flood_of_beats_from_a_client_mutes_it_alone(house: House) -> None:
    with house.stranger() as peer:
        peer.send(*[Heartbeat(rss_bytes=1)] * 1000)
        while not peer.expect(Invalid).muted:
            pass
        assert house.good.call("echo", 1) == 1


def test_a_flood_of_beats_from_a_worker_leaves_only_the_last() -> None:
    sim = Sim()
    entry = next(iter(sim.tables.workers.values()))
    timers = sim.fleet.next_timer()
    for rss in range(2_000):
        sim.say("general-1.1", Heartbeat(rss_bytes=rss, attempts=[(number, 1.0, 0, 0, 0.0) for number in range(64)]))
    assert entry.rss_bytes == 1_999
    assert len(entry.progress) == 64
    assert sim.fleet.next_timer() == timers
    assert not sim.fleet.sends_to_workers
    assert sim.submit()


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n" + b"x" * 70_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + bytes(48) + b"\xff" * 64,
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00CURVE" + bytes(47) + b"\x04\x26\x05HELLO" + bytes(194),
        b"",
    ],
    ids=["http", "tls", "garbage behind a greeting", "curve", "nothing"],
)
def test_other_protocols_at_the_socket_end_their_connection_only(house: House, greeting: bytes) -> None:
    clients = house.wire("clients")
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(house.endpoint.removeprefix("ipc://"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # hung up on before all was said
                line.sendall(greeting)
    assert house.good.call("echo", 1) == 1
    wait_until(lambda: house.wire("clients") <= clients, 5.0, "no client more than before")
