"""The coordinator's own requests: asked like any client's, answered to a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bridge.protocol.messages import Message, Reply, Request
from pools.core.events import ClientConnected
from pools.core.fleet import Fleet

# An address that no socket has, and the client number that nobody is given.
SELF: Final = b""
SELF_NO: Final = 0

Waiter = Callable[[Reply, float], None]


class Asking:
    """What the coordinator has asked for itself. waiting: whom the outcome is told, by the request's id."""

    def __init__(self, fleet: Fleet, now: float) -> None:
        self._fleet = fleet
        self._last_id = 0
        self.waiting: dict[int, Waiter] = {}
        fleet.handle(ClientConnected(SELF_NO, "coordinator"), now, SELF)

    def take_id(self) -> int:
        """Return the id of the next request; it must be the next one that is put."""
        self._last_id += 1
        return self._last_id

    def ask(
        self, operation: str, payload: bytes, on_reply: Waiter, now: float, *, deadline_ms: float | None = None
    ) -> None:
        """Ask for an operation where it is at home. on_reply: called once, with its outcome, whatever that is."""
        request = Request(
            request_id=self.take_id(), operation=operation, payload=payload, deadline_ms=deadline_ms
        )  # fmt: skip
        self.put(request, on_reply, now)

    def put(self, request: Request, on_reply: Waiter, now: float) -> None:
        """Ask for a request that has an id of ours."""
        self.waiting[request.request_id] = on_reply
        self._fleet.handle(request, now, SELF)

    def hear(self, message: Message, now: float) -> None:
        """Take what was sent to this client: of all that, outcomes count."""
        on_reply = self.waiting.pop(message.request_id, None) if type(message) is Reply else None
        if on_reply is not None:
            on_reply(message, now)  # type: ignore[arg-type]
