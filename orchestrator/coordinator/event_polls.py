"""`dspool.events`: who reads the event log, and who waits for its next event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from bridge.protocol.errors import INVALID_REQUEST, BridgeError, shown
from bridge.protocol.messages import OK, Reply
from bridge.protocol.values import encode_value
from orchestrator.coordinator.event_log import EventLog

MAX_WAIT_S: Final = 30.0
MAX_ROWS: Final = 1_000
_ANSWER_BYTES: Final = 1 << 20
# Of one client that wait at once: with one more, the one that has waited longest is answered.
_PER_CLIENT: Final = 8

Answers = list[tuple[bytes, Reply]]


class _Poll(NamedTuple):
    after: int
    limit: int
    until: float


class EventPolls:
    """Those who wait for an event. is_stored(): whether there may be a store with older events than the log keeps."""

    def __init__(self, events: EventLog, is_stored: Callable[[], bool]) -> None:
        self._events = events
        self._is_stored = is_stored
        self._waiting: dict[bytes, dict[int, _Poll]] = {}  # by client and request; who waits longest first
        self._told = events.last  # all that wait have heard of events up to here

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def have_news(self) -> bool:
        """Whether somebody waits and something has happened."""
        return bool(self._waiting) and self._told != self._events.last

    def ask(self, peer: bytes, request_id: int, args: dict[str, Any], now: float) -> Answers:
        """Operation `dspool.events {after, limit, wait_s}`; return who is to be answered at once.

        The answer: {events: [[seq, at, event, level, fields], …], first, last, older, unknown}. With events behind
        `after` it comes at once, with none after `wait_s` seconds at most. older: `events` is empty, for there may be
        some in the store behind `after` and before `first`; they come first. unknown: `after` is no number of this data
        directory, and was taken for 0.
        """
        after = _number(args, "after", 0, 1 << 63)
        limit = min(max(1, _number(args, "limit", MAX_ROWS, MAX_ROWS)), MAX_ROWS)
        wait_s = args.get("wait_s", 0.0)
        if not isinstance(wait_s, int | float) or isinstance(wait_s, bool) or not wait_s >= 0:
            raise _invalid("wait_s", f"{shown(wait_s)} is no number of seconds")
        poll = _Poll(after, limit, now + min(float(wait_s), MAX_WAIT_S))
        if wait_s == 0 or after != self._events.last:
            return [(peer, _reply(request_id, self._answer(after, limit)))]
        if not self._waiting:
            self._told = self._events.last
        own = self._waiting.setdefault(peer, {})
        own[request_id] = poll
        if len(own) <= _PER_CLIENT:
            return []
        longest = next(iter(own))
        return [(peer, _reply(longest, self._answer(own.pop(longest).after, limit)))]

    def answer_all(self) -> Answers:
        """Answer everybody who waits: with what has happened, or with nothing."""
        waiting, self._waiting = self._waiting, {}
        self._told = self._events.last
        made: dict[tuple[int, int], bytes] = {}  # many wait for the same
        answers = []
        for peer, polls in waiting.items():
            for request_id, poll in polls.items():
                asked = poll.after, poll.limit
                if asked not in made:
                    made[asked] = encode_value(self._answer(*asked))
                answers.append((peer, Reply(request_id=request_id, status=OK, payload=made[asked])))
        return answers

    def expire(self, now: float) -> Answers:
        """Answer who has waited as long as it wanted. About twice a second."""
        answers = []
        for peer, polls in list(self._waiting.items()):
            for request_id in [request_id for request_id, poll in polls.items() if poll.until <= now]:
                poll = polls.pop(request_id)
                answers.append((peer, _reply(request_id, self._answer(poll.after, poll.limit))))
            if not polls:
                del self._waiting[peer]
        return answers

    def forget(self, peer: bytes) -> None:
        """A client is gone."""
        self._waiting.pop(peer, None)

    def _answer(self, after: int, limit: int) -> dict[str, Any]:
        log = self._events
        unknown = after > log.last
        if unknown:
            after = 0
        first = log.first
        older = after < first - 1 and self._is_stored()
        events = [] if older else [list(event) for event in log.read(after, limit, _ANSWER_BYTES)]
        return {"events": events, "first": first, "last": log.last, "older": older, "unknown": unknown}


def _reply(request_id: int, value: Any) -> Reply:
    return Reply(request_id=request_id, status=OK, payload=encode_value(value))


def _number(args: dict[str, Any], path: str, default: int, most: int) -> int:
    value = args.get(path, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _invalid(path, f"{shown(value)} is no number from 0 on")
    return min(value, most)


def _invalid(path: str, text: str) -> BridgeError:
    return BridgeError(INVALID_REQUEST, f"{path}: {text}", details={"path": path})
