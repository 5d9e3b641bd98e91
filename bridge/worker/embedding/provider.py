"""Embedding models of providers, through LiteLLM."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dspy.clients._litellm import get_litellm  # type: ignore[import-untyped]

from bridge.loop_thread import LoopThread
from bridge.protocol.errors import LM_ERROR, BridgeError
from bridge.worker.call import Call
from bridge.worker.embedding.embedder import Embedder, Vectors, checked
from bridge.worker.lm.errors import redact
from bridge.worker.lm.waiting import result_of

DEFAULT_TIMEOUT_S: Final = 60.0
# Statuses after which the same request may do better.
_PASSING: Final = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
_MESSAGE_CHARS: Final = 500


class ProviderEmbedder(Embedder):
    """A model at a provider.

    config: {model, dim, api_key, api_base, params, timeout_s, batch_size}; only `model` is required. With a `dim` the
    provider is asked for vectors of that length. timeout_s: for one batch; nothing is tried twice here.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.model = str(config["model"])
        self.most_texts = config.get("batch_size")
        self._dim: int | None = config.get("dim")
        self._known_dim: int | None = self._dim
        self._key = config.get("api_key")
        options: dict[str, Any] = {
            **(config.get("params") or {}),
            "timeout": config.get("timeout_s") or DEFAULT_TIMEOUT_S,
            "max_retries": 0,
        }
        if self._key:
            options["api_key"] = self._key
        if config.get("api_base"):
            options["api_base"] = config["api_base"]
            # A server of one's own often wants no key, but the protocol has a place for one.
            options.setdefault("api_key", "none")
        if self._dim is not None:
            options["dimensions"] = self._dim
        self._options = options
        self._loop = LoopThread("embedder")
        self._loading = threading.Lock()

    def dimension(self) -> int:
        """Return the length of its vectors; without `dim` the first to ask embeds a word for it."""
        return self._known_dim or len(self.embed(["dimension"])[0])

    def embed(self, texts: Sequence[str], call: Call | None = None) -> Vectors:
        """Return one vector per text, of one request. Raises BridgeError(LM_ERROR) as the provider's error says."""
        if call is not None:
            call.step()
        try:
            response = result_of(call, self._loop.submit(self._ask(list(texts))))
            found = [one["embedding"] for one in response.data]
        except BridgeError:
            raise
        except Exception as exc:  # noqa: BLE001 - LiteLLM's errors have no common root
            raise self._translated(exc) from None
        if call is not None:
            _count(call, response)
        vectors = checked(found, len(texts), self._dim, self.model)
        self._known_dim = int(vectors.shape[1])
        return vectors

    async def _ask(self, texts: list[str]) -> Any:
        litellm = await asyncio.to_thread(self._load)
        return await litellm.aembedding(model=self.model, input=texts, caching=False, **self._options)

    def _load(self) -> Any:
        """Return LiteLLM; its import takes seconds, once."""
        with self._loading:
            # It takes max_retries=0 for "as usual"; what is usual it reads here at its import.
            os.environ.setdefault("DEFAULT_MAX_RETRIES", "0")
            return get_litellm(feature="embedder")

    def _translated(self, exc: Exception) -> BridgeError:
        """Return the error that callers see; the original may name the key."""
        status = getattr(exc, "status_code", None)
        status = status if isinstance(status, int) else None
        text = redact(str(exc), [self._key] if self._key else [])[:_MESSAGE_CHARS]
        advice = "; check `embedder` in the configuration" if status in (401, 403, 404) else ""
        return BridgeError(
            LM_ERROR,
            f"the embedder {self.model} failed: {text}{advice}",
            retryable=status is None or status in _PASSING,
            details={
                "type": type(exc).__name__,
                "provider": self.model.partition("/")[0],
                "status": status,
                "retry_after_s": None,
            },
        )


def _count(call: Call, response: Any) -> None:
    """Add to the call what the provider says that its answer took."""
    tokens = getattr(getattr(response, "usage", None), "total_tokens", None) or 0
    cost_usd = (getattr(response, "_hidden_params", None) or {}).get("response_cost")
    call.used(tokens=int(tokens), cost_usd=cost_usd)
