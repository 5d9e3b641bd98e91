"""Who is at the other end: Hellos, bad messages, muting."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from bridge.protocol.codec import Decoded
from bridge.protocol.errors import INVALID_REQUEST, UNAVAILABLE, VERSION_MISMATCH, BridgeError, encode_error
from bridge.protocol.messages import PROTOCOL_VERSION, Hello, Invalid, Message, Refused
from bridge.protocol.names import is_text

BAD_MESSAGES: Final = 10
_TABLE_SIZE: Final = 4096
MAX_PRINCIPAL_CHARS: Final = 200


class Peers:
    """The manners of one socket's peers. Both tables are bounded: the oldest entry makes room."""

    def __init__(self, run_id: str, package_version: str) -> None:
        self._run_id = run_id
        self._version = package_version
        self._bad: OrderedDict[bytes, int] = OrderedDict()
        self._muted: OrderedDict[bytes, None] = OrderedDict()
        self.malformed = 0
        self.unknown = 0

    @property
    def muted(self) -> int:
        """How many peers are muted."""
        return len(self._muted)

    def is_muted(self, peer: bytes) -> bool:
        """Whether this peer's frames are dropped unread."""
        return peer in self._muted

    def mute(self, peer: bytes) -> None:
        """Read nothing more from a peer."""
        self._muted[peer] = None
        if len(self._muted) > _TABLE_SIZE:
            self._muted.popitem(last=False)

    def misread(self, peer: bytes, decoded: Decoded) -> list[Message]:
        """Count a frame that could not be read to its end; return what its sender is told."""
        self.malformed += 1
        bad = self._bad.pop(peer, 0) + 1
        self._bad[peer] = bad
        if len(self._bad) > _TABLE_SIZE:
            self._bad.popitem(last=False)
        code = VERSION_MISMATCH if decoded.wrong_version else INVALID_REQUEST
        text = f"a message could not be read: {decoded.problem}"
        if decoded.wrong_version:
            text += f" (dspool {self._version} speaks protocol {PROTOCOL_VERSION})"
        answers: list[Message] = []
        if decoded.wrong_version and bad == 1:
            answers.append(Refused(payload=encode_error(BridgeError(code, text))))
        if decoded.request_id:
            answers.append(Invalid(request_id=decoded.request_id, payload=encode_error(BridgeError(code, text))))
        if bad >= BAD_MESSAGES:
            last = BridgeError(code, f"{bad} messages could not be read; this connection is muted. The last: {text}")
            answers.append(Invalid(muted=True, payload=encode_error(last)))
            self.mute(peer)
            self._bad.pop(peer, None)
        return answers

    def misbehaved(self, peer: bytes, why: str) -> list[Message]:
        """Count a message that its sender had no right to send; return what it is told."""
        return self.misread(peer, Decoded([], problem=why))

    def refusal(self, hello: Hello, role: str) -> Refused | None:
        """Return why a Hello is not accepted on this socket, or None."""
        error = None
        if hello.role != role:
            error = BridgeError(INVALID_REQUEST, f"a {hello.role[:20]!r} said Hello where a {role} was expected")
        elif hello.run_id and hello.run_id != self._run_id:
            error = BridgeError(
                UNAVAILABLE, f"this is run {self._run_id}, not {hello.run_id[:32]}: discover the coordinator again"
            )
        elif len(hello.principal) > MAX_PRINCIPAL_CHARS or "\0" in hello.principal or not is_text(hello.principal):
            # It is kept with its sessions: a store that refuses one keeps no other's.
            text = f"principal: it has 1 to {MAX_PRINCIPAL_CHARS} characters, no NUL and no lone surrogate"
            error = BridgeError(INVALID_REQUEST, text, details={"path": "principal"})
        return Refused(payload=encode_error(error)) if error is not None else None
