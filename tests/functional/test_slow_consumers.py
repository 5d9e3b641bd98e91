"""Clients that do not read: they lose what they had under way, learn it when they read again, and cost nobody else."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from bridge.protocol import codec
from bridge.protocol.errors import SLOW_CONSUMER, decode_error
from bridge.protocol.messages import Hello, Invalid, Message, Reply
from bridge.transport import Dealer, Router
from orchestrator.config import load
from orchestrator.coordinator.births import Births
from orchestrator.coordinator.clients import Clients, Identity
from orchestrator.coordinator.event_log import EventLog
from orchestrator.coordinator.outbox import Outbox
from orchestrator.coordinator.peers import BAD_MESSAGES
from orchestrator.coordinator.run_counter import RunCounter
from orchestrator.coordinator.slow import Farewells, SlowLimits
from orchestrator.coordinator.watching import Watching
from pools.core.fleet import Fleet
from tests.support.coordinator import ROOT, CoordinatorProcess, WireClient
from tests.support.waiting import wait_until

SOON_S = 10.0
MB = 1_000_000
REPLIES = 40
# Of 200 kB: far more than any pipe holds. A pipe in which nothing moves for so long is full.
_ENDLESS, _STILL_S = 10_000, 0.2

# It has large replies under way, of a worker that is stopped, says so, and is stopped itself before that one goes on.
CLIENT = f"""
import json, sys
from orchestrator import Client, errors

client = Client(sys.argv[1])
futures = [client.submit("echo", bytes({MB})) for _ in range({REPLIES})]
client.stats()
print("all accepted", flush=True)
outcomes = []
for future in futures:
    try:
        outcomes.append("ok" if future.result(20) == bytes({MB}) else "wrong")
    except errors.Unavailable as error:
        outcomes.append(error.code)
try:
    client.execute("echo", 1)
except errors.DspoolError as error:
    print(json.dumps({{"outcomes": outcomes, "code": error.code, "text": str(error), "retry": error.retryable}}))
"""


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoordinatorProcess]:
    pools = {"general": {"size": 1, "slots": 1}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    # Without shared memory: what waits for these clients is what is in frames.
    limits = {"shared_bytes": 0}
    with CoordinatorProcess(tmp_path_factory.mktemp("c"), pools=pools, limits=limits) as coordinator:
        assert coordinator.next_report()["event"] == "ready"
        yield coordinator


def test_a_stopped_client_is_told_when_it_goes_on(coordinator: CoordinatorProcess) -> None:
    with WireClient(coordinator.endpoint) as operator:
        [worker] = [row["pid"] for row in operator.call("dspool.workers")]
    os.kill(worker, signal.SIGSTOP)
    with (
        WireClient(coordinator.endpoint) as operator,
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, coordinator.endpoint], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "all accepted\n"
            process.send_signal(signal.SIGSTOP)
            os.kill(worker, signal.SIGCONT)
            wait_until(lambda: operator.call("dspool.stats")["wire"]["muted_peers"] == 1, SOON_S, "its muting")
            stats = operator.call("dspool.stats")
            assert stats["requests"]["queued"] == stats["requests"]["in_flight"] == 0
            assert stats["wire"]["clients"] == 1
            assert stats["wire"]["dropped"] > 0
            assert operator.call("echo", "x") == "x"
            process.send_signal(signal.SIGCONT)
            told = json.loads(process.communicate(timeout=SOON_S)[0])
        finally:
            process.kill()
    assert set(told["outcomes"]) == {"ok", SLOW_CONSUMER}
    assert told["outcomes"] == sorted(told["outcomes"], key=lambda outcome: outcome != "ok")  # first what was sent
    assert told["code"] == SLOW_CONSUMER
    assert told["retry"]
    assert "Connect again" in told["text"]


def test_the_operator_reads_of_it(coordinator: CoordinatorProcess) -> None:
    with WireClient(coordinator.endpoint) as operator:
        health: dict[str, Any] = {}

        def told() -> bool:
            health.update(operator.call("dspool.health"))
            return bool(health["issues"])

        wait_until(told, SOON_S, "an issue")
        [issue] = [issue for issue in health["issues"] if issue["name"] == "peers_muted"]
        assert "it reads too slowly: it read nothing for 2." in issue["text"]
        assert health["status"] == "degraded"


def test_a_muted_peer_does_not_hide_the_loss_of_another(coordinator: CoordinatorProcess) -> None:
    with WireClient(coordinator.endpoint) as operator, WireClient(coordinator.endpoint) as bad:
        lost = WireClient(coordinator.endpoint)
        for _ in range(BAD_MESSAGES):
            bad.send_raw(b"\xc1")
        assert bad.expect(Invalid).muted
        wait_until(lambda: operator.call("dspool.stats")["wire"]["clients"] == 2, SOON_S, "those of before to be gone")
        lost.close()  # says no Bye, and its process lives
        wait_until(lambda: operator.call("dspool.stats")["wire"]["clients"] == 1, SOON_S, "the loss")


# --- the pieces, with a clock that tests move ---------------------------------------------------------


class Pipe:
    """A ROUTER and one DEALER of it that reads when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        endpoint = f"ipc://{folder / 's'}"
        self.router = Router(self.context, endpoint, max_frame_bytes=-1, watched=True)
        self.dealer = Dealer(self.context, endpoint)
        hello = codec.encode_frames([Hello(role="client")])[0]
        wait_until(lambda: self.dealer.send(hello).name == "YES", SOON_S, "a connection")
        frames: list[bytes] | None = None

        def heard() -> bool:
            nonlocal frames
            frames = self.router.receive()
            return frames is not None

        wait_until(heard, SOON_S, "its first word")
        assert frames is not None
        self.peer = frames[0]

    def fill(self, outbox: Outbox) -> int:
        """Send until the pipe takes no more, and nothing moves in it for a moment; return how many were sent."""
        for sent in range(1, _ENDLESS):
            outbox.send([(self.peer, Reply(request_id=sent, payload=bytes(200_000)))], 100.0)
            still_until = time.monotonic() + _STILL_S
            while not outbox.empty:
                if time.monotonic() > still_until:
                    return sent
                self.router.socket.poll(10)  # nothing comes: for so long it lets go what is on its way
                outbox.heard(self.peer, 100.0)
        raise AssertionError("the pipe takes all")

    def read(self) -> list[Message]:
        """Read what is there, until nothing comes for a moment."""
        messages: list[Message] = []
        while self.dealer.socket.poll(200):
            messages += codec.decode(self.dealer.socket.recv_multipart()).messages
            assert len(messages) < _ENDLESS
        return messages

    def close(self) -> None:
        self.dealer.close()
        self.router.close()
        self.context.term()


