"""Streams of both clients, read from a far end that says exactly what a test wants said."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Final, Progress, Status, Token
from orchestrator.errors import Cancelled, DspoolError, InvalidRequest, RemoteError, SlowConsumer
from tests.support.echo_coordinator import far_end
from tests.support.waiting import wait_until

WINDOW = 64


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with far_end(tmp_path_factory.mktemp("far")) as endpoint:
        yield endpoint


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint) as client:
        yield client


def tokens(count: int, *, epoch: int = 5, first: int = 1) -> list[list[Any]]:
    return [["token", {"field": "a", "text": f"{n} "}, n, epoch] for n in range(first, first + count)]


def in_a_loop(endpoint: str, use: Callable[[AsyncClient], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with AsyncClient(endpoint) as client:
            await asyncio.wait_for(use(client), 30)

    asyncio.run(run())


SAID: list[list[Any]] = [
    ["status", {"message": "Calling ask…"}, 1, 5],
    ["token", {"field": "a", "text": "x", "predictor": "self.ask"}, 2, 5],
    ["row", {"done": 1}, 3, 5],
]
HEARD = [Status("Calling ask…"), Token("a", "x", "self.ask"), Progress("row", {"done": 1})]
FAILURE = {"code": "REMOTE_ERROR", "message": "no", "details": {"type": "ValueError"}}


def test_everything_comes_in_order_and_the_value_last(client: Client) -> None:
    with client.stream("stream", {"events": SAID, "final": [1, 2]}) as stream:
        *items, final = stream
        assert items == HEARD
        assert isinstance(final, Final)
        assert final.value == [1, 2]
        assert final.meta == stream.meta
        assert final.meta is not None
        assert final.meta.request_id == stream.request_id
        assert list(stream) == []


def test_an_operation_that_says_nothing_just_ends(client: Client) -> None:
    (final,) = client.stream("echo", {"x": 1})
    assert isinstance(final, Final)
    assert final.value == {"x": 1}
    (made_here,) = client.stream("template", {"template": "{{ a }}!", "values": {"a": "b"}})
    assert isinstance(made_here, Final)
    assert made_here.value == "b!"


def test_the_error_stands_where_the_value_would(client: Client) -> None:
    stream = client.stream("stream", {"events": SAID, "error": FAILURE})
    assert [next(stream) for _ in SAID] == HEARD
    with pytest.raises(RemoteError, match="ValueError"):
        next(stream)
    assert list(stream) == []
    slow = client.stream("raise", {"code": "SLOW_CONSUMER", "message": "nobody read"})
    with pytest.raises(SlowConsumer):
        next(slow)


def test_what_is_known_here_is_raised_at_once(client: Client) -> None:
    with pytest.raises(InvalidRequest):
        client.stream("stream", {"events": []}, deadline_s=-1)
    with pytest.raises(InvalidRequest):
        client.stream("stream", {"events": object()})


def test_the_reader_sets_the_pace(client: Client) -> None:
    stream = client.stream("stream", {"events": tokens(1000), "final": "end"})
    assert next(stream) == Token("a", "1 ")
    assert client.execute("sent", stream.request_id) == WINDOW
    for _ in range(WINDOW // 4):
        next(stream)
    assert client.execute("sent", stream.request_id) == WINDOW + WINDOW // 4
    *rest, final = stream
    assert len(rest) == 1000 - 1 - WINDOW // 4
    assert isinstance(final, Final)


def test_streams_do_not_mix(client: Client) -> None:
    streams = [client.stream("stream", {"events": tokens(100 + n), "final": n}) for n in range(5)]
    heard: dict[int, list[str]] = {n: [] for n in range(5)}
    for _ in range(100):
        for n, stream in enumerate(streams):
            token = next(stream)
            assert isinstance(token, Token)
            heard[n].append(token.text)
    assert all(texts == [f"{n} " for n in range(1, 101)] for texts in heard.values())
    finals = [list(stream)[-1] for stream in streams]
    assert [final.value for final in finals if isinstance(final, Final)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("leave", ["close", "with", "forget"])
def test_leaving_early_cancels(client: Client, leave: str) -> None:
    stream = client.stream("stream", {"events": tokens(3)})
    request_id = stream.request_id
    next(stream)
    if leave == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif leave == "with":
        with stream:
            pass
    else:
        del stream
        gc.collect()
    assert request_id in client.execute("cancelled")


def test_who_reads_to_the_end_cancels_nothing(client: Client) -> None:
    with client.stream("stream", {"events": tokens(2), "final": 1}) as stream:
        assert len(list(stream)) == 3
    assert stream.request_id not in client.execute("cancelled")


def test_a_gap_ends_the_stream_and_the_request(client: Client) -> None:
    stream = client.stream("stream", {"events": tokens(2) + tokens(1, first=4)})
    with pytest.raises(DspoolError, match="number 3 is missing"):
        list(stream)
    assert stream.request_id in client.execute("cancelled")


def test_a_producer_that_knows_no_window_is_cut_off(client: Client) -> None:
    stream = client.stream("stream", {"events": tokens(1000), "deaf": True})
    assert client.execute("echo", 1) == 1  # by now all have come
    with pytest.raises(DspoolError, match="nobody had asked for"):
        list(stream)


def test_another_attempt_begins_anew(client: Client) -> None:
    stream = client.stream("stream", {"events": tokens(1) + tokens(2, epoch=6), "final": 1}, idempotent=True)
    first, restarted, *rest, final = stream
    assert (first, restarted) == (Token("a", "1 "), Progress("restarted", {}))
    assert rest == [Token("a", "1 "), Token("a", "2 ")]
    assert isinstance(final, Final)


def test_one_stream_has_one_reader(client: Client) -> None:
    stream = client.stream("stream", {"events": []})
    ended: list[BaseException | None] = []

    def read() -> None:
        try:
            ended.append(next(stream, None))  # type: ignore[arg-type]
        except DspoolError as exc:
            ended.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: stream._turn.locked(), 10, "the other thread reads")
    with pytest.raises(InvalidRequest, match="another thread"):
        next(stream)
    stream.close()
    reader.join(10)
    assert ended == [None]


def test_closing_the_client_ends_its_streams(endpoint: str) -> None:
    client = Client(endpoint)
    stream = client.stream("stream", {"events": tokens(1)})
    assert next(stream) == Token("a", "1 ")
    threading.Timer(0.05, client.close).start()
    with pytest.raises(Cancelled, match="the client was closed"):
        next(stream)
    with pytest.raises(Cancelled):
        client.stream("echo", 1)


def test_a_fork_has_no_part_in_it(client: Client) -> None:
    stream = client.stream("stream", {"events": tokens(2), "final": 1})
    next(stream)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            next(stream)
        except DspoolError as exc:
            code = 0 if "forked" in str(exc) else 2
        finally:
            stream.close()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(list(stream)) == 2
    assert stream.request_id not in client.execute("cancelled")


def test_a_module_and_a_program_can_be_streamed(client: Client) -> None:
    with pytest.raises(RemoteError):  # the far end knows neither; what it is asked is the point
        list(client.program("raise").stream(code="REMOTE_ERROR", message="x"))
    (final,) = client.program("echo").stream(question="q")
    assert isinstance(final, Final)
    assert final.value == {"question": "q"}


# --- in an event loop -------------------------------------------------------------------------


def test_awaited_all_the_same(endpoint: str) -> None:
    async def use(client: AsyncClient) -> None:
        async with client.stream("stream", {"events": SAID, "final": [1]}) as stream:
            assert stream.request_id
            *items, final = [item async for item in stream]
            assert items == HEARD
            assert isinstance(final, Final)
            assert (final.value, final.meta) == ([1], stream.meta)
        only = [item async for item in client.program("echo").stream(x=1)]
        assert [item.value for item in only if isinstance(item, Final)] == [{"x": 1}]
        with pytest.raises(RemoteError):
            _ = [item async for item in client.stream("stream", {"events": SAID, "error": FAILURE})]

    in_a_loop(endpoint, use)


def test_the_awaiting_reader_sets_the_pace_too(endpoint: str) -> None:
    async def use(client: AsyncClient) -> None:
        stream = client.stream("stream", {"events": tokens(500), "final": 1})
        assert await anext(stream) == Token("a", "1 ")
        assert await client.execute("sent", stream.request_id) == WINDOW
        with pytest.raises(InvalidRequest, match="another task"):
            await asyncio.gather(anext(client_stream := client.stream("stream", {"events": []})), anext(client_stream))
        await client_stream.aclose()
        assert len([item async for item in stream]) == 500

    in_a_loop(endpoint, use)


def test_many_streams_of_one_loop_do_not_mix(endpoint: str) -> None:
    async def use(client: AsyncClient) -> None:
        async def read(n: int) -> Any:
            *items, final = [item async for item in client.stream("stream", {"events": tokens(200), "final": n})]
            assert [item.text for item in items if isinstance(item, Token)] == [f"{k} " for k in range(1, 201)]
            assert isinstance(final, Final)
            return final.value

        assert await asyncio.gather(*map(read, range(8))) == list(range(8))

    in_a_loop(endpoint, use)


@pytest.mark.parametrize("leave", ["task", "break", "aclose"])
def test_leaving_a_loop_early_cancels(endpoint: str, leave: str) -> None:
    async def use(client: AsyncClient) -> None:
        stream: Any = client.stream("stream", {"events": tokens(1)})
        await anext(stream)
        request_id = stream.request_id
        if leave == "task":
            reader = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
        elif leave == "aclose":
            await stream.aclose()
            assert [item async for item in stream] == []
        else:
            del stream
            gc.collect()
        assert request_id in await client.execute("cancelled")

    in_a_loop(endpoint, use)
