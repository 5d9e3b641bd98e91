"""The operation `embed`."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.batched import BatchLimits
from bridge.worker import arguments
from bridge.worker.call import Call
from bridge.worker.embedding.embedder import Embedder, Vectors


class Embed:
    """Operation `embed {texts}` -> float32 array of shape (n, dim). It can be batched: a text is an item."""

    def __init__(self, embedder: Embedder, limits: BatchLimits) -> None:
        self._embedder = embedder
        most = min(limits.max_items, embedder.most_texts or limits.max_items)
        self.limits = limits._replace(max_items=most)

    def __call__(self, args: Any, call: Call) -> Vectors:
        """Embed the texts of one caller."""
        return self._embedder.embed_all(self.items(args), call)

    def items(self, args: Any) -> list[str]:
        """Return the texts. Raises BridgeError(INVALID_REQUEST) that names the one at fault."""
        texts = arguments.read(args, "embed", required=("texts",))["texts"]
        if not isinstance(texts, list | tuple):
            raise arguments.invalid("texts", f"texts must be a list of texts, got {arguments.shown(texts)}")
        for index, one in enumerate(texts):
            if not isinstance(one, str):
                text = f"texts[{index}] must be a text, got {arguments.shown(one)}"
                raise arguments.invalid(f"texts[{index}]", text)
        return list(texts)

    def run(self, items: list[str], call: Call) -> Vectors:
        """Embed texts of many callers."""
        return self._embedder.embed(items, call)

    def joined(self, parts: list[Vectors]) -> Vectors:
        """Return the vectors of one caller."""
        if not parts:
            return np.zeros((0, self._embedder.dimension()), np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
