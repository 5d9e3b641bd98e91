"""Where the embedder's model is not: in the workers of every other pool than the one that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.worker.call import Call
from bridge.worker.embedding.embedder import MODEL_POOL, Embedder, Vectors


class Absent(Embedder):
    """Refuses: loading the model here would load it once more for every worker of the pool."""

    def __init__(self, model: str, pool: str) -> None:
        self.model = model
        self._pool = pool

    def embed(self, texts: Sequence[str], call: Call | None = None) -> Vectors:
        """Refuse."""
        self._refuse()

    def dimension(self) -> int:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        text = (
            f"the embedder {self.model} is held by the pool {MODEL_POOL}, not by {self._pool}: "
            f"run what needs it there (pool={MODEL_POOL!r}), embed first with client.embed, or use "
            "connect().embedder() in a program of your own"
        )
        raise BridgeError(INVALID_REQUEST, text, details={"path": "embedder"})
