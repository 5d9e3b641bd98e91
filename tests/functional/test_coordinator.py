"""The coordinator over its wire: good clients, bad ones, and the ways it ends. Real processes, real sockets."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest

from bridge.protocol.errors import decode_error
from bridge.protocol.messages import (
    Bye,
    Cancel,
    CancelReply,
    Heartbeat,
    Hello,
    Invalid,
    Refused,
    Reply,
    Request,
    Taken,
)
from bridge.protocol.values import encode_value
from tests.support import coordinator as support
from tests.support.coordinator import CoordinatorProcess, WireClient, code_of, gone, value_of
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def coordinator() -> Iterator[CoordinatorProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="c") as folder,
        CoordinatorProcess(Path(folder), faults=True, limits={"message_bytes": 1 << 20}) as process,
    ):
        assert process.next_report() == {"event": "ready"}
        yield process


@pytest.fixture
def client(coordinator: CoordinatorProcess) -> Iterator[WireClient]:
    with WireClient(coordinator.endpoint) as wire:
        yield wire


def test_welcome_names_the_run_and_the_process(coordinator: CoordinatorProcess, client: WireClient) -> None:
    welcome = client.welcome
    assert welcome.run_id == coordinator.bound["run_id"]
    assert welcome.pid == coordinator.process.pid
    assert welcome.message_bytes == 1 << 20


def test_clients_get_numbers_of_their_own(coordinator: CoordinatorProcess, client: WireClient) -> None:
    with WireClient(coordinator.endpoint) as other:
        assert other.welcome.client_no > client.welcome.client_no


def test_an_echo_goes_through_a_worker(client: WireClient) -> None:
    request_id = client.request("echo", {"a": [1, None, b"x"]})
    reply = client.expect(Reply)
    assert value_of(reply) == {"a": [1, None, b"x"]}
    assert (reply.request_id, reply.worker, reply.pool, reply.attempt) == (request_id, "general-1.1", "general", 1)
    assert 0 <= reply.run_ms <= reply.total_ms


def test_a_large_payload_travels_beside_its_header(client: WireClient) -> None:
    blob = bytes(range(256)) * 2000
    assert client.call("echo", blob) == blob


# --- bad peers --------------------------------------------------------------------------------------


def test_a_request_before_hello_is_answered_invalid(coordinator: CoordinatorProcess) -> None:
    with WireClient(coordinator.endpoint, hello=False) as stranger:
        stranger.send(Request(request_id=1, operation="echo", payload=encode_value(1)))
        invalid = stranger.expect(Invalid)
        assert invalid.request_id == 1
        assert "Hello" in decode_error(invalid.payload or b"").message


def test_a_hello_for_another_run_is_refused(coordinator: CoordinatorProcess) -> None:
    with WireClient(coordinator.endpoint, hello=False) as stranger:
        stranger.send(Hello(run_id="0" * 32))
        assert decode_error(stranger.expect(Refused).payload or b"").code == "UNAVAILABLE"


def test_another_protocol_version_is_refused_naming_both(coordinator: CoordinatorProcess) -> None:
    with WireClient(coordinator.endpoint, hello=False) as stranger:
        stranger.send_raw(msgpack.packb([999, 1, 0, b"", "9.9"]))
        error = decode_error(stranger.expect(Refused).payload or b"")
        assert error.code == "VERSION_MISMATCH"
        assert "999" in error.message
        assert "protocol 1" in error.message


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"deadline_ms": 0.0}, "deadline_s"),
        ({"deadline_ms": -5.0}, "deadline_s"),
        ({"deadline_ms": float("nan")}, "deadline_s"),
        ({"deadline_ms": float("inf")}, "deadline_s"),
        ({"deadline_ms": 1e308}, "deadline_s"),
        ({"rows": 0}, "rows"),
        ({"rows": 1 << 40}, "rows"),
        ({"priority": 99}, "priority"),
        ({"operation": ""}, "operation"),
        ({"operation": "x" * 201}, "operation"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(client: WireClient, change: dict[str, Any], path: str) -> None:
    outcome = client.call(change.pop("operation", "echo"), 1, **change)
    assert code_of(outcome) == "INVALID_REQUEST"
    assert outcome.details["path"] == path


def test_unknown_names_suggest_the_nearest(client: WireClient) -> None:
    for operation, fields, suggestion in [
        ("echi", {}, "echo"),
        ("echo", {"pool": "generl"}, "general"),
        ("echo", {"lm": "defalt"}, "default"),
        ("dspool.stat", {}, "dspool.stats"),
    ]:
        outcome = client.call(operation, None, **fields)
        assert code_of(outcome) == "NOT_FOUND"
        assert suggestion in outcome.details["suggestions"]


def test_ids_of_others_and_used_ids_are_invalid(client: WireClient) -> None:
    used = client.request("echo", 1)
    client.expect(Reply)
    for request_id in (used, used + (1 << 40), 0):
        client.send(Request(request_id=request_id, operation="echo", payload=encode_value(1)))
        assert client.expect(Invalid).request_id == request_id


def test_a_bad_field_is_answered_and_the_peer_lives_on(client: WireClient) -> None:
    client.send_raw(msgpack.packb([1, 3, 77, b"", "echo", 5]))
    invalid = client.expect(Invalid)
    assert (invalid.request_id, invalid.muted) == (77, False)
    assert client.call("echo", 2) == 2


_GARBAGE = {
    "empty frame": [b""],
    "not msgpack": [b"\xc1\xc1\xc1"],
    "truncated": [msgpack.packb([1, 3, 5, b"abc", "echo"])[:-3]],
    "huge array": [b"\xdd\xff\xff\xff\xff"],
    "huge map": [b"\xdf\xff\xff\xff\xff"],
    "nested": [b"\x91" * 100_000],
    "empty maps": [b"\x94\x01\x03\x05" + b"\x80" * 60_000],
    "2,000 frames": [b"\x90"] * 2000,
    "lost body": [msgpack.packb([1, 3, 5, None, "echo"])],
    "a worker's word": [msgpack.packb([1, 13, 0, b""])],
}


@pytest.mark.parametrize("frames", _GARBAGE.values(), ids=_GARBAGE.keys())
def test_ten_bad_frames_mute_a_peer_and_nobody_else(
    coordinator: CoordinatorProcess, client: WireClient, frames: list[bytes]
) -> None:
    with WireClient(coordinator.endpoint) as bad:
        for _ in range(10):
            bad.send_raw(*frames)
        while not bad.expect(Invalid).muted:
            pass
        bad.request("echo", 1)  # unread from now on
        assert client.call("echo", 3) == 3
    assert coordinator.process.poll() is None


def test_an_oversize_frame_ends_its_connection_only(coordinator: CoordinatorProcess, client: WireClient) -> None:
    with WireClient(coordinator.endpoint) as bad:
        bad.send_raw(b"x" * (2 << 20))
        assert client.call("echo", 4) == 4


def test_who_does_not_read_costs_a_window_and_is_muted(coordinator: CoordinatorProcess, client: WireClient) -> None:
    process = psutil.Process(coordinator.process.pid)
    before = process.memory_info().rss
    with WireClient(coordinator.endpoint) as slow:
        muted = client.call("dspool.stats")["wire"]["muted_peers"]
        for _ in range(60):
            slow.request("echo", bytes(1_000_000))

        def done() -> bool:
            requests = client.call("dspool.stats")["requests"]
            return bool(requests["accepted"] == requests["settled"])

        wait_until(done, 20.0, "60 echoes")
        wait_until(lambda: client.call("dspool.stats")["wire"]["muted_peers"] > muted, 10.0, "the muting")
        assert process.memory_info().rss - before < 150_000_000
    assert client.call("echo", 6) == 6


def test_who_says_what_it_has_taken_gets_everything(coordinator: CoordinatorProcess, client: WireClient) -> None:
    for _ in range(60):
        client.request("echo", bytes(1_000_000))
    for _ in range(60):
        reply = client.expect(Reply)
        client.send(Taken(bytes=len(reply.payload or b"")))
        assert len(value_of(reply)) == 1_000_000


def test_a_stranger_at_the_backend_is_no_worker(coordinator: CoordinatorProcess, client: WireClient) -> None:
    backend = coordinator.endpoint.replace("frontend", "backend")
    with WireClient(backend, hello=False) as stranger:
        stranger.send(Hello(role="worker", worker_id="general-1.1", token=b"guess"))
        stranger.send(Reply(request_id=1, epoch=1), Heartbeat())
        assert client.call("echo", 5) == 5
        stats = client.call("dspool.stats")
        assert stats["pools"]["general"]["ready"] == 1
        assert stats["wire"]["malformed"] >= 3


def test_a_worker_of_another_version_is_told_of(run_dirs: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_dirs()
    for package in ("signatures", "bridge", "pools", "orchestrator"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(support.ROOT, package), folder / "site" / package, ignore=ignored)
    metadata = folder / "site" / "dspool-9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: dspool\nVersion: 9.9\n")
    monkeypatch.setattr(support, "ROOT", str(folder / "site"))
    pools = {"general": {"size": 1, "launcher": "spawn"}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with CoordinatorProcess(folder, pools=pools) as process:
        process.next_report()
        with WireClient(process.endpoint) as client:
            assert client.call("dspool.stats")["version"] == "9.9"
            # The package is upgraded under the running coordinator: the next life of a place runs the new one. (What
            # a zygote forks runs what the zygote has imported.)
            metadata.write_text("Metadata-Version: 2.1\nName: dspool\nVersion: 9.10\n")
            psutil.Process(client.call("ping")["pid"]).kill()
            wait_until(lambda: client.call("ping")["worker"] == "general-1.2", 20.0, "the next life")
        process.process.send_signal(signal.SIGTERM)
        _, log = process.process.communicate(timeout=20)
    told = [line for line in log.splitlines() if "worker_version_differs" in line]
    assert len(told) == 1, log
    for part in ("general-1.2", "9.10", "9.9"):
        assert part in told[0]


# --- cancellation and books ---------------------------------------------------------------------------


def test_cancelled_work_in_a_queue_never_runs(client: WireClient) -> None:
    running = [client.request("sleep", {"seconds": 0.4}) for _ in range(8)]
    waiting = [client.request("sleep", {"seconds": 5}) for _ in range(20)]
    for request_id in waiting:
        client.send(Cancel(request_id=request_id))
    answers = [client.expect(CancelReply) for _ in waiting]
    assert {(a.stage, a.how) for a in answers} == {("queued", "dequeued")}
    replies = {reply.request_id: reply for reply in (client.expect(Reply) for _ in range(28))}
    assert {code_of(value_of(replies[request_id])) for request_id in waiting} == {"CANCELLED"}
    assert all(value_of(replies[request_id]) for request_id in running)


def test_a_forced_cancellation_kills_what_does_not_listen(run_dirs: Callable[[], Path]) -> None:
    pools = {"general": {"size": 1, "grace_s": 0.2}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with CoordinatorProcess(run_dirs(), pools=pools, faults=True) as process:
        process.next_report()
        with WireClient(process.endpoint) as client:
            hung = client.request("fault.hang", {"seconds": 60})
            wait_until(lambda: client.call("dspool.workers")[0]["in_flight"] == 1, 5.0, "the hang")
            client.call("ping")  # the worker's io thread has read the hang
            client.send(Cancel(request_id=hung, force=True))
            answer = client.expect(CancelReply)
            assert (answer.stage, answer.how) == ("running", "killed")
            assert code_of(value_of(client.expect(Reply))) == "CANCELLED"
            assert client.call("echo", 1, deadline_ms=20_000.0) == 1  # the next life of the place answers


def test_the_books_balance(coordinator: CoordinatorProcess, client: WireClient) -> None:
    for number in range(50):
        client.request("echo", number)
    asked = client.request("dspool.stats")
    replies = [client.expect(Reply) for _ in range(51)]
    requests = next(value_of(reply) for reply in replies if reply.request_id == asked)["requests"]
    assert requests["accepted"] >= 50
    assert requests["accepted"] == requests["settled"] + requests["queued"] + requests["in_flight"]


def test_clients_that_come_and_go_leave_nothing(coordinator: CoordinatorProcess, client: WireClient) -> None:
    def cost() -> tuple[int, int]:
        return client.call("dspool.stats")["wire"]["clients"], psutil.Process(coordinator.process.pid).num_fds()

    clients, fds = cost()
    for _ in range(50):
        with WireClient(coordinator.endpoint) as visitor:
            visitor.send(Bye())
            visitor.dealer.socket.linger = 1000
    # libzmq closes a connection's descriptor a moment after its peer is gone.
    wait_until(lambda: cost() <= (clients, fds), 5.0, f"{clients} clients and {fds} descriptors")


def test_bye_cancels_what_is_queued(coordinator: CoordinatorProcess, client: WireClient) -> None:
    with WireClient(coordinator.endpoint) as leaver:
        for _ in range(30):
            leaver.request("sleep", {"seconds": 0.3})
        leaver.send(Bye())

    def books() -> bool:
        requests = client.call("dspool.stats")["requests"]
        return requests["queued"] + requests["in_flight"] == 0

    wait_until(books, 5.0, "empty books")


def test_a_full_queue_is_overloaded_with_a_time(run_dirs: Callable[[], Path]) -> None:
    general = {"size": 1, "slots": 1, "prefetch": 0, "max_queue": 3}
    pools = {"general": general, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with CoordinatorProcess(run_dirs(), pools=pools) as process:
        process.next_report()
        with WireClient(process.endpoint) as client:
            for _ in range(6):
                client.request("sleep", {"seconds": 0.2})
            outcomes = [value_of(client.expect(Reply)) for _ in range(6)]
            refused = [outcome for outcome in outcomes if not isinstance(outcome, dict)]
            assert [code_of(outcome) for outcome in refused] == ["OVERLOADED", "OVERLOADED"]
            assert all(outcome.details["retry_after_s"] > 0 for outcome in refused)


# --- the ends -----------------------------------------------------------------------------------------


@pytest.fixture
def start(run_dirs: Callable[[], Path]) -> Iterator[Callable[..., CoordinatorProcess]]:
    running: list[CoordinatorProcess] = []

    def begin(**options: Any) -> CoordinatorProcess:
        process = CoordinatorProcess(run_dirs(), faults=True, **options)
        running.append(process)
        assert process.next_report() == {"event": "ready"}
        return process

    yield begin
    for process in running:
        process.__exit__()


def test_sigterm_lets_accepted_work_finish_and_exits_0(start: Callable[..., CoordinatorProcess]) -> None:
    process = start()
    below = process.descendants()
    with WireClient(process.endpoint) as client:
        client.request("sleep", {"seconds": 0.5})
        client.call("dspool.stats")
        process.process.send_signal(signal.SIGTERM)
        assert value_of(client.expect(Reply)) == {"seconds": 0.5}
    assert process.process.wait(10) == 0
    gone(below)
    assert not list(process.run_dir.iterdir())


def test_a_second_sigterm_leaves_at_once(start: Callable[..., CoordinatorProcess]) -> None:
    process = start(drain_s=60.0)
    below = process.descendants()
    with WireClient(process.endpoint) as client:
        client.request("fault.hang", {"seconds": 60})
        client.call("dspool.stats")
        process.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.call("echo", 1) != 1, 5.0, "the drain")
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(1) == 0
    gone(below)


def test_a_drain_beyond_its_budget_is_cancelled(start: Callable[..., CoordinatorProcess]) -> None:
    process = start(drain_s=0.3)
    with WireClient(process.endpoint) as client:
        client.request("fault.hang", {"seconds": 60})
        client.call("dspool.stats")
        process.process.send_signal(signal.SIGTERM)
        assert code_of(value_of(client.expect(Reply))) == "CANCELLED"
    assert process.process.wait(10) == 0


def test_the_owners_end_is_the_coordinators(start: Callable[..., CoordinatorProcess]) -> None:
    process = start()
    below = process.descendants()
    assert len(below) >= 2
    process.let_go()
    process.process.wait(2)
    gone(below)


def test_sigkill_leaves_no_descendant(start: Callable[..., CoordinatorProcess]) -> None:
    process = start()
    with WireClient(process.endpoint) as client:
        daemon = client.call("fault.spawn_daemon", {"seconds": 60})
        daemon_pid = daemon["pid"] if isinstance(daemon, dict) else daemon
        for _ in range(50):
            client.request("sleep", {"seconds": 1})
        below = [*process.descendants(), psutil.Process(daemon_pid)]
        process.process.kill()
        gone(below)
    process.process.wait(2)


def test_a_second_coordinator_on_the_same_data_dir_is_refused(start: Callable[..., CoordinatorProcess]) -> None:
    first = start()
    folder = first.run_dir.parent
    with CoordinatorProcess(folder) as second:
        assert second.bound["event"] == "error"
        assert str(first.process.pid) in second.bound["message"]
        assert second.process.wait(5) == 2


def test_a_pool_that_cannot_boot_says_why_while_others_serve(run_dirs: Callable[[], Path], tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 7\n")
    broken.chmod(0o755)
    pools = {"general": {"size": 1}, "optimizer": {"size": 0}, "neural": {"size": 1, "python": str(broken)}}
    with CoordinatorProcess(run_dirs(), pools=pools) as process:
        report = process.next_report()
        assert report["event"] == "error"
        assert "no such luck" in report["message"]
        with WireClient(process.endpoint) as client:
            outcome = client.call("embed", {"texts": ["a"]})
            assert code_of(outcome) == "UNAVAILABLE"
            assert "no such luck" in outcome.message
            assert client.call("echo", 1, deadline_ms=20_000.0) == 1
            rows = client.call("dspool.pools")
            assert {row["pool"]: row["state"] for row in rows}["neural"] == "degraded"
