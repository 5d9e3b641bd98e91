"""More bugs for the core, in what it does under fire: resends, keys, poison, breakers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from msgspec.structs import replace

from bridge.protocol.errors import decode_error
from pools.core import (
    admission,
    breakers,
    dispatch,
    idempotency,
    isolation,
    lifecycle,
    losses,
    retries,
)
from pools.core.breaker import Breaker
from pools.core.events import Signalled
from pools.core.idempotency import Keyed
from pools.core.isolation import Seclusion
from pools.core.keys import Outcome
from pools.core.poison import Poison

_choose = dispatch.choose
_join = idempotency.join
_ended = breakers.ended
_died = Poison.died
_lost = losses.lost
_ran = losses._ran
_admit_to = admission._admit_to
_AGES_S: Final = 1e6


# --- resends ----------------------------------------------------------------------------------------


@contextmanager
def a_resend_of_anything() -> Iterator[None]:
    """What may run once is sent again too."""
    with patch.object(losses, "is_repeatable", lambda entry: True):
        yield


@contextmanager
def a_resend_too_many() -> Iterator[None]:
    """A request is sent again as often as its workers die."""
    with patch.object(retries, "MAX_RESENDS", 100):
        yield


@contextmanager
def a_resend_after_want_of_memory() -> Iterator[None]:
    """What the kernel killed a worker for is sent again."""

    def lost(tables: Any, worker: Any, reason: Any, cause: str, now: float) -> None:
        _lost(tables, worker, Signalled(reason.number) if isinstance(reason, Signalled) else reason, cause, now)

    with patch.object(lifecycle, "lost", lost):
        yield


@contextmanager
def a_resend_forgotten() -> Iterator[None]:
    """A pause that never ends."""
    with patch.object(losses, "_resume", lambda entry, resends, error, tables, now: None):
        yield


# --- keys -------------------------------------------------------------------------------------------


@contextmanager
def a_key_unread() -> Iterator[None]:
    """Each request with a key runs."""
    with patch.object(idempotency, "find", lambda tables, client, pool, message, now: None):
        yield


@contextmanager
def a_key_for_anything() -> Iterator[None]:
    """A key stands for whatever is asked with it."""
    with patch.object(idempotency, "digest_of", lambda message, pool: b""):
        yield


@contextmanager
def an_outcome_of_another() -> Iterator[None]:
    """What a key came to is told wrongly to those who ask later."""

    def join(tables: Any, entry: Any, known: Any, now: float) -> None:
        if isinstance(known, Outcome):
            known = known._replace(reply=replace(known.reply, payload=b"another's"))
        _join(tables, entry, known, now)

    with patch.object(idempotency, "join", join):
        yield


@contextmanager
def a_follower_forgotten() -> Iterator[None]:
    """Nobody tells those that wait for another's outcome."""
    with patch.object(Keyed, "_end", lambda self, tables, reply, now: tables.keys.running.pop(self.name)):
        yield


@contextmanager
def a_hand_over_too_soon() -> Iterator[None]:
    """Work is begun again for the next with its key although it goes on."""
    with patch.object(idempotency, "_is_out", lambda entry: False):
        yield


@contextmanager
def a_key_kept() -> Iterator[None]:
    """Work that came to nothing, and that nobody waits for, is thought to go on."""
    ceded = Keyed.ceded

    def keeping(self: Any, tables: Any, now: float) -> None:
        if self.followers:
            ceded(self, tables, now)

    with patch.object(Keyed, "ceded", keeping):
        yield


@contextmanager
def a_follower_in_no_hurry() -> Iterator[None]:
    """What waits keeps its class, whoever waits for it."""
    with patch.object(idempotency, "_hurry", lambda tables, runner, priority, now: None):
        yield


@contextmanager
def an_heir_that_does_not_wait() -> Iterator[None]:
    """What was lost as it ran, after its own caller was answered, is begun again at once and is not counted."""

    def bereaved(tables: Any, keyed: Any, worker: Any, reason: Any, cause: str, ran: bool, now: float) -> int:
        keyed.ceded(tables, now)
        return 0

    with patch.object(losses, "_bereaved", bereaved):
        yield


# --- poison -----------------------------------------------------------------------------------------


@contextmanager
def a_suspect_in_company() -> Iterator[None]:
    """Suspects run beside others."""
    with patch.object(Seclusion, "takes", lambda self, tables, entry, now: False):
        yield


@contextmanager
def a_reservation_ignored() -> Iterator[None]:
    """Who runs a suspect is given other work too."""

    def choose(pool: Any, *args: Any) -> Any:
        reserved = [worker for worker in pool.ready if worker.reserved]
        for worker in reserved:
            worker.reserved = False
        chosen = _choose(pool, *args)
        for worker in reserved:
            worker.reserved = True
        return chosen

    with patch.object(dispatch, "choose", choose):
        yield


