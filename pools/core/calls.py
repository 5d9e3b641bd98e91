"""What is known of a session's calls: how many, how long they took, how many went well."""

from __future__ import annotations

import math
from array import array
from typing import Any, Final

import msgspec

_RECENT: Final = 100
# The trend: the mean of the newer half of so many against that of the older half.
_TREND: Final = 20
_CHANGE: Final = 0.2
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, float, list[float]]).decode


class Calls:
    """The calls of one session. count, good: all of them, and those that succeeded; recent: run times, milliseconds."""

    __slots__ = ("count", "good", "recent", "total_ms")

    def __init__(self) -> None:
        self.count = 0
        self.good = 0
        self.total_ms = 0.0
        self.recent = array("f")

    def add(self, run_ms: float, *, good: bool) -> None:
        """Count a call that has ended."""
        self.count += 1
        self.good += good
        self.total_ms += run_ms
        if len(self.recent) >= _RECENT:
            del self.recent[0]
        self.recent.append(run_ms)

    def metrics(self) -> dict[str, Any]:
        """Return `count`, `mean_ms` of all, `p95_ms` of the last 100, `success_rate`, `trend`; None without calls.

        trend: improving = the last 10 took at least a fifth less than the 10 before, degrading = a fifth more, else
        steady.
        """
        if not self.count:
            return {"count": 0, "mean_ms": None, "p95_ms": None, "success_rate": None, "trend": "steady"}
        ranked = sorted(self.recent)
        return {
            "count": self.count,
            "mean_ms": self.total_ms / self.count,
            "p95_ms": ranked[math.ceil(0.95 * len(ranked)) - 1] if ranked else None,
            "success_rate": self.good / self.count,
            "trend": self._trend(),
        }

    def _trend(self) -> str:
        if len(self.recent) < _TREND:
            return "steady"
        half = _TREND // 2
        older, newer = sum(self.recent[-_TREND:-half]), sum(self.recent[-half:])
        if newer <= older * (1.0 - _CHANGE) and newer < older:
            return "improving"
        return "degrading" if newer >= older * (1.0 + _CHANGE) and newer > older else "steady"

    def pack(self) -> bytes:
        """Return it as bytes, for `unpack`."""
        return _encode((self.count, self.good, self.total_ms, self.recent.tolist()))

    @classmethod
    def unpack(cls, data: bytes) -> Calls:
        """Return what was packed. Raises ValueError if that is nothing of the kind."""
        calls = cls()
        try:
            calls.count, calls.good, calls.total_ms, recent = _decode(data)
        except msgspec.DecodeError as exc:
            raise ValueError(f"no calls of a session: {exc}") from exc
        calls.recent = array("f", recent[-_RECENT:])
        return calls
