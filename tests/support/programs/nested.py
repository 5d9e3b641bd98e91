"""Programs that are clients of the coordinator that runs them."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import dspy  # type: ignore[import-untyped]

from bridge import nesting
from orchestrator import Final, Token, connect, connect_async


class Chain(dspy.Module):  # type: ignore[misc]
    """Calls itself, `more` times; the deepest calls an operation, if one is given."""

    def forward(self, name: str, more: int, operation: str = "", args: Any = None) -> Any:
        with connect() as client:
            if more:
                return client.program(name)(name=name, more=more - 1, operation=operation, args=args)
            return client.execute(operation, args, pool=client_pool()) if operation else "bottom"


class Fan(dspy.Module):  # type: ignore[misc]
    """Has two children, waits for both."""

    def forward(self, n: int) -> list[Any]:
        client = connect()
        futures = [client.submit("echo", [n, child], pool=client_pool()) for child in range(2)]
        if n % 2:
            wait(futures)
        return [future.result() for future in futures]


class Maps(dspy.Module):  # type: ignore[misc]
    """Maps over rows."""

    def forward(self, rows: int) -> int:
        return sum(connect().map("echo", range(rows), pool=client_pool()))


class Awaits(dspy.Module):  # type: ignore[misc]
    """The same without a thread: gathers, maps and streams in an event loop."""

    async def aforward(self, rows: int) -> dict[str, Any]:
        async with await connect_async() as client:
            echoes = await asyncio.gather(*(client.execute("echo", n, pool=client_pool()) for n in range(rows)))
            mapped = [value async for value in client.map("echo", range(rows), pool=client_pool())]
            items = [item async for item in client.stream("echo", rows, pool=client_pool())]
        return {
            "echoes": echoes,
            "mapped": mapped,
            "streamed": [item.value for item in items if isinstance(item, Final)],
        }


class Asks(dspy.Module):  # type: ignore[misc]
    """Asks for an operation, in an event loop."""

    async def aforward(self, operation: str, args: Any) -> Any:
        async with await connect_async() as client:
            return await client.execute(operation, args, pool=client_pool())


class Threads(dspy.Module):  # type: ignore[misc]
    """Calls from threads of its own."""

    def forward(self, calls: int) -> list[int]:
        client = connect()
        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(lambda n: client.execute("echo", n, pool=client_pool()), range(calls)))


class Leaves(dspy.Module):  # type: ignore[misc]
    """Asks for something that takes long, and ends without waiting for it."""

    def forward(self, seconds: float) -> int:
        return connect().submit("sleep", {"seconds": seconds}, pool=client_pool()).request_id


class Streams(dspy.Module):  # type: ignore[misc]
    """Streams another program, and ends with what that one ended with."""

    def forward(self, name: str, question: str) -> dict[str, Any]:
        tokens, value = [], None
        for item in connect().program(name).stream(question=question):
            if isinstance(item, Token):
                tokens.append(item.text)
            elif isinstance(item, Final):
                value = item.value.answer
        return {"tokens": tokens, "value": value}


class Facts(dspy.Module):  # type: ignore[misc]
    """What a client in a program is, and what it refuses."""

    def forward(self) -> dict[str, Any]:
        client, again = connect(), connect()
        future = client.submit("echo", 1)
        try:
            connect(principal="somebody")
            refusal = ""
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is told
            refusal = str(exc)
        shared = client.connection.shared is again.connection.shared  # type: ignore[attr-defined]
        again.close()
        return {
            "pid": os.getpid(), "value": future.result(), "shared": shared, "refusal": refusal,
            "after": client.execute("echo", 2), "threads": threading.active_count(),
        }  # fmt: skip


class Blocks(dspy.Module):  # type: ignore[misc]
    """Waits with a Client where an AsyncClient belongs."""

    async def aforward(self) -> Any:
        return connect().execute("echo", 1)


class Betrays(dspy.Module):  # type: ignore[misc]
    """Tells by what its worker's clients are known, and where in its process that can be seen from outside."""

    def forward(self, fails: bool = False) -> dict[str, Any]:
        worker_id, token = nesting.credentials()
        if fails:
            raise RuntimeError(f"the token is {token}")
        seen = []
        for name in ("cmdline", "environ"):
            with open(f"/proc/self/{name}", "rb") as file:
                seen += [name] if token.encode() in file.read() else []
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                continue  # the listing's own
            if "memfd:" in target:
                with open(f"/proc/self/fd/{name}", "rb") as file:
                    seen += [target] if token.encode() in file.read() else []
        return {"worker_id": worker_id, "token": token, "pid": os.getpid(), "seen": seen}


KEPT: list[Any] = []


class Keeps(dspy.Module):  # type: ignore[misc]
    """Has a client from its beginning, when nobody had called yet."""

    def __init__(self) -> None:
        super().__init__()
        KEPT[:] = [connect()]

    def forward(self, value: Any) -> Any:
        return KEPT[0].execute("echo", value)


class Seeks(dspy.Module):  # type: ignore[misc]
    """Has a retriever from its first call on; DSPy asks the embedder from a thread that outlives the call."""

    def __init__(self) -> None:
        super().__init__()
        self.seek: Any = None

    def forward(self, query: str) -> Any:
        if self.seek is None:
            passages = ["red cats sleep", "blue dogs bark", "a green parrot talks"]
            self.seek = dspy.retrievers.Embeddings(passages, connect().embedder(pool=client_pool()), k=1)
        return self.seek(query).passages[0]


def client_pool() -> str | None:
    """Return the pool that children are to run in: the worker's own, so that parents stand in their way."""
    return os.environ.get("NESTED_POOL")
