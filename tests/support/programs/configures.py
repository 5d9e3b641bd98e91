"""Programs that call `dspy.configure` while they serve a request."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy  # type: ignore[import-untyped]

dspy.configure(rm="set at import")
SEEN = ("rm", "num_threads", "own_key")


def seen() -> dict[str, Any]:
    return {name: dspy.settings.get(name) for name in SEEN}


class Sync(dspy.Module):  # type: ignore[misc]
    """Says what it sees; with a secret it configures that first."""

    def forward(self, secret: str = "") -> Any:
        if secret:
            dspy.configure(rm=secret, num_threads=77)
            dspy.settings.own_key = secret
        return seen()


class Async(dspy.Module):  # type: ignore[misc]
    """The same on an event loop; it stays for a moment, so that others meet it."""

    async def aforward(self, secret: str = "") -> Any:
        if secret:
            dspy.configure(rm=secret, num_threads=77)
            dspy.settings.own_key = secret
        await asyncio.sleep(0.05)
        return seen()