@pytest.fixture
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    pipe = Pipe(tmp_path_factory.mktemp("p"))
    yield pipe
    pipe.close()


def replies(count: int, size: int) -> list[Reply]:
    return [Reply(request_id=n + 1, payload=bytes(size)) for n in range(count)]


@pytest.mark.parametrize(
    ("limits", "slow_after_s"),
    [
        pytest.param(SlowLimits(stalled_s=9.0, big_stalled_s=1.0, big_bytes=MB), 1.0, id="much-waits"),
        pytest.param(SlowLimits(stalled_s=9.0, big_stalled_s=1.0, big_bytes=9 * MB), 9.0, id="little-waits"),
    ],
)
def test_a_client_is_slow_by_what_waits_and_for_how_long(pipe: Pipe, limits: SlowLimits, slow_after_s: float) -> None:
    outbox = Outbox(pipe.router, window_bytes=MB, limits=limits)
    assert outbox.send([(pipe.peer, reply) for reply in replies(5, MB)], 100.0) == set()
    assert outbox.retry(100.0 + slow_after_s) == (set(), {})
    gone, slow = outbox.retry(100.0 + slow_after_s + 0.1)
    assert gone == set()
    assert slow == {pipe.peer: f"it read nothing for {slow_after_s + 0.1:.1f} s while 3.8 MiB waited for it"}
    assert outbox.empty
    assert [message.request_id for message in pipe.read() if isinstance(message, Reply)] == [1]


# The pipe never takes nothing for long here, and 2 MB is much.
_TRICKLE = SlowLimits(stalled_s=99.0, big_stalled_s=5.0, big_bytes=2 * MB, waited=((2 * MB, 4.0), (20 * MB, 0.0)))


def read_all(pipe: Pipe, outbox: Outbox, count: int, replies_per_s: int) -> tuple[int, dict[bytes, str]]:
    """Have the client read replies of 1 MB at a rate; return how many of `count` it got before it was too slow."""
    for got in range(count):
        now = 101.0 + got // replies_per_s
        assert pipe.dealer.socket.poll(1000)
        outbox.taken(pipe.peer, sum(map(len, pipe.dealer.socket.recv_multipart())), now)
        gone, slow = outbox.retry(now)
        assert gone == set()
        if slow:
            return got + 1, slow
    return count, {}


def test_a_client_that_reads_a_little_is_slow_by_what_has_waited(pipe: Pipe) -> None:
    outbox = Outbox(pipe.router, window_bytes=MB, limits=_TRICKLE)
    outbox.send([(pipe.peer, reply) for reply in replies(12, MB)], 100.0)
    got, slow = read_all(pipe, outbox, 12, replies_per_s=1)
    assert got == 5
    assert slow == {
        pipe.peer: "it reads less than it asks for: 5.7 MiB waited for it, the oldest answer for 5.0 s",
    }
    assert outbox.empty


@pytest.mark.parametrize(
    ("mib", "waited_s", "slow"),
    [(8, 3600.0, False), (9, 59.0, False), (9, 61.0, True), (200, 10.0, False), (600, 4.0, False), (600, 6.0, True),
     (2047, 4.0, False), (2049, 0.01, True)],
)  # fmt: skip
def test_the_more_waits_the_less_long_it_may(mib: int, waited_s: float, slow: bool) -> None:
    assert bool(SlowLimits().judge(mib << 20, 0.01, waited_s)) is slow


