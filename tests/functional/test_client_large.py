"""Much data at a time: more than a coordinator sends unread, and maps whose rows return more than one reply holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Orchestrator, errors
from tests.support.acceptance import pools
from tests.support.waiting import wait_until

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "programs" / "repeater.py:Repeater"
SOON_S = 30.0
ROW_BYTES, ROWS = 1_000_000, 40
MESSAGE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def orc() -> Iterator[Orchestrator]:
    with Orchestrator(pools=pools(2)) as orchestrator:
        yield orchestrator


@pytest.fixture
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client() as client:
        yield client


def row(number: int) -> bytes:
    return bytes((number,)) * ROW_BYTES


WANTED = [row(number) for number in range(ROWS)]


def one_by_one(client: Client) -> list[Any]:
    return [client.execute("echo", one, deadline_s=SOON_S) for one in WANTED]


def all_at_once(client: Client) -> list[Any]:
    return [future.result(SOON_S) for future in [client.submit("echo", one, deadline_s=SOON_S) for one in WANTED]]


def unwaited(client: Client) -> list[Any]:
    """Only the io thread leads."""
    futures = [client.submit("echo", one, deadline_s=SOON_S) for one in WANTED]
    wait_until(lambda: all(future.done() for future in futures), SOON_S, "the answers")
    return [future.result(0) for future in futures]


def mapped(client: Client) -> list[Any]:
    return list(client.map("echo", WANTED, deadline_s=SOON_S))


def awaited(client: Client) -> list[Any]:
    async def main() -> list[Any]:
        async with AsyncClient(client.endpoint) as other:
            return await asyncio.gather(*[other.execute("echo", one, deadline_s=SOON_S) for one in WANTED])

    return asyncio.run(main())


@pytest.mark.parametrize("take", [one_by_one, all_at_once, unwaited, mapped, awaited])
def test_40_megabytes_come_back(client: Client, take: Callable[[Client], list[Any]]) -> None:
    assert take(client) == WANTED
    assert client.connection._untold_bytes < MESSAGE_BYTES + 2 * ROW_BYTES


# --- maps -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Iterator[Orchestrator]:
    with Orchestrator(pools=pools(2), limits={"message_bytes": MESSAGE_BYTES}) as orchestrator:
        with orchestrator.client() as client:
            client.deploy("repeater", str(PROGRAM))
        yield orchestrator


@pytest.mark.parametrize("chunk", ["auto", 1, 7, 64])
@pytest.mark.parametrize("ordered", [True, False])
def test_rows_that_together_return_too_much_run_once_each(
    narrow: Orchestrator, chunk: Any, ordered: bool, tmp_path: Path
) -> None:
    sizes = [3_000, 100_000, 200_000, 1_000, 150_000] * 12
    runs = tmp_path / "runs"
    rows = [{"path": str(runs), "size_bytes": size} for size in sizes]
    with narrow.client() as client:
        found = list(client.map("repeater", rows, chunk=chunk, ordered=ordered, deadline_s=SOON_S))
    lengths = [len(value.data) for value in found]
    assert (lengths if ordered else sorted(lengths)) == (sizes if ordered else sorted(sizes))
    assert runs.stat().st_size == len(sizes)


def test_rows_that_return_too_much_are_all_answered_in_asyncio(narrow: Orchestrator, tmp_path: Path) -> None:
    rows = [{"path": str(tmp_path / "runs"), "size_bytes": 200_000}] * 30

    async def main() -> list[int]:
        async with AsyncClient(narrow.endpoint) as client:
            return [len(value.data) async for value in client.map("repeater", rows, chunk=16)]

    assert asyncio.run(main()) == [200_000] * 30


def test_a_row_that_alone_returns_too_much_fails_alone(narrow: Orchestrator, tmp_path: Path) -> None:
    sizes = [1_000, 2_000, 2_000_000, 3_000, 4_000]
    rows = [{"path": str(tmp_path / "runs"), "size_bytes": size} for size in sizes]
    with narrow.client() as client:
        found = list(client.map("repeater", rows, chunk=5, on_error="yield"))
    assert isinstance(found[2], errors.TooLarge)
    assert [len(found[place].data) for place in (0, 1, 3, 4)] == [1_000, 2_000, 3_000, 4_000]


@pytest.mark.parametrize("text", ["no arrow", "q -> a: os.system"])
def test_a_bad_signature_is_refused_before_it_is_sent(client: Client, text: str) -> None:
    args = {"signature": text, "inputs": {"q": "?"}}
    with pytest.raises(errors.SignatureError):
        client.submit("dspy.Predict", args)
    with pytest.raises(errors.SignatureError):
        client.execute("dspy.Predict", args)
    with pytest.raises(errors.SignatureError):
        client.module("dspy.Predict", text)(q="?")
    assert not client.connection.expecting()

    async def main() -> None:
        async with AsyncClient(client.endpoint) as other:
            with pytest.raises(errors.SignatureError):
                await other.submit("dspy.Predict", args)

    asyncio.run(main())
