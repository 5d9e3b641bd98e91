"""Requests that workers die of: who is under suspicion, what is in quarantine.

A request is told from others by its fingerprint: the operation (and which version of the program), the language model,
the arguments. What ran as a worker died is under suspicion for a while and runs alone (see `isolation`); what a worker
died of while it ran nothing else, and that often enough, is a dead letter: kept, refused, not run again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from typing import Any, Final

import msgspec

from bridge.protocol.errors import POISON_REQUEST, BridgeError, not_found
from bridge.protocol.messages import Request

SUSPECT_S: Final = 600.0
MAX_SUSPECTS: Final = 10_000
MAX_LETTERS: Final = 1_000
MAX_LETTER_BYTES: Final = 64 * 1024 * 1024
# Causes kept of one request; the deaths are counted all the same.
_MAX_CAUSES: Final = 10
_ID_CHARS: Final = 12
_SHAPE_BYTES: Final = 8


def shape(message: Request, version: int) -> bytes:
    """Return what a fingerprint begins with: all that equal requests have in common but the arguments themselves.

    Of these it has the length alone, so it costs the same however large they are. version: of the program that the
    operation names, 0 if none.
    """
    size = len(message.payload or b"")
    head = f"{len(message.operation)}:{message.operation}{version}:{len(message.lm)}:{message.lm}{size}"
    return hashlib.blake2b(head.encode(), digest_size=_SHAPE_BYTES).digest()


def fingerprint(message: Request, version: int) -> bytes:
    """Return what equal requests have in common. Reads all of the arguments: 1 ms per MB."""
    return shape(message, version) + hashlib.blake2b(message.payload or b"", digest_size=16).digest()


class Suspect(msgspec.Struct):
    """A request that ran as workers died. deaths: those that are its own; causes: how they ended, the first ones."""

    deaths: int
    causes: list[str]
    first_at: float
    last_at: float


class Letter(msgspec.Struct):
    """A dead letter. requests: how many equal ones ended by it, the first included."""

    letter_id: str
    fingerprint: bytes
    message: Request
    pool: str
    principal: str
    suspect: Suspect
    requests: int = 0


class Poison:
    """The memory of deaths. limit: a request is quarantined after so many deaths; 0 = nothing is remembered.

    All of it is bounded: what is oldest is forgotten first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.suspects: OrderedDict[bytes, Suspect] = OrderedDict()  # the latest death last
        self.letters: OrderedDict[bytes, Letter] = OrderedDict()
        self._shapes: Counter[bytes] = Counter()  # of all suspects and letters
        self.operations: set[str] = set()  # all that were concerned since there last was none of them
        self.timer_at = 0.0  # when the suspects are looked at next; 0 = never
        self._letter_bytes = 0

    def __bool__(self) -> bool:
        return bool(self.suspects or self.letters)

    def may_know(self, shape_: bytes) -> bool:
        """Return whether a request of this shape may equal a suspect or a dead letter."""
        return shape_ in self._shapes

    def died(self, print_: bytes, cause: str, *, alone: bool, sent_at: float, now: float) -> bool:
        """A worker died while such a request, which it was sent at `sent_at`, ran there. alone: and nothing else.

        Returns whether that was one death too many. A death in company raises suspicion and counts once, and so do the
        deaths of those that were under way when it was raised: they may all have had one cause from outside.
        """
        suspect = self.suspects.pop(print_, None)
        if suspect is None:
            suspect = Suspect(0, [], now, now)
            self._shapes[print_[:_SHAPE_BYTES]] += 1
        self.suspects[print_] = suspect
        alone = alone and (not suspect.deaths or sent_at >= suspect.last_at)
        suspect.deaths = suspect.deaths + 1 if alone else max(1, suspect.deaths)
        suspect.last_at = now
        if len(suspect.causes) < _MAX_CAUSES:
            suspect.causes.append(cause)
        if len(self.suspects) > MAX_SUSPECTS:
            self.clear(next(iter(self.suspects)))
        return alone and suspect.deaths >= self.limit

    def clear(self, print_: bytes) -> bool:
        """Forget a suspect. Return whether it was one."""
        if self.suspects.pop(print_, None) is None:
            return False
        self._drop_shape(print_)
        return True

    def quarantine(self, print_: bytes, message: Request, pool: str, principal: str) -> Letter:
        """Make a suspect a dead letter."""
        suspect = self.suspects.pop(print_)
        letter = Letter(print_[_SHAPE_BYTES:].hex()[:_ID_CHARS], print_, message, pool, principal, suspect)
        self.letters[print_] = letter
        self._letter_bytes += _size(letter)
        while len(self.letters) > 1 and (len(self.letters) > MAX_LETTERS or self._letter_bytes > MAX_LETTER_BYTES):
            self._forget(next(iter(self.letters.values())))
        return letter

    def find(self, letter_id: str) -> Letter:
        """Return a dead letter. Raises BridgeError NOT_FOUND."""
        for letter in self.letters.values():
            if letter.letter_id == letter_id:
                return letter
        raise not_found("dead letter", letter_id, [letter.letter_id for letter in self.letters.values()])

    def drop(self, letter_id: str) -> Letter:
        """Forget a dead letter: equal requests are like any other. Raises BridgeError NOT_FOUND."""
        letter = self.find(letter_id)
        self._forget(letter)
        return letter

    def pardon(self, letter_id: str, now: float) -> Letter:
        """Take a dead letter out of quarantine, on its last chance: its next death is one too many again."""
        letter = self.drop(letter_id)
        letter.suspect.last_at = now
        self.suspects[letter.fingerprint] = letter.suspect
        self._shapes[letter.fingerprint[:_SHAPE_BYTES]] += 1
        return letter

    def expire(self, now: float) -> None:
        """Forget the suspects of whom nothing was heard for long."""
        while self.suspects and next(iter(self.suspects.values())).last_at <= now - SUSPECT_S:
            self.clear(next(iter(self.suspects)))

    def expires_at(self) -> float | None:
        """Return when the next suspect is forgotten, or None."""
        return next(iter(self.suspects.values())).last_at + SUSPECT_S if self.suspects else None

    def rows(self, now: float) -> list[dict[str, Any]]:
        """Return the dead letters as users see them, the oldest first."""
        return [row(letter, now) for letter in self.letters.values()]

    def _forget(self, letter: Letter) -> None:
        del self.letters[letter.fingerprint]
        self._letter_bytes -= _size(letter)
        self._drop_shape(letter.fingerprint)

    def _drop_shape(self, print_: bytes) -> None:
        key = print_[:_SHAPE_BYTES]
        self._shapes[key] -= 1
        if not self._shapes[key]:
            del self._shapes[key]


def _size(letter: Letter) -> int:
    return len(letter.message.payload or b"")


def row(letter: Letter, now: float) -> dict[str, Any]:
    """Return a dead letter as users see it."""
    suspect = letter.suspect
    return {
        "id": letter.letter_id,
        "operation": letter.message.operation,
        "pool": letter.pool,
        "principal": letter.principal,
        "deaths": suspect.deaths,
        "causes": list(suspect.causes),
        "first_s_ago": now - suspect.first_at,
        "last_s_ago": now - suspect.last_at,
        "bytes": _size(letter),
        "requests": letter.requests,
    }


def poison_error(letter: Letter) -> BridgeError:
    """Return what who asks for a dead letter is told."""
    suspect = letter.suspect
    return BridgeError(
        POISON_REQUEST,
        f"{suspect.deaths} workers died of this request ({', '.join(suspect.causes)}): it is not run again; "
        f"see dead letter {letter.letter_id}, requeue it or drop it",
        details={"deaths": suspect.deaths, "causes": list(suspect.causes), "dead_letter": letter.letter_id},
    )
