"""The connection, driven against a process that answers for itself: every way of waiting, and every way to end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.protocol.messages import Reply
from orchestrator import AsyncClient, Client, errors
from orchestrator.client.future import Future
from orchestrator.client.request import Call
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SOON_S = 10.0


@contextmanager
def echo_process(folder: Path, *, max_in_flight: int = 4096) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    endpoint = f"ipc://{folder}/echo.sock"
    command = [sys.executable, "-m", "tests.support.echo_coordinator", endpoint, str(max_in_flight)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "bound\n"
            yield endpoint, process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


@pytest.fixture
def far_end(run_dirs: Callable[[], Path]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with echo_process(run_dirs()) as found:
        yield found


@pytest.fixture
def client(far_end: tuple[str, subprocess.Popen[str]]) -> Iterator[Client]:
    with Client(far_end[0]) as client:
        yield client


def io_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dspool-client-io"]


def row(number: int) -> dict[str, Any]:
    return {"t": f"{number:0120d}", "i": number}


# --- waiting ----------------------------------------------------------------------------------


def test_a_lone_caller_needs_no_thread(client: Client) -> None:
    assert [client.execute("echo", row(n)) for n in range(50)] == [row(n) for n in range(50)]
    assert io_threads() == []


def test_5000_echoes_in_a_window_are_each_their_own(client: Client) -> None:
    window: list[tuple[int, Future]] = []
    for number in range(5000):
        window.append((number, client.submit("echo", row(number))))
        if len(window) == 100:
            wanted, future = window.pop(0)
            assert future.result(SOON_S) == row(wanted)
    for wanted, future in window:
        assert future.result(SOON_S) == row(wanted)


def test_request_ids_arrive_in_increasing_order(client: Client) -> None:
    def work() -> None:
        for future in [client.submit("echo", n) for n in range(200)]:
            future.result(SOON_S)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    order = client.execute("order")
    assert order == sorted(set(order))
    assert len(order) == 801


@pytest.mark.parametrize("count", [2, 8])
def test_many_threads_share_a_client(client: Client, count: int) -> None:
    wrong: list[Any] = []

    def work(base: int) -> None:
        for number in range(base, base + 300):
            if client.execute("echo", row(number), deadline_s=SOON_S) != row(number):
                wrong.append(number)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, 1000 * place) for place in range(count)]:
            done.result(60)
    assert wrong == []


def test_callbacks_run_without_anybody_waiting(client: Client) -> None:
    results: list[Any] = []
    last = threading.Event()

    def done(future: concurrent.futures.Future[Any]) -> None:
        results.append(future.result())
        if len(results) == 500:
            last.set()

    for number in range(500):
        client.submit("echo", number).add_done_callback(done)
    assert last.wait(SOON_S)
    assert sorted(results) == list(range(500))


def test_a_callback_may_call_and_wait(client: Client) -> None:
    """On the io thread, while another caller waits too."""
    inner: list[Any] = []
    done = threading.Event()

    def call(future: concurrent.futures.Future[Any]) -> None:
        inner.append(client.execute("echo", future.result() + 1))
        done.set()

    held = client.submit("hold")
    waiter = threading.Thread(target=lambda: inner.append(held.result(SOON_S)))
    waiter.start()
    client.submit("echo", 1).add_done_callback(call)
    assert done.wait(SOON_S)
    client.execute("release")
    waiter.join(SOON_S)
    assert sorted(map(str, inner)) == ["2", "released"]


def test_waiters_go_on_while_a_callback_blocks(client: Client) -> None:
    entered, leave = threading.Event(), threading.Event()

    def block(_: object) -> None:
        entered.set()
        assert leave.wait(SOON_S)

    client.submit("echo", 0).add_done_callback(block)
    assert entered.wait(SOON_S)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(client.execute, "echo", n) for n in range(30)]
        assert [call.result(SOON_S) for call in calls] == list(range(30))
    leave.set()


def test_an_io_thread_that_lost_the_lead_is_woken_when_needed(far_end: tuple[str, Any]) -> None:
    """Five rounds: one in which it slept on to the once-a-second tick would take a second."""
    started = time.monotonic()
    for _ in range(5):
        client = Client(far_end[0])
        held = client.submit("hold")  # the io thread leads
        waiter = threading.Thread(target=held.exception, args=(SOON_S,))
        waiter.start()
        wait_until(lambda client=client: client.connection.turns > 0, SOON_S, "the waiting caller's lead")
        client.close()
        waiter.join(SOON_S)
    assert time.monotonic() - started < 4.0


def test_the_functions_of_concurrent_futures_work(client: Client) -> None:
    futures = [client.submit("echo", n) for n in range(50)]
    assert sorted(future.result() for future in concurrent.futures.as_completed(futures, SOON_S)) == list(range(50))
    held = client.submit("hold")
    done, not_done = concurrent.futures.wait([held, client.submit("echo", 1)], SOON_S, return_when="FIRST_COMPLETED")
    assert (len(done), not_done) == (1, {held})
    client.execute("release")
    assert concurrent.futures.wait([held], SOON_S).not_done == set()
    assert held.result() == "released"


def test_a_timeout_leaves_the_request_alone(client: Client) -> None:
    held = client.submit("hold")
    with pytest.raises(TimeoutError):
        held.result(0.05)
    with pytest.raises(TimeoutError):
        held.exception(0)
    client.execute("release")
    assert held.result(SOON_S) == "released"
    assert held.meta is not None


def test_errors_are_typed_and_carry_their_meta(client: Client) -> None:
    with pytest.raises(errors.NotFound, match="no such thing"):
        client.execute("raise", {"code": "NOT_FOUND", "message": "no such thing"})
    future = client.submit("raise", {"code": "FUTURE_CODE", "message": "new"})
    assert isinstance(future.exception(SOON_S), errors.DspoolError)
    assert future.meta is not None
    assert future.meta.worker == "echo-0.1"


def test_a_burst_travels_in_few_frames(client: Client) -> None:
    before = client.execute("frames")
    for future in [client.submit("echo", n) for n in range(640)]:
        future.result(SOON_S)
    assert client.execute("frames") - before <= 200


def test_large_values_go_both_ways(client: Client) -> None:
    data = os.urandom(1 << 20)
    futures = [client.submit("echo", data) for _ in range(80)]
    assert all(future.result(SOON_S) == data for future in futures)


# --- room -------------------------------------------------------------------------------------


def test_a_full_client_waits_for_room(run_dirs: Callable[[], Path]) -> None:
    with echo_process(run_dirs(), max_in_flight=4) as (endpoint, _), Client(endpoint) as client, \
            Client(endpoint) as other:  # fmt: skip
        held = [client.submit("hold") for _ in range(4)]
        refused = client.submit("echo", 1, deadline_s=0.2)
        error = refused.exception(0)
        assert isinstance(error, errors.DeadlineExceeded)
        assert error.stage == "client"
        late: list[Future] = []
        thread = threading.Thread(target=lambda: late.append(client.submit("echo", 2)))
        thread.start()
        wait_until(lambda: other.execute("requests") >= 5, SOON_S, "the held requests")
        assert late == []
        other.execute("release")
        thread.join(SOON_S)
        assert late[0].result(SOON_S) == 2
        assert [future.result(SOON_S) for future in held] == ["released"] * 4
        assert list(client.map("echo", range(50), chunk=3)) == list(range(50))


def test_the_window_of_a_route_follows_its_replies(client: Client) -> None:
    connection = client.connection
    route = connection.route("echo")
    start = route.window_rows
    route.window_rows = 1000
    for number in range(80):
        client.execute("echo", number)
    assert route.window_rows == 1010
    held = [client.submit("hold") for _ in range(3)]
    connection.route("hold").window_rows = 1000
    with connection.lock:  # replies that the far end itself never makes
        connection._take([Reply(request_id=future.request_id, pressed=True) for future in held], [])
    assert connection.route("hold").window_rows == 500
    assert (start, route.window_rows) == (connection.max_in_flight, 1010)
    client.execute("release")


async def until(client: AsyncClient, requests: int) -> None:
    """Wait until that many requests have come; asking is the waiting."""
    async with asyncio.timeout(SOON_S):
        found = 0
        while found < requests:
            found = await client.execute("requests")


def test_an_async_client_waits_for_room_without_blocking_the_loop(run_dirs: Callable[[], Path]) -> None:
    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as client, AsyncClient(endpoint) as other:
            calls = [asyncio.ensure_future(client.execute("hold")) for _ in range(3)]
            await until(other, 2)
            await asyncio.wait_for(other.execute("release"), SOON_S)
            done, waiting = await asyncio.wait(calls, timeout=SOON_S, return_when="FIRST_COMPLETED")
            while waiting:
                await other.execute("release")
                done, waiting = await asyncio.wait(calls, timeout=0.05)
            assert [call.result() for call in done] == ["released"] * 3

    with echo_process(run_dirs(), max_in_flight=2) as (endpoint, _):
        asyncio.run(main(endpoint))


def test_who_no_longer_waits_for_room_does_not_keep_it_from_others(run_dirs: Callable[[], Path]) -> None:
    async def first(client: AsyncClient) -> None:
        async for _ in client.map("echo", range(100), chunk=1):
            return

    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as client, AsyncClient(endpoint) as other:
            held = [asyncio.ensure_future(client.execute("hold")) for _ in range(2)]
            await until(other, 3)
            gone = [asyncio.ensure_future(client.execute("echo", 1)) for _ in range(8)]
            gone += [asyncio.ensure_future(first(client)) for _ in range(2)]
            await asyncio.sleep(0)
            last = [asyncio.ensure_future(client.execute("echo", number)) for number in range(2)]
            for _ in range(3):
                await asyncio.sleep(0)
            for one in gone:
                one.cancel()
            await asyncio.wait(gone, timeout=SOON_S)
            # The last answers for a while: what they free must reach those who still wait.
            await other.execute("release")
            await asyncio.wait_for(asyncio.gather(*held, *last), SOON_S)

    with echo_process(run_dirs(), max_in_flight=2) as (endpoint, _):
        asyncio.run(main(endpoint))


# --- cancellation -----------------------------------------------------------------------------


@pytest.mark.parametrize(("force", "how"), [(False, "cooperative"), (True, "killed")])
def test_running_work_is_asked_to_stop(client: Client, force: bool, how: str) -> None:
    held = client.submit("hold")
    outcome = held.cancel(force)
    assert (outcome.stage, outcome.how, bool(outcome)) == ("running", "asked", False)
    final = outcome.outcome(SOON_S)
    assert (final.stage, final.how, bool(final)) == ("running", how, True)
    with pytest.raises(errors.Cancelled):
        held.result(SOON_S)
    assert held.cancelled()
    assert held.cancel().outcome(SOON_S) == final


def test_what_is_not_sent_yet_is_taken_back(client: Client) -> None:
    held = client.submit("hold")
    connection = client.connection
    with connection.lock:  # nobody can flush
        future = client.submit("echo", 1)
        outcome = future.cancel()
    assert (outcome.stage, outcome.how, bool(outcome)) == ("queued", "dequeued", True)
    assert outcome.outcome(0) == outcome
    with pytest.raises(errors.Cancelled):
        future.result(SOON_S)
    assert client.execute("order") == [held.request_id, held.request_id + 2]


def test_what_has_finished_is_not_cancelled(client: Client) -> None:
    future = client.submit("echo", 1)
    future.result(SOON_S)
    outcome = future.cancel()
    assert (outcome.stage, outcome.how, bool(outcome)) == ("finished", "none", False)
    final = client.cancel(future.request_id).outcome(SOON_S)
    assert (final.stage, final.how) == ("finished", "none")


def test_cancel_by_id_ends_the_future_too(client: Client) -> None:
    held = client.submit("hold")
    assert client.cancel(held.request_id).outcome(SOON_S).how == "cooperative"
    assert isinstance(held.exception(SOON_S), errors.Cancelled)


def test_an_interrupted_execute_cancels_its_request(client: Client, far_end: tuple[str, Any]) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    def when_held() -> None:
        with Client(far_end[0]) as other:
            wait_until(lambda: len(other.execute("order")) > 1, SOON_S, "the held request")
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        thread = threading.Thread(target=when_held)
        thread.start()
        with pytest.raises(Interrupt):
            client.execute("hold")
        thread.join(SOON_S)
    finally:
        signal.signal(signal.SIGUSR1, before)
    wait_until(lambda: not client.connection.expecting(), SOON_S, "the cancellation")


# --- map, jobs --------------------------------------------------------------------------------


def test_map_yields_errors_in_the_place_of_values(client: Client) -> None:
    rows = [1, "bad", {"x": object()}, 4]
    found = list(client.map("echo", rows, on_error="yield", chunk=2))
    assert (found[0], found[3]) == (1, 4)
    assert isinstance(found[1], errors.RemoteError)
    assert isinstance(found[2], errors.InvalidRequest)
    with pytest.raises(errors.RemoteError):
        list(client.map("echo", rows, chunk=4))


def test_map_that_ends_early_cancels_what_is_under_way(client: Client) -> None:
    def rows() -> Iterator[int]:
        yield from range(3)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(client.map("hold", rows(), chunk=1))
    wait_until(lambda: not client.connection.expecting(), SOON_S, "the cancellations")
    assert len(client.execute("order")) == 4
    for value in client.map("echo", iter(int, 1), chunk=1):  # without end
        assert value == 0
        break
    wait_until(lambda: not client.connection.expecting(), SOON_S, "the cancellations")


def test_map_checks_before_it_reads(client: Client) -> None:
    for arguments in (
        {"on_error": "skip"},
        {"chunk": 0},
        {"chunk": 1025},
        {"chunk": "big"},
        {"window": 0},
        {"deadline_s": -1},
    ):
        with pytest.raises(errors.InvalidRequest):
            client.map("echo", [1], **arguments)
    with pytest.raises(errors.InvalidRequest):
        client.map("echo", 7)  # type: ignore[arg-type]


def test_map_tells_its_progress_in_plain_lines(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(client.map("echo", range(20), progress=True)) == list(range(20))
    assert capsys.readouterr().err.endswith("echo: 20 of 20 rows\n")


def test_a_job_tells_its_events_from_the_first(client: Client) -> None:
    job = client._start(Call("events", 20, events=True))
    assert [(event.sequence, event.data["done"]) for event in job.events()] == [(n + 1, n) for n in range(20)]
    assert [event.sequence for event in job.events(after=18)] == [19, 20]
    assert job.result(SOON_S) is None
    assert job.status() == "done"


def test_a_job_is_cancelled(client: Client) -> None:
    job = client._start(Call("hold", events=True))
    assert job.status() == "queued"
    with pytest.raises(TimeoutError):
        job.result(0.05)
    assert job.cancel().outcome(SOON_S)
    assert list(job.events()) == []
    assert job.status() == "cancelled"
    with pytest.raises(errors.Cancelled):
        job.result(SOON_S)


# --- asyncio ----------------------------------------------------------------------------------


def test_asyncio_has_the_same_methods(far_end: tuple[str, Any]) -> None:
    async def main() -> None:
        async with AsyncClient(far_end[0]) as client:
            assert await client.execute("echo", 1) == 1
            many = await asyncio.gather(*[client.execute("echo", n) for n in range(1000)])
            assert many == list(range(1000))
            future = await client.submit("echo", 2)
            assert [await future, await future] == [2, 2]
            assert future.meta.worker == "echo-0.1"
            assert [value async for value in client.map("echo", range(300))] == list(range(300))
            job = await client._start(Call("events", 5, events=True))
            assert [event.sequence async for event in job.events()] == [1, 2, 3, 4, 5]
            assert await job.result(SOON_S) is None
            with pytest.raises(errors.NotFound):
                await client.execute("raise", {"code": "NOT_FOUND", "message": "no"})

    asyncio.run(main())


def test_cancelling_the_task_cancels_the_request(far_end: tuple[str, Any]) -> None:
    async def main() -> None:
        async with AsyncClient(far_end[0]) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.execute("hold"), 0.05)
            future = await client.submit("hold")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(future, 0.05)
            assert (await future.cancel().outcome(SOON_S)).how == "cooperative"
            with pytest.raises(errors.Cancelled):
                await future
            outcome = await (await client.cancel(future.request_id)).outcome(SOON_S)
            assert outcome.how == "none"
            assert await asyncio.to_thread(wait_until, lambda: not client.connection.expecting(), SOON_S, "the rest")

    asyncio.run(main())


def test_the_loop_is_not_blocked_while_requests_are_held(far_end: tuple[str, Any]) -> None:
    async def main() -> None:
        async with AsyncClient(far_end[0]) as client:
            held = [asyncio.ensure_future(client.execute("hold")) for _ in range(5)]
            for number in range(100):
                assert await asyncio.wait_for(client.execute("echo", number), SOON_S) == number
            assert not any(task.done() for task in held)
            await client.execute("release")
            assert await asyncio.gather(*held) == ["released"] * 5

    asyncio.run(main())


# --- the end ----------------------------------------------------------------------------------


def leads(client: Client, future: Future) -> Any:
    return future.result(SOON_S)


def by_callback(client: Client, future: Future) -> Any:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(SOON_S)
    return future.result(0)


def by_wait(client: Client, future: Future) -> Any:
    concurrent.futures.wait([future], SOON_S)
    return future.result(0)


def by_two(client: Client, future: Future) -> Any:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(future.exception, SOON_S) for _ in range(2)]
        assert all(isinstance(wait.result(), errors.Unavailable) for wait in waits)
    return future.result(0)


def in_asyncio(client: Client, future: Future) -> Any:
    return asyncio.run(asyncio.wait_for(wrapped(future), SOON_S))


async def wrapped(future: Future) -> Any:
    return await asyncio.wrap_future(future)


@pytest.mark.parametrize("wait", [leads, by_callback, by_wait, by_two, in_asyncio])
def test_the_death_of_the_coordinator_ends_every_wait(far_end: tuple[str, Any], wait: Any) -> None:
    with Client(far_end[0]) as client:
        future = client.submit("hold")
        client.execute("echo", 1)
        timer = threading.Timer(0.1, far_end[1].kill)
        timer.start()
        started = time.monotonic()
        with pytest.raises(errors.Unavailable, match=r"died.*may or may not.*connect\(\)"):
            wait(client, future)
        assert time.monotonic() - started < 2.0
        with pytest.raises(errors.Unavailable):
            client.execute("echo", 1)
        timer.join()


def test_a_parked_client_notices_the_death_at_its_next_call(far_end: tuple[str, Any]) -> None:
    with Client(far_end[0]) as client:
        client.execute("echo", 1)
        far_end[1].kill()
        far_end[1].wait()
        started = time.monotonic()
        with pytest.raises(errors.Unavailable):
            client.execute("echo", 2)
        assert time.monotonic() - started < 2.0


def test_answers_sent_before_the_death_are_kept(far_end: tuple[str, Any]) -> None:
    with Client(far_end[0]) as client, Client(far_end[0]) as other:
        future = client.submit("echo", 1)
        wait_until(lambda: future.request_id in other.execute("order"), SOON_S, "the request's arrival")
        far_end[1].kill()
        far_end[1].wait()
        assert future.result(SOON_S) == 1


def test_a_stuck_coordinator_does_not_hold_a_deadline(far_end: tuple[str, Any]) -> None:
    with Client(far_end[0]) as client:
        client.execute("echo", 1)
        far_end[1].send_signal(signal.SIGSTOP)
        with pytest.raises(errors.DeadlineExceeded) as caught:
            client.execute("echo", 2, deadline_s=0.05)
        assert caught.value.stage == "coordinator"
        far_end[1].send_signal(signal.SIGCONT)
        assert client.execute("echo", 3) == 3


@pytest.mark.parametrize("started", [False, True])
def test_close_fails_what_is_unanswered(far_end: tuple[str, Any], started: bool) -> None:
    client = Client(far_end[0])
    held = client.submit("hold")
    ended: list[Any] = []
    waiting = threading.Event()
    held.add_done_callback(ended.append)

    def wait() -> None:
        waiting.set()
        ended.append(held.exception(SOON_S))

    thread = threading.Thread(target=wait)
    if started:
        thread.start()
        assert waiting.wait(SOON_S)
    client.close()
    client.close()
    with pytest.raises(errors.Cancelled):
        held.result(SOON_S)
    if started:
        thread.join(SOON_S)
    assert len(ended) == 1 + started
    with pytest.raises(errors.Cancelled, match="closed"):
        client.submit("echo", 1)
    with Client(far_end[0]) as other:
        assert other.execute("echo", 1) == 1


def test_a_callback_may_close_the_client(far_end: tuple[str, Any]) -> None:
    client = Client(far_end[0])
    closed = threading.Event()

    def close(_: object) -> None:
        client.close()
        closed.set()

    client.submit("echo", 1).add_done_callback(close)
    assert closed.wait(SOON_S)
    with pytest.raises(errors.Cancelled):
        client.execute("echo", 1)


def test_an_abandoned_client_leaves_no_thread_and_no_descriptor(far_end: tuple[str, Any]) -> None:
    Client(far_end[0]).close()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        client = Client(far_end[0])
        future = client.submit("echo", 1)
        done = threading.Event()
        future.add_done_callback(lambda _, done=done: done.set())
        assert done.wait(SOON_S)
        gone = weakref.ref(client.connection)
        del client, future
        wait_until(lambda gone=gone: gc.collect() >= 0 and gone() is None, SOON_S, "the collection")
    wait_until(lambda: not io_threads(), SOON_S, "the end of io threads")
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, SOON_S, "descriptors closed")


def test_a_future_keeps_its_connection_alive(far_end: tuple[str, Any]) -> None:
    future = Client(far_end[0]).submit("echo", 1)
    gc.collect()
    assert future.result(SOON_S) == 1


def test_an_idle_client_uses_no_cpu(client: Client) -> None:
    done = threading.Event()
    client.submit("echo", 1, deadline_s=0.05).add_done_callback(lambda _: done.set())
    assert done.wait(SOON_S)
    (thread,) = io_threads()
    assert thread.native_id is not None

    def switches() -> int:
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])

    parked: list[int] = []

    def at_rest() -> bool:
        parked.append(switches())
        return len(parked) > 30 and parked[-30] == parked[-1]

    wait_until(at_rest, SOON_S, "an io thread that sleeps")


FORK = """
import os, sys
from orchestrator import Client, errors
client = Client(sys.argv[1])
future = client.submit("echo", 1)
pid = os.fork()
if pid == 0:
    for use in (lambda: client.execute("echo", 2), lambda: future.result(1), lambda: client.submit("echo", 3)):
        try:
            use()
        except errors.DspoolError as exc:
            assert "connect() in the child" in str(exc), exc
        else:
            os._exit(7)
    client.close()
    with Client(sys.argv[1]) as own:
        os._exit(0 if own.execute("echo", 4) == 4 else 8)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert future.result(5) == 1
