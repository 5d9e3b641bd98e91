"""A peer that speaks badly beside one that does not, at a coordinator that must serve on."""

from __future__ import annotations

from typing import Any

from bridge.protocol.messages import Reply, Request
from tests.support.coordinator import CoordinatorProcess, WireClient, value_of

# One of each answered: whatever went before it on the same connection has been handled.
_SENTINEL = 7


class House:
    """A running coordinator and a client that behaves."""

    def __init__(self, coordinator: CoordinatorProcess, good: WireClient) -> None:
        self.coordinator = coordinator
        self.good = good

    @property
    def endpoint(self) -> str:
        return self.coordinator.endpoint

    def wire(self, name: str) -> int:
        """Return one of the coordinator's counters of what came over its sockets."""
        return int(self.good.call("dspool.stats")["wire"][name])

    def stranger(self, *, hello: bool = True) -> WireClient:
        return WireClient(self.endpoint, hello=hello)

    def misreads(self, *frames: bytes) -> None:
        """Assert that these frames are counted as one bad message, and that their sender is served afterwards."""
        before = self.wire("malformed")
        with self.stranger() as bad:
            bad.send_raw(*frames)
            assert bad.call("echo", _SENTINEL) == _SENTINEL
        assert self.wire("malformed") == before + 1

    def reads(self, payload: bytes, operation: str = "echo") -> Any:
        """Return what an operation makes of these bytes as its arguments: a value or a BridgeError."""
        with self.stranger() as peer:
            request_id = next(peer.ids)
            peer.send(Request(request_id=request_id, operation=operation, payload=payload))
            reply = peer.expect(Reply)
            assert reply.request_id == request_id
            return value_of(reply)

    def serves(self) -> None:
        """Assert that the coordinator lives, and the same worker answers."""
        assert self.coordinator.process.poll() is None
        assert self.good.call("ping")["worker"] == "general-1.1"
