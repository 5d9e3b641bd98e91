"""Sessions that outlive the coordinator: what is to be kept, and the answers that wait until it is.

What has changed is taken in batches, one after the other; the shell has each kept and says how that went. The answer of
a call that changed its session goes out when the change is kept, at its deadline at the latest. Where nothing can be
kept answers do not wait: what has changed stays to be kept, and answers wait again when a batch has been.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from bridge.protocol.messages import Reply
from pools.core.deadlines import Deadlines
from pools.core.events import SaveBatch, SessionImage, SessionsSaved, SessionsUnsaved

if TYPE_CHECKING:
    from pools.core.session import Session
    from pools.core.tables import Tables

_BATCH: Final = 256
_BATCH_BYTES: Final = 8 * 1024 * 1024


class _Answer:
    """An answer that waits until its session is kept. bucket: of its deadline, None = it has none."""

    __slots__ = ("bucket", "peer", "reply", "waits")

    def __init__(self, peer: bytes, reply: Reply) -> None:
        self.peer = peer
        self.reply = reply
        self.bucket: int | None = None
        self.waits = True


class _Change:
    """A session that has changed, and the answers that wait for it to be kept. was_saved: state, last turn."""

    __slots__ = ("answers", "session", "was_saved")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.answers: list[_Answer] = []
        self.was_saved = (session.state_saved, session.turn_saved)


class Saves:
    """What is to be kept of the sessions.

    synced: what was kept before this run has been restored; until then `problem` may say why not. partial: not all of
    it could be. holding: answers wait. Changes are by key: of a session that began anew only the latest is kept.
    """

    def __init__(self) -> None:
        self.synced = False
        self.problem = ""
        self.partial = False
        self.holding = True
        self._changed: dict[str, _Change] = {}
        self._out: dict[int, list[_Change]] = {}
        self._tokens = itertools.count(1)
        self._deadlines: Deadlines[_Answer] = Deadlines()

    @property
    def unsaved(self) -> bool:
        """Whether anything is to be kept that is in no batch yet."""
        return bool(self._changed)

    @property
    def backlog(self) -> int:
        """How many sessions, those that have ended among them, are to be kept or on their way to be."""
        return len(self._changed) + sum(len(batch) for batch in self._out.values())

    @property
    def waits(self) -> bool:
        """Whether anything is to be kept, or is on its way to be, and can be as far as is known."""
        return self.holding and bool(self._changed or self._out)

    def changed(self, session: Session) -> None:
        """A session is to be kept as it is when it is taken: to be removed if it has ended by then."""
        change = self._changed.get(session.key)
        if change is None or change.session is not session:
            self._changed[session.key] = new = _Change(session)
            if change is not None:
                new.answers = change.answers
                session.stored |= change.session.stored

    def ended(self, session: Session) -> list[tuple[bytes, Reply]]:
        """A session has ended: it is to be removed. If the store has nothing of it, return the answers that waited."""
        if session.stored or self.partial:
            self.changed(session)
            return []
        change = self._changed.pop(session.key, None)
        return [] if change is None else self._release([change])

    def holds(self, session: Session, peer: bytes, reply: Reply, deadline: float | None) -> bool:
        """Return whether an answer waits until its session is kept, or its deadline; if not it goes out now."""
        change = self._changed.get(session.key) if self.holding else None
        if change is None or change.session is not session:
            return False
        answer = _Answer(peer, reply)
        if deadline is not None:
            answer.bucket = self._deadlines.add(answer, deadline)
        change.answers.append(answer)
        return True

    def next_due(self) -> float | None:
        """Return when an answer has waited as long as it can, or None."""
        return self._deadlines.next_due()

    def overdue(self, now: float) -> list[tuple[bytes, Reply]]:
        """Return the answers whose deadline has come."""
        found = self._deadlines.pop_due(now)
        for answer in found:
            answer.waits = False
        return [(answer.peer, answer.reply) for answer in found]

    def take(self, now: float) -> SaveBatch | None:
        """Return the next batch, None if there is nothing to be kept."""
        batch: list[_Change] = []
        images: list[SessionImage] = []
        size = 0
        for key, change in list(self._changed.items()):
            session = change.session
            if batch and (len(batch) >= _BATCH or size + session.size > _BATCH_BYTES):
                break
            size += session.size
            del self._changed[key]
            change.was_saved = (session.state_saved, session.turn_saved)
            images.append(_image(session, now))
            session.stored = session.state_saved = True
            session.turn_saved = session.turns[-1][0] if session.turns else session.turn_saved
            batch.append(change)
        if not batch:
            return None
        token = next(self._tokens)
        self._out[token] = batch
        return SaveBatch(token, tuple(images))

    def saved(self, token: int) -> list[tuple[bytes, Reply]]:
        """A batch is kept: return the answers that may go."""
        self.holding = True
        return self._release(self._out.pop(token, ()))

    def unsaved_batch(self, token: int) -> list[tuple[bytes, Reply]]:
        """A batch could not be kept: return all answers that wait; none does from now on."""
        batch = self._out.pop(token, [])
        answers = self._release(batch)
        for change in batch:
            session = change.session
            session.state_saved, session.turn_saved = False, min(session.turn_saved, change.was_saved[1])
            self._changed.setdefault(session.key, change).session.stored = True
        return answers + self.let_go()

    def let_go(self) -> list[tuple[bytes, Reply]]:
        """Hold no answer any more: return those that wait for a batch to come."""
        self.holding = False
        return self._release(self._changed.values())

    def give_up(self) -> list[tuple[bytes, Reply]]:
        """Return all answers that wait, also those of batches that are out."""
        return self.let_go() + [answer for batch in self._out.values() for answer in self._release(batch)]

    def _release(self, changes: Iterable[_Change]) -> list[tuple[bytes, Reply]]:
        """Return the answers that wait for some changes; they do not any more."""
        released = []
        for change in changes:
            for answer in change.answers:
                if answer.waits:
                    answer.waits = False
                    released.append((answer.peer, answer.reply))
                    if answer.bucket is not None:
                        self._deadlines.discard(answer, answer.bucket)
            change.answers = []
        return released


def expire(tables: Tables, now: float) -> None:
    """Let the answers go whose deadline has come: their change is kept a little later, or after an outage."""
    if tables.saves is not None:
        tables.to_clients.extend(tables.saves.overdue(now))


def on_saved(tables: Tables, event: SessionsSaved, now: float, peer: bytes) -> None:
    """A batch is kept."""
    if tables.saves is not None:
        tables.to_clients.extend(tables.saves.saved(event.token))


def on_unsaved(tables: Tables, event: SessionsUnsaved, now: float, peer: bytes) -> None:
    """A batch could not be kept."""
    if tables.saves is not None:
        tables.to_clients.extend(tables.saves.unsaved_batch(event.token))


def _image(session: Session, now: float) -> SessionImage:
    options = session.options
    ended = bool(session.ended)
    fresh = () if ended else tuple(turn for turn in session.turns if turn[0] > session.turn_saved)
    return SessionImage(
        principal=session.principal,
        id=session.id,
        generation=session.generation,
        seq=session.seq + ended,  # an end is a change too
        ttl_s=options.ttl_s,
        affinity=options.affinity,
        on_loss=options.on_loss,
        state=None if session.state_saved or ended else session.state,
        turns=fresh,
        first_turn=session.turns[0][0] if session.turns else session.turn_saved + 1,
        calls=session.calls.count,
        stats=session.calls.pack(),
        idle_s=0.0 if session.busy else max(0.0, now - session.used_at),
        ended=ended,
    )
