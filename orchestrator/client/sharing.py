"""Large payloads of one connection: what goes through shared memory, and what has come through it.

A request with a segment has room for its outcome there too. One without a large payload gets an empty segment where the
last outcome of its kind was large.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from bridge import shared_memory
from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.large import LARGE_BYTES, Part
from bridge.protocol.messages import ERROR, OK, ROWS, Reply, Welcome
from bridge.shared_memory import Segment, Segments
from orchestrator.client.room import Route

Payload = bytes | list[Part]

_ANSWERED: Final = frozenset({OK, ROWS})


class Sharing:
    """lent: the segments of unanswered requests, by request id; changed under the connection's lock."""

    def __init__(self, welcome: Welcome) -> None:
        self.lent: dict[int, Segment] = {}
        self._segments = Segments(welcome.shared_dir, welcome.shared_bytes) if welcome.shared_dir else None

    def place(self, payload: Payload, route: Route, *, framed: bool) -> tuple[bytes, Segment | None]:
        """Return what is sent of a payload, and the segment that it is in, or that its outcome may be in.

        framed: it goes in frames. So does the payload of a request with a key, for others may share what that comes to,
        and theirs is compared with it; and what the coordinator itself answers.
        """
        parts = [payload] if isinstance(payload, bytes) else payload
        size_bytes = sum(map(len, parts))
        segments = None if framed else self._segments
        if segments is not None and size_bytes >= LARGE_BYTES:
            segment = segments.lend(parts, size_bytes)
            if segment is not None:
                return shared_memory.sample(parts), segment
        empty = segments.take(LARGE_BYTES) if segments is not None and route.large else None
        return b"".join(parts), empty

    def received(self, reply: Reply) -> Reply:
        """Take in the reply to a request: with its payload, wherever that is."""
        segment = self.lent.pop(reply.request_id, None)
        if segment is None or self._segments is None:
            return reply
        if reply.shared_bytes:
            reply = _collected(segment, reply)
        if reply.status in _ANSWERED:
            self._segments.give_back(segment)
        else:
            self._segments.drop(segment)
        return reply

    def lost(self, request_id: int) -> None:
        """A request has ended without a reply."""
        segment = self.lent.pop(request_id, None)
        if segment is not None:
            self.unused(segment)

    def unused(self, segment: Segment) -> None:
        """A request with this segment was not sent."""
        if self._segments is not None:
            self._segments.drop(segment)

    def close(self) -> None:
        """Remove all segments."""
        if self._segments is not None:
            self._segments.close()


def _collected(segment: Segment, reply: Reply) -> Reply:
    try:
        data = shared_memory.read(segment.fd, reply.shared_bytes, shared_memory.behind(segment.used_bytes))
    except BridgeError as error:
        return replace(reply, status=ERROR, payload=encode_error(error), shared_bytes=0)
    return replace(reply, payload=data)