assert client.execute("echo", 5) == 5
sys.exit(code)
"""


def test_a_fork_is_refused_and_hurts_nobody(far_end: tuple[str, Any]) -> None:
    found = subprocess.run([sys.executable, "-c", FORK, far_end[0]], cwd=ROOT, check=False, timeout=60)
    assert found.returncode == 0


def test_a_script_that_forgets_to_close_ends(far_end: tuple[str, Any]) -> None:
    script = "import sys; from orchestrator import Client; c = Client(sys.argv[1]); f = c.submit('hold'); c.ping"
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, far_end[0]],
        cwd=ROOT, check=False, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, "")


# --- connecting -------------------------------------------------------------------------------


def test_nobody_there_is_said_at_once(run_dirs: Callable[[], Path]) -> None:
    folder = run_dirs()
    (folder / "file").write_text("")
    stale = folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(stale))
    for endpoint in (f"ipc://{folder}/none", f"ipc://{folder}/file", f"ipc://{stale}", "tcp://127.0.0.1:1", "x"):
        started = time.monotonic()
        with pytest.raises(errors.Unavailable, match="dspool up"):
            Client(endpoint)
        assert time.monotonic() - started < 1.0


def test_one_that_does_not_answer_is_given_up(run_dirs: Callable[[], Path]) -> None:
    path = run_dirs() / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(errors.Unavailable, match="did not answer in time"):
            Client(f"ipc://{path}", timeout_s=0.2)


def test_a_refusal_is_raised(far_end: tuple[str, Any]) -> None:
    with pytest.raises(errors.InvalidRequest, match="nobody is not welcome"):
        Client(far_end[0], principal="nobody")
