"""What an embedder is, and which one a worker has."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bridge.protocol.errors import INVALID_REQUEST, LM_ERROR, BridgeError
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker.call import Call, current_call

Vectors = npt.NDArray[np.float32]

# The pool that holds models; any other with `batch` in its configuration does too.
MODEL_POOL: Final = "neural"
HASH_MODEL: Final = "offline/hash"
LOCAL_PREFIX: Final = "sentence-transformers/"


class Embedder(ABC):
    """Makes vectors of texts. Thread-safe.

    Called like a `dspy.Embedder` it is one: a vectorizer of `dspy.KNN`, the embedder of `dspy.retrievers.Embeddings`.
    model: its name as configured. most_texts: how many it takes at once, None = any number.
    """

    model: str
    most_texts: int | None = None

    @abstractmethod
    def embed(self, texts: Sequence[str], call: Call | None = None) -> Vectors:
        """Return one vector per text, float32 of shape (n, dim). Raises CallStopped when the call is to stop."""

    @abstractmethod
    def dimension(self) -> int:
        """Return the length of its vectors; that may take an embedding."""

    def __call__(self, inputs: str | Sequence[str], batch_size: int | None = None, **_: Any) -> Vectors:
        """Return the vector of a text, shape (dim,), or those of texts, shape (n, dim)."""
        call = current_call.get()
        if isinstance(inputs, str):
            vector: Vectors = self.embed([inputs], call)[0]
            return vector
        return self.embed_all(list(inputs), call, batch_size)

    async def acall(self, inputs: str | Sequence[str], batch_size: int | None = None, **_: Any) -> Vectors:
        """Return what a call returns; the event loop goes on meanwhile."""
        return await asyncio.to_thread(self, inputs, batch_size)

    def __deepcopy__(self, memo: dict[int, Any]) -> Embedder:
        # Programs are copied with what they hold; a model is not.
        return self

    def embed_all(self, texts: Sequence[str], call: Call | None = None, batch_size: int | None = None) -> Vectors:
        """Return one vector per text, of any number of texts: batch_size at once, as many as it takes by default."""
        if not texts:
            return np.zeros((0, self.dimension()), np.float32)
        size = batch_size or self.most_texts or len(texts)
        return np.concatenate([self.embed(texts[at : at + size], call) for at in range(0, len(texts), size)])

    @staticmethod
    def of(spec: WorkerSpec) -> Embedder:
        """Return the embedder of a worker: the model itself, or one that refuses where a pool does not hold models.

        Loads nothing yet. Raises BridgeError(INVALID_REQUEST) for a wrong entry.
        """
        from bridge.worker.embedding.absent import Absent
        from bridge.worker.embedding.hashing import HashEmbedder
        from bridge.worker.embedding.local import LocalModel
        from bridge.worker.embedding.provider import ProviderEmbedder

        config = dict(spec.embedder) or {"model": HASH_MODEL}
        model = str(config["model"])
        if model == HASH_MODEL:
            return HashEmbedder(config.get("dim") or HashEmbedder.DIMENSION)
        if spec.pool != MODEL_POOL and not spec.batch:
            return Absent(model, spec.pool)
        if model.startswith("offline/"):
            text = f"embedder.model: there is no {model}; the built-in one is {HASH_MODEL}"
            raise BridgeError(INVALID_REQUEST, text, details={"path": "embedder.model"})
        if model.startswith(LOCAL_PREFIX):
            return LocalModel(model, config.get("dim"), config.get("batch_size"), _params(config))
        return ProviderEmbedder(config)


def _params(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config.get("params") or {})


def checked(vectors: Any, count: int, dim: int | None, model: str) -> Vectors:
    """Return what a model gave as an array of float32, shape (count, dim). Raises BridgeError(LM_ERROR) for another."""
    found = np.ascontiguousarray(vectors, dtype=np.float32)
    if found.ndim != 2 or len(found) != count or (dim is not None and found.shape[1] != dim):
        wanted = f"({count}, {'dim' if dim is None else dim})"
        text = f"the embedder {model} returned vectors of shape {found.shape} where {wanted} was asked for"
        details = {"type": "ValueError", "provider": model.partition("/")[0], "status": None, "retry_after_s": None}
        raise BridgeError(LM_ERROR, text, details=details)
    return found
