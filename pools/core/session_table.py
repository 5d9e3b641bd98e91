"""All sessions by principal and id, how much they are, and when the next one may have expired."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from pools.core.deadlines import Deadlines

if TYPE_CHECKING:
    from pools.core.session import Session

# Of so many sessions that are gone it is known why.
_ENDED_KEPT: Final = 1000


class Ended(NamedTuple):
    """A session that is gone."""

    generation: int
    reason: str


class SessionTable:
    """The sessions by key (see `session.key_of`).

    bytes: of state and turns, of all. restored, lost, unrestored: how many since the last sweep told of them.
    why_unrestored: of the last one. run: the upper part of this run's generations, so that they are not those of
    another.
    """

    def __init__(self, run: int) -> None:
        self.by_key: dict[str, Session] = {}
        self.of_principal: dict[str, int] = {}
        self.ended: OrderedDict[str, Ended] = OrderedDict()
        self.bytes = 0
        self.restored = 0
        self.lost = 0
        self.unrestored = 0
        self.why_unrestored = ""
        self.run = run
        self._generations = 0
        self._turns = 0
        self._expiries: Deadlines[Session] = Deadlines()

    def __len__(self) -> int:
        return len(self.by_key)

    def next_generation(self) -> int:
        """Return the next generation: none of them is given twice."""
        self._generations += 1
        return self.run << 32 | self._generations

    def next_turn(self) -> int:
        """Return the next number of a turn; they grow over all sessions."""
        self._turns += 1
        return self._turns

    def turns_until(self, number: int) -> None:
        """Turns up to this number are known: the next ones have higher numbers."""
        self._turns = max(self._turns, number)

    def add(self, session: Session) -> None:
        """Enter a session."""
        self.by_key[session.key] = session
        self.of_principal[session.principal] = self.of_principal.get(session.principal, 0) + 1
        self.bytes += session.size
        self.schedule(session)

    def remove(self, session: Session, reason: str) -> None:
        """Take a session out; remember why."""
        session.ended = reason
        del self.by_key[session.key]
        left = self.of_principal.pop(session.principal) - 1
        if left:
            self.of_principal[session.principal] = left
        self.bytes -= session.size
        self._expiries.discard(session, session.bucket)
        self.ended[session.key] = Ended(session.generation, reason)
        self.ended.move_to_end(session.key)
        if len(self.ended) > _ENDED_KEPT:
            self.ended.popitem(last=False)

    def schedule(self, session: Session) -> None:
        """Look at a session again when it has expired, as it is now."""
        self._expiries.discard(session, session.bucket)
        session.bucket = self._expiries.add(session, session.used_at + session.options.ttl_s)

    def pop_expired(self, now: float) -> list[Session]:
        """Return those that have expired; the others whose time was looked for are looked at again."""
        found = []
        for session in self._expiries.pop_due(now):
            if session.expires_at <= now:
                found.append(session)
            elif session.busy:
                session.bucket = self._expiries.add(session, now + session.options.ttl_s)
            else:
                self.schedule(session)
        return found