@contextmanager
def a_poison_without_end() -> Iterator[None]:
    """However many workers die of a request, it goes on."""

    def died(self: Any, print_: bytes, cause: str, *, alone: bool, sent_at: float, now: float) -> bool:
        _died(self, print_, cause, alone=alone, sent_at=sent_at, now=now)
        return False

    with patch.object(Poison, "died", died):
        yield


@contextmanager
def an_innocent_in_quarantine() -> Iterator[None]:
    """Whoever runs beside others as a worker dies is thought to have run alone."""

    def died(self: Any, print_: bytes, cause: str, *, alone: bool, sent_at: float, now: float) -> bool:
        return _died(self, print_, cause, alone=True, sent_at=sent_at, now=now)

    with patch.object(Poison, "died", died):
        yield


@contextmanager
def a_suspicion_without_end() -> Iterator[None]:
    """Who has run alone to the end stays a suspect, and waits for the whole time that suspicion lasts."""
    with patch.object(isolation.Seclusion, "proceed", lambda self, tables, now: None):
        yield


# --- breakers ---------------------------------------------------------------------------------------


@contextmanager
def a_breaker_that_never_opens() -> Iterator[None]:
    """Failures are counted for nothing."""
    with patch.object(Breaker, "failed", lambda self, outcomes, operation, now: False):
        yield


@contextmanager
def a_breaker_fed_by_users() -> Iterator[None]:
    """Errors of users' programs open breakers."""

    def ended(tables: Any, entry: Any, reply: Any, now: float) -> None:
        if decode_error(reply.payload or b"").code == "REMOTE_ERROR":
            breakers.failed(tables, entry, now)
        else:
            _ended(tables, entry, reply, now)

    with patch.object(breakers, "ended", ended):
        yield


@contextmanager
def a_breaker_fed_by_waiters() -> Iterator[None]:
    """Who waited for something of its own as its worker died is thought to have failed."""

    def ran(tables: Any, entry: Any, worker: Any, reason: Any, cause: str, paused: bool, now: float) -> int:
        return _ran(tables, entry, worker, reason, cause, False, now)

    with patch.object(losses, "_ran", ran):
        yield


@contextmanager
def a_flood_of_probes() -> Iterator[None]:
    """A breaker that is half open lets everything through."""
    with patch.object(Breaker, "lease", lambda self, request_id, deadline, now: False):
        yield


@contextmanager
def a_lease_kept() -> Iterator[None]:
    """A probe that comes to nothing keeps others out."""
    with patch.object(Breaker, "release", lambda self, request_id: None):
        yield


@contextmanager
def a_breaker_that_stays_open() -> Iterator[None]:
    """The success of a probe closes nothing."""
    with patch.object(Breaker, "succeeded", lambda self, outcomes: False):
        yield


@contextmanager
def a_queue_before_an_open_breaker() -> Iterator[None]:
    """What waits as a breaker opens goes on waiting."""
    with patch.object(breakers, "_refuse_queue", lambda tables, pool, key, now: None):
        yield


@contextmanager
def a_deafness_forgiven() -> Iterator[None]:
    """Who must be killed to end what is out of time has not failed."""
    with patch.object(breakers, "deaf", lambda tables, entry, now: None):
        yield


@contextmanager
def a_fallback_untold() -> Iterator[None]:
    """Nobody is told that their request ran elsewhere."""

    def admit_to(*args: Any) -> Any:
        entry = _admit_to(*args)
        entry.fallback_used = False
        return entry

    with patch.object(admission, "_admit_to", admit_to):
        yield


TROUBLES: Final[tuple[Callable[[], AbstractContextManager[None]], ...]] = (
    a_resend_of_anything, a_resend_too_many, a_resend_after_want_of_memory, a_resend_forgotten,
    a_key_unread, a_key_for_anything, an_outcome_of_another, a_follower_forgotten, a_hand_over_too_soon,
    a_key_kept, a_follower_in_no_hurry, an_heir_that_does_not_wait,
    a_suspect_in_company, a_reservation_ignored, a_poison_without_end, an_innocent_in_quarantine,
    a_suspicion_without_end, a_breaker_that_never_opens, a_breaker_fed_by_users, a_breaker_fed_by_waiters,
    a_flood_of_probes, a_lease_kept, a_breaker_that_stays_open, a_queue_before_an_open_breaker, a_deafness_forgiven,
    a_fallback_untold,
)  # fmt: skip
