"""`client.embedder()`: the coordinator's embedder, in the place of a `dspy.Embedder`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from orchestrator.client.remote import Awaiting
from orchestrator.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy

    from orchestrator.client.aio import AsyncClient
    from orchestrator.client.client import Client
    from orchestrator.client.future import Future

# As a `dspy.Embedder` has it.
BATCH_SIZE: Final = 200
# Requests of one call that are under way at once: more would only wait in the pool's queue.
_AHEAD: Final = 8


@dataclass(frozen=True, slots=True)
class Embedder:
    """Embeds texts in the pools: a vectorizer of `dspy.KNN`, the embedder of `dspy.retrievers.Embeddings`.

    Called with a text it returns its vector, shape (dim,); with texts theirs, shape (n, dim), float32. They are sent
    batch_size at a time. Of an AsyncClient it is to be awaited: `acall`. Thread-safe, as its client is.
    """

    client: Client | AsyncClient
    batch_size: int = BATCH_SIZE
    pool: str | None = None
    deadline_s: float | None = None
    priority: str = "normal"

    def __call__(
        self, inputs: str | Sequence[str], batch_size: int | None = None, caching: bool | None = None
    ) -> numpy.ndarray:
        """Return the vectors. caching: as a `dspy.Embedder` has it; nothing is kept here. Raises as `client.embed`."""
        if isinstance(self.client, Awaiting):
            raise InvalidRequest("the embedder of an AsyncClient is awaited: await embedder.acall(texts)")
        client = self.client
        under_way: deque[Future] = deque()
        found: list[Any] = []
        try:
            for texts in self._parts(inputs, batch_size):
                if len(under_way) >= _AHEAD:
                    found.append(under_way.popleft().result())
                under_way.append(client.submit("embed", {"texts": texts}, **self._options()))
            while under_way:
                found.append(under_way.popleft().result())
        finally:
            for future in under_way:
                future.cancel()
        return _joined(found, inputs)

    async def acall(
        self, inputs: str | Sequence[str], batch_size: int | None = None, caching: bool | None = None
    ) -> numpy.ndarray:
        """Return the vectors; the event loop goes on meanwhile."""
        if not isinstance(self.client, Awaiting):
            return await asyncio.to_thread(self, inputs, batch_size)
        client = self.client
        parts = self._parts(inputs, batch_size)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_embed(client, texts, self._options())) for texts in parts]
        return _joined([task.result() for task in tasks], inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Embedder:
        # Programs are copied with what they hold; a connection is not.
        return self

    def _options(self) -> dict[str, Any]:
        return {"pool": self.pool, "deadline_s": self.deadline_s, "priority": self.priority}

    def _parts(self, inputs: str | Sequence[str], batch_size: int | None) -> Iterator[list[str]]:
        """Yield the texts of each request; one without texts if there are none, for the shape of the answer."""
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        size = batch_size or self.batch_size
        for at in range(0, len(texts) or 1, size):
            yield texts[at : at + size]


async def _embed(client: AsyncClient, texts: list[str], options: dict[str, Any]) -> Any:
    return await client.embed(texts, **options)


def _joined(found: list[Any], inputs: str | Sequence[str]) -> numpy.ndarray:
    import numpy

    vectors = found[0] if len(found) == 1 else numpy.concatenate(found)
    return cast("numpy.ndarray", vectors[0] if isinstance(inputs, str) else vectors)
