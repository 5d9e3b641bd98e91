"""Who is in a batch: attempts, their rows, the items of these, and whose turn it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from bridge.protocol.codec import pack_outcomes
from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.messages import ERROR, NOT_RUN, ROWS, Reply, Request
from bridge.worker.batch_limit import size_of
from bridge.worker.call import Call

Outcome = tuple[int, bytes]

# What an outcome of a row takes in a reply besides its payload, at most.
_OUTCOME_BYTES: Final = 7


class Claimed(Protocol):
    """An attempt that is the batcher's. received_s: `time.monotonic()` when it came."""

    request: Request

    @property
    def call(self) -> Call:
        """Its deadline, whether it was cancelled."""

    @property
    def received_s(self) -> float:
        """When the worker got it."""


class Row:
    """The items of one argument value. given: how many are in batches; parts: what these returned, in order."""

    __slots__ = ("given", "got", "items", "member", "outcome", "parts")

    def __init__(self, member: Member, items: list[Any]) -> None:
        self.member = member
        self.items = items
        self.given = 0
        self.got = 0
        self.parts: list[Any] = []
        self.outcome: Outcome | None = None

    def fail(self, error: BridgeError) -> None:
        """Settle it with an error, and give nothing more of it to batches."""
        if self.outcome is None:
            self.settle((ERROR, encode_error(error)))

    def settle(self, outcome: Outcome) -> None:
        """Settle it. The client asks again for what the reply has no room for, and for all rows after that."""
        member = self.member
        member.open_rows -= 1
        size = len(outcome[1])
        no_room = size > member.left_bytes and member.settled_rows > 0
        if no_room:
            outcome = NOT_RUN, b""
            size = 0
        self.outcome = outcome
        member.settled_rows += 1
        member.left_bytes -= size
        self.items, self.parts = [], []
        self.given = 0
        if no_room:
            for row in member.rows:
                if row.outcome is None:
                    row.settle((NOT_RUN, b""))


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive items of one row, in one batch."""

    row: Row
    start: int
    end: int

    @property
    def size(self) -> int:
        """How many items it has."""
        return self.end - self.start

    def items(self) -> list[Any]:
        """Return the items."""
        return self.row.items[self.start : self.end]


class Member:
    """An attempt in the batcher: rows, how many of them are open, and its share of the batches' time."""

    __slots__ = ("attempt", "left_bytes", "next_row", "open_rows", "rows", "run_ms", "settled_rows")

    def __init__(self, attempt: Claimed, message_bytes: int) -> None:
        self.attempt = attempt
        self.rows: list[Row] = []
        self.next_row = 0
        self.open_rows = 0
        self.settled_rows = 0
        self.left_bytes = message_bytes - _OUTCOME_BYTES * attempt.request.rows
        self.run_ms = 0.0

    def add(self, items: list[Any]) -> Row:
        """Add a row."""
        row = Row(self, items)
        self.rows.append(row)
        self.open_rows += 1
        return row

    def pending(self) -> int:
        """Return how many items are in no batch yet."""
        return sum(len(row.items) - row.given for row in self.rows[self.next_row :])

    def take(self, most: int, chars: int, *, at_least: int) -> Piece | None:
        """Take the next items of one row, `most` at most and of `chars` characters together; None = nothing fits.

        at_least: 1 if one item is taken whatever its size.
        """
        while self.next_row < len(self.rows):
            row = self.rows[self.next_row]
            if row.given < len(row.items):
                break
            self.next_row += 1
        else:
            return None
        start = end = row.given
        stop = min(len(row.items), start + most)
        while end < stop:
            chars -= size_of(row.items[end])
            if chars < 0 and end - start >= at_least:
                break
            end += 1
        if end == start:
            return None
        row.given = end
        return Piece(row, start, end)

    def stop(self, error: BridgeError) -> None:
        """Settle all that is open with an error."""
        for row in self.rows:
            row.fail(error)

    def reply(self) -> Reply:
        """Return the reply; every row is settled."""
        request, call = self.attempt.request, self.attempt.call
        outcomes = [row.outcome for row in self.rows if row.outcome is not None]
        assert len(outcomes) == request.rows
        status, payload = outcomes[0] if request.rows == 1 else (ROWS, pack_outcomes(outcomes))
        return Reply(
            request_id=request.request_id, payload=payload, status=status, epoch=request.epoch, run_ms=self.run_ms,
            lm_calls=call.lm_calls, tokens=call.tokens, cost_usd=call.cost_usd, cached=call.cached,
        )  # fmt: skip


def take_batch(members: deque[Member], most: int, chars: int) -> list[Piece]:
    """Take the next batch from the members, by turns: a request of thousands of items holds up nobody's few.

    Who was not reached is first the next time.
    """
    pieces: list[Piece] = []
    share = max(1, most // max(1, len(members)))
    passed = 0  # members in a row that had nothing to give
    while most > 0 and passed < len(members):
        piece = members[0].take(min(share, most), chars, at_least=0 if pieces else 1)
        if piece is None and members[0].pending():
            break  # the next item is too large for this batch
        members.rotate(-1)
        if piece is None:
            passed += 1
            continue
        passed = 0
        pieces.append(piece)
        most -= piece.size
        chars -= sum(map(size_of, piece.items()))
    return pieces


def cut(pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Return the two halves of a batch of two items or more."""
    left = sum(piece.size for piece in pieces) // 2
    first: list[Piece] = []
    for number, piece in enumerate(pieces):
        if left <= 0:
            return first, list(pieces[number:])
        if piece.size > left:
            middle = piece.start + left
            rest = [replace(piece, start=middle), *pieces[number + 1 :]]
            return [*first, replace(piece, end=middle)], rest
        first.append(piece)
        left -= piece.size
    return first, []
