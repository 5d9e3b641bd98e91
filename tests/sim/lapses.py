"""More bugs for the core, in what it remembers: sessions, their turns, copies and ends, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from msgspec.structs import replace

from bridge.protocol.sessions import pack_snapshot
from pools.core import nesting, session, sessions
from pools.core.session import Session
from pools.core.session_saves import Saves
from pools.core.session_table import SessionTable
from pools.core.states import SETTLED

_answered = Session.answered
_attempt = Session.attempt
_look_after = Session.look_after
_make = Session.__init__
_stir = Session.stir
_enter = sessions.enter
_pack = pack_snapshot
_settle_down = sessions.settle_down
_unsaved_batch = Saves.unsaved_batch
_waits_for_itself = nesting.waits_for_itself


# --- turns ------------------------------------------------------------------------------------------


@contextmanager
def two_calls_at_once() -> Iterator[None]:
    """Nobody waits for the turn."""

    def free(self: Any) -> bool:
        self.holder = None
        return True

    with patch.object(Session, "free", free):
        yield


@contextmanager
def a_turn_given_up_too_soon() -> Iterator[None]:
    """Who is answered has had its turn, although its attempt goes on."""
    with patch.object(session, "_is_out", lambda entry: False):
        yield


@contextmanager
def a_line_upside_down() -> Iterator[None]:
    """Who comes last has the next turn."""

    def enter(tables: Any, entry: Any, now: float) -> None:
        _enter(tables, entry, now)
        line = entry.session.line
        for request_id in [request_id for request_id in line if request_id != entry.request_id]:
            line[request_id] = line.pop(request_id)

    with patch.object(sessions, "enter", enter):
        yield


@contextmanager
def a_turn_kept() -> Iterator[None]:
    """Nobody has the turn after the first."""
    with patch.object(Session, "stir", lambda self, tables: None if self.seq else _stir(self, tables)):
        yield


@contextmanager
def a_call_that_waits_for_its_own_session() -> Iterator[None]:
    """Who has the turn may ask for something that waits for the turn."""

    def waits_for_itself(tables: Any, runner: Any, message: Any) -> bool:
        return not message.session and _waits_for_itself(tables, runner, message)

    with patch.object(nesting, "waits_for_itself", waits_for_itself):
        yield


@contextmanager
def a_haste_that_waits() -> Iterator[None]:
    """Who is to fail where it would wait waits."""
    with patch.object(sessions, "_worker_busy", lambda session, text: None):
        yield


@contextmanager
def a_line_before_a_door_that_is_closed() -> Iterator[None]:
    """Who waits for a worker that has left goes on waiting."""

    def settle_down(tables: Any, now: float) -> None:
        tables.leavers.clear()
        _settle_down(tables, now)

    with patch.object(sessions, "settle_down", settle_down):
        yield


# --- copies -----------------------------------------------------------------------------------------


@contextmanager
def a_session_forgotten_on_the_way() -> Iterator[None]:
    """Who has no copy is sent an empty one."""
    with patch.object(session, "pack_snapshot", lambda state, turns: _pack(b"", turns)):
        yield


@contextmanager
def a_copy_taken_for_granted() -> Iterator[None]:
    """Every worker is thought to have what it once had."""

    def attempt(self: Any, tables: Any, worker: Any, request: Any) -> Any:
        if self.seq > 1:
            self.at = worker
        return _attempt(self, tables, worker, request)

    with patch.object(Session, "attempt", attempt):
        yield


@contextmanager
def a_copy_left_behind() -> Iterator[None]:
    """Workers are not told that a session has ended, or lives elsewhere."""

    def forget_copy(self: Any, tables: Any) -> None:
        self.at = None

    with patch.object(Session, "forget_copy", forget_copy):
        yield


@contextmanager
def a_wandering_session() -> Iterator[None]:
    """Strict sessions run wherever there is room."""
    with patch.object(Session, "strict", property(lambda self: False)):
        yield


@contextmanager
def a_loss_forgiven() -> Iterator[None]:
    """What is to be lost with its worker goes on from its last answer."""

    def look_after(self: Any) -> None:
        options = self.options
        self.options = options._replace(on_loss="restore")
        _look_after(self)
        self.options = options

    with patch.object(Session, "look_after", look_after):
        yield


@contextmanager
def a_late_answer_ignored() -> Iterator[None]:
    """What a call changed whose caller was answered before is forgotten."""

    def answered(self: Any, tables: Any, entry: Any, reply: Any, worker: Any) -> Any:
        seq, state = self.seq, self.state
        own = _answered(self, tables, entry, reply, worker)
        if entry.state == SETTLED:
            self.seq, self.state = seq, state
        return own

    with patch.object(Session, "answered", answered):
        yield


@contextmanager
def an_answer_with_the_session() -> Iterator[None]:
    """Callers are sent what was meant for the fleet."""

    def answered(self: Any, tables: Any, entry: Any, reply: Any, worker: Any) -> Any:
        return replace(_answered(self, tables, entry, reply, worker), payload=reply.payload)

    with patch.object(Session, "answered", answered):
        yield


# --- beginnings and ends ----------------------------------------------------------------------------


@contextmanager
def a_session_for_all() -> Iterator[None]:
    """Sessions of one name are one, whosever they are."""

    def key_of(principal: str, session_id: str) -> str:
        return f"ann\0{session_id}"

    with patch.object(session, "key_of", key_of), patch.object(sessions, "key_of", key_of):
        yield


@contextmanager
def a_silent_stranger() -> Iterator[None]:
    """Who means a session that is gone is given an empty one."""
    with patch.object(sessions, "_gone", lambda tables, principal, session_id: None):
        yield


@contextmanager
def an_end_while_it_runs() -> Iterator[None]:
    """A session expires while somebody is in it."""
    with patch.object(Session, "expires_at", property(lambda self: self.used_at + self.options.ttl_s)):
        yield


@contextmanager
def a_session_without_end() -> Iterator[None]:
    """Nothing expires that nobody asks for."""
    with patch.object(SessionTable, "pop_expired", lambda self, now: []):
        yield


@contextmanager
def a_session_of_nothing() -> Iterator[None]:
    """What was begun for calls that never ran stays."""

    def make(self: Any, *args: Any) -> None:
        _make(self, *args)
        self.kept = True

    with patch.object(Session, "__init__", make):
        yield


@contextmanager
def a_session_too_many() -> Iterator[None]:
    """As many sessions begin as anybody asks for."""
    with patch.object(sessions, "_no_room", lambda tables, principal, now: None):
        yield


# --- what is kept -----------------------------------------------------------------------------------


@contextmanager
def a_call_before_the_store_was_read() -> Iterator[None]:
    """Sessions are begun anew before it is known which there were."""
    with patch.object(sessions, "_not_synced", lambda tables: None):
        yield


@contextmanager
def an_answer_before_it_is_kept() -> Iterator[None]:
    """No answer waits for the store."""
    with patch.object(Saves, "holds", lambda self, *args: False):
        yield


@contextmanager
def an_answer_kept_back() -> Iterator[None]:
    """What waited for the store goes on waiting."""

    def saved(self: Any, token: int) -> list[Any]:
        del self._out[token]
        return []

    with patch.object(Saves, "saved", saved):
        yield


@contextmanager
def a_change_that_is_not_tried_again() -> Iterator[None]:
    """What could not be kept is forgotten."""

    def unsaved_batch(self: Any, token: int) -> Any:
        known = set(self._changed)
        answers = _unsaved_batch(self, token)
        for key in set(self._changed) - known:
            del self._changed[key]
        return answers

    with patch.object(Saves, "unsaved_batch", unsaved_batch):
        yield


@contextmanager
def a_state_thought_to_be_kept() -> Iterator[None]:
    """What could not be kept is tried again without the state."""

    def unsaved_batch(self: Any, token: int) -> Any:
        changes = self._out[token]
        answers = _unsaved_batch(self, token)
        for change in changes:
            change.session.state_saved = True
        return answers

    with patch.object(Saves, "unsaved_batch", unsaved_batch):
        yield


LAPSES: Final[tuple[Callable[[], AbstractContextManager[None]], ...]] = (
    two_calls_at_once, a_turn_given_up_too_soon, a_line_upside_down, a_turn_kept,
    a_call_that_waits_for_its_own_session, a_haste_that_waits, a_line_before_a_door_that_is_closed,
    a_session_forgotten_on_the_way, a_copy_taken_for_granted, a_copy_left_behind, a_wandering_session,
    a_loss_forgiven, a_late_answer_ignored, an_answer_with_the_session, a_session_for_all, a_silent_stranger,
    an_end_while_it_runs, a_session_without_end, a_session_of_nothing, a_session_too_many,
    a_call_before_the_store_was_read, an_answer_before_it_is_kept, an_answer_kept_back,
    a_change_that_is_not_tried_again, a_state_thought_to_be_kept,
)  # fmt: skip