def test_a_few_of_the_largest_answers_may_wait() -> None:
    assert SlowLimits.of(64 << 20) == SlowLimits()
    limits = SlowLimits.of(1 << 30)
    assert not limits.judge(8 << 30, 0.01, 0.01)
    assert limits.judge((8 << 30) + 1, 0.01, 0.01)


def test_what_waits_while_the_coordinator_stands_still_does_not_count(pipe: Pipe) -> None:
    outbox = Outbox(pipe.router, window_bytes=MB, limits=_TRICKLE)
    outbox.send([(pipe.peer, reply) for reply in replies(12, MB)], 0.0)
    assert outbox.retry(0.1) == (set(), {})
    got, slow = read_all(pipe, outbox, 12, replies_per_s=1)  # at 101.0 it goes on
    assert got == 5
    assert "the oldest answer for 4.1 s" in slow[pipe.peer]


def test_a_client_that_reads_what_it_asked_for_is_not_slow(pipe: Pipe) -> None:
    outbox = Outbox(pipe.router, window_bytes=MB, limits=_TRICKLE)
    outbox.send([(pipe.peer, reply) for reply in replies(18, MB)], 100.0)
    assert read_all(pipe, outbox, 18, replies_per_s=4) == (18, {})
    assert outbox.empty


@pytest.mark.parametrize(("size", "few", "many"), [(MB, 19, 22), (1, 60_000, 80_000)])
def test_there_is_a_limit_to_what_waits(pipe: Pipe, size: int, few: int, many: int) -> None:
    """However fast it is read, and however small the answers are: each of these is a frame of its own."""
    outbox = Outbox(pipe.router, window_bytes=MB, limits=_TRICKLE)
    outbox.send([(pipe.peer, reply) for reply in replies(1, MB)], 100.0)
    for reply in replies(few, size):
        outbox.send([(pipe.peer, reply)], 100.0)
    assert outbox.retry(100.1) == (set(), {})
    for reply in replies(many - few, size):
        outbox.send([(pipe.peer, reply)], 100.1)
    gone, slow = outbox.retry(100.2)
    assert gone == set()
    assert "MiB waited for it, the oldest answer for 0.2 s" in slow[pipe.peer]
    assert outbox.empty
    assert outbox.dropped == many


def test_what_waits_for_a_worker_is_never_dropped(pipe: Pipe) -> None:
    outbox = Outbox(pipe.router)
    sent = pipe.fill(outbox)
    assert outbox.retry(5000.0) == (set(), {})
    got = pipe.read()
    assert outbox.retry(5001.0) == (set(), {})
    assert [message.request_id for message in got + pipe.read() if isinstance(message, Reply)] == [*range(1, sent + 1)]


def test_the_last_word_waits_for_room_and_comes_last(pipe: Pipe) -> None:
    outbox, farewells = Outbox(pipe.router), Farewells(pipe.router)
    pipe.fill(outbox)
    outbox.forget(pipe.peer)
    farewells.say(pipe.peer, "it sleeps")
    assert farewells.peers == {pipe.peer}
    before = pipe.read()
    assert {type(message) for message in before} == {Reply}
    farewells.heard(b"somebody else")
    assert pipe.read() == []
    farewells.retry()
    [last] = pipe.read()
    assert isinstance(last, Invalid)
    assert last.muted
    error = decode_error(last.payload or b"")
    assert (error.code, error.retryable) == (SLOW_CONSUMER, True)
    assert "it sleeps" in error.message
    farewells.retry()
    farewells.heard(pipe.peer)
    assert pipe.read() == []


@pytest.mark.parametrize("known", [True, False])
def test_who_never_said_hello_is_muted_without_a_last_word(pipe: Pipe, known: bool, tmp_path: Path) -> None:
    settings = load(environ={}, overrides={"pools": {"general": {"size": 1}}})
    fleet = Fleet(settings.fleet, lms=frozenset(), random=random.Random(0).random, open_page=lambda _: [])
    identity = Identity(run_id="run", version="1", pid=os.getpid(), started_ticks=0)
    watching = Watching()
    births = Births(settings, run_id="run", endpoint="ipc:///none")
    events = EventLog(RunCounter.begin(tmp_path))
    clients = Clients(pipe.router, fleet, settings, identity, watching, births, events)
    try:
        if known:
            pipe.dealer.send(codec.encode_frames([Hello(role="client", pid=os.getpid())])[0])

            def met() -> int:
                clients.read(100.0, 1)
                return len(clients)

            wait_until(met, SOON_S, "a client")
        pipe.fill(clients.outbox)
        clients.retry(200.0)
        assert clients.peers.is_muted(pipe.peer)
        assert len(clients) == 0
        assert [type(message) for message in pipe.read()][-1] is (Invalid if known else Reply)
    finally:
        clients.close()
        watching.close()


def test_who_is_gone_is_told_nothing(pipe: Pipe) -> None:
    farewells = Farewells(pipe.router)
    farewells.say(b"nobody", "it sleeps")
    assert not farewells.peers
