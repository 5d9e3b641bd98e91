"""A history as people read it: what the coordinator heard, and what it did."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from bridge.protocol import messages as wire
from bridge.protocol.errors import decode_error
from bridge.protocol.sessions import cut_tail
from tests.sim.ledger import label

_SKIP: Final = frozenset({"version", "type", "request_id", "payload", "pressed", "total_ms", "queue_ms", "run_ms"})
_LINES_KEPT: Final = 60


class Story:
    """The lines of one history, the latest of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, at: float, text: str) -> None:
        """Add a line with its time."""
        self.lines.append(f"{at:10.4f} s  {text}")

    def event(self, at: float, event: Any, peer: bytes) -> None:
        """Tell what the coordinator hears."""
        who = f"{peer.decode()} says " if peer else ""
        self.tell(at, f"{who}{_text(event)}")

    def sent(self, peer: bytes, message: Any) -> None:
        """Tell what the coordinator does about it."""
        self.lines.append(f"{'':14}→ {peer.decode()}: {_text(message)}")

    def latest(self) -> list[str]:
        """Return the last lines, without ticks and heartbeats that led to nothing."""
        kept = [
            line
            for line, after in zip(self.lines, [*self.lines[1:], "→"], strict=True)
            if "→" in line or "→" in after or not line.endswith(("Tick", "Heartbeat"))
        ]
        cut = len(kept) - _LINES_KEPT
        return [f"({cut} lines before)", *kept[cut:]] if cut > 0 else kept


def _text(message: Any) -> str:
    kind = type(message).__name__
    if kind in ("Tick", "Heartbeat"):
        return kind
    parts = [kind]
    if isinstance(message, wire.Message) and message.request_id:
        parts.append(label(message.request_id))
    for field in msgspec.structs.fields(message):
        value = getattr(message, field.name)
        if field.name == "pool" and isinstance(message, wire.Message):
            continue
        if field.name not in _SKIP and value != field.default:
            parts.append(f"{field.name}={value}")
    if isinstance(message, wire.Reply) and message.status == wire.ERROR:
        tail = message.session.tail if message.session is not None else 0
        error = decode_error(cut_tail(message.payload or b"", tail)[0])
        parts.append(f"{error.code}: {error.message[:90]}")
    return " ".join(parts)
