"""dspool itself as a contender: the public client and its futures, nothing below them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Final

from orchestrator.bench.contender import WORKERS, Payload, window

if TYPE_CHECKING:
    from orchestrator.client.client import Client

POOLS: Final = ("general", "optimizer", "neural")


class Dspool:
    """A private coordinator with all its workers in one pool. settings: others of `Orchestrator`."""

    name: ClassVar[str] = "dspool"

    def __init__(self, pool: str = "general", **settings: Any) -> None:
        self._pool = pool
        self._settings = settings
        self._open = ExitStack()
        self._client: Any = None
        self.pid = 0  # of the coordinator

    @property
    def client(self) -> Client:
        """Its client, once it has been started."""
        client: Client = self._client
        return client

    def start(self) -> None:
        """Start the coordinator and wait until its pool is ready."""
        from orchestrator import Orchestrator

        pools = {name: {"size": WORKERS if name == self._pool else 0} for name in {*POOLS, self._pool}}
        orchestrator = self._open.enter_context(Orchestrator(pools=pools, **self._settings))
        self.pid = orchestrator.pid
        self._client = self._open.enter_context(orchestrator.client())
        self.echo({})

    def echo(self, payload: Payload) -> Payload:
        """Execute and wait."""
        answer: Payload = self._client.execute("echo", payload, pool=self._pool)
        return answer

    def flood(self, payloads: Iterator[Payload], in_flight: int) -> Iterator[Payload]:
        """Submit within a window."""
        submit, pool = self._client.submit, self._pool
        return window(
            lambda payload: submit("echo", payload, pool=pool), lambda future: future.result(), payloads, in_flight
        )

    def map(self, rows: list[Payload], chunk: int) -> list[Payload] | None:
        """Map with chunks of a fixed size."""
        return list(self._client.map("echo", rows, chunk=chunk, pool=self._pool))

    def stop(self) -> None:
        """Stop the coordinator, which proves that nothing is left."""
        self._client = None
        self._open.close()
