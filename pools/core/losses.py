"""What becomes of the requests that a dead worker held: given back, sent again, settled, put into quarantine."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from bridge.protocol.errors import CANCELLED, BridgeError
from pools.core import breakers, dispatch, isolation
from pools.core.entries import NOT_ASKED, RequestEntry, WorkerEntry
from pools.core.events import ExitReason, Signalled
from pools.core.places import unserved
from pools.core.retries import is_repeatable, plan
from pools.core.settlement import settle_error
from pools.core.states import ON_RESUME, ON_WAIT, REQUEST_MOVES, RUNNING, SETTLED, WAITING
from pools.core.tables import Tables

if TYPE_CHECKING:
    from pools.core.idempotency import Keyed

# A request that was in the hands of this many workers as they died is not handed to another.
_MAX_DEATHS = 2


def lost(tables: Tables, worker: WorkerEntry, reason: ExitReason, cause: str, now: float) -> None:
    """Deal with what a dead worker held. Its started-slots page is final."""
    suspects = _suspect(tables, worker, cause, now)
    resent = 0
    for epoch in sorted(worker.attempts, reverse=True):  # the earliest ends up at the head of the queue
        entry = worker.attempts[epoch]
        paused = entry.paused  # no longer said once it is released
        dispatch.release(tables, worker, epoch)
        ran = entry.state == RUNNING or worker.started(epoch)
        if ran and entry.session is not None:
            entry.session.at = worker  # it was there, whether it came along or was there before
        if entry.state == SETTLED:
            if entry.keyed is not None:
                resent += _bereaved(tables, entry.keyed, worker, reason, cause, ran, now)
        elif not ran:
            _unstarted(tables, entry, worker, reason, cause, now)
        else:
            resent += _ran(tables, entry, worker, reason, cause, paused, now)
    if resent:
        tables.log("requests_resent", "warning", worker=worker.worker_id, rows=resent, cause=cause)
    if suspects:
        isolation.single_out(tables, suspects, now)


def _suspect(tables: Tables, worker: WorkerEntry, cause: str, now: float) -> dict[bytes, RequestEntry]:
    """Remember what ran as a worker died by itself; return it by fingerprint.

    Whose end the fleet brought about (deadline, forced cancellation, restart, protocol error) is no request's doing; a
    worker that was silent for too long is: whatever held it up ran there.
    """
    poison = tables.poison
    if not poison.limit or (worker.kill_why and not worker.silent) or worker.told_to_stop:
        return {}
    ran = {
        isolation.print_of(entry.message, entry.runs): entry
        for epoch, entry in worker.attempts.items()
        if not entry.paused and (entry.state == RUNNING or worker.started(epoch))  # who waits does no harm
    }
    # What the coordinator asks for itself (loading a program) is not what it seems: the same name, another file. Only
    # what was requeued counts.
    ran = {
        print_: entry
        for print_, entry in ran.items()
        if (entry.client.client_no and not entry.client.internal) or print_ in poison.suspects
    }
    for print_, entry in ran.items():
        letter = poison.letters.get(print_)
        if letter is not None:  # it was under way elsewhere
            letter.suspect.deaths += 1
            letter.suspect.last_at = now
        elif poison.died(print_, cause, alone=len(ran) == 1, sent_at=entry.dispatched_at, now=now):
            principal = entry.client.principal if entry.client.client_no else entry.message.principal
            letter = poison.quarantine(print_, entry.message, entry.pool.name, principal)
            tables.log(
                "request_quarantined", "error", dead_letter=letter.letter_id, operation=entry.message.operation,
                pool=entry.pool.name, deaths=letter.suspect.deaths, causes=list(letter.suspect.causes),
            )  # fmt: skip
    if ran:
        isolation.watch(tables, {entry.message.operation for entry in ran.values()}, now)
    return ran


def _unstarted(
    tables: Tables, entry: RequestEntry, worker: WorkerEntry, reason: ExitReason, cause: str, now: float
) -> None:
    entry.deaths += 1
    if entry.deaths < _MAX_DEATHS or entry.cancel != NOT_ASKED:
        dispatch.give_back(tables, entry, now)
    else:
        executed = "maybe" if entry.resends else "no"
        settle_error(tables, entry, worker_lost(worker, reason, cause, executed), now)


def _ran(
    tables: Tables,
    entry: RequestEntry,
    worker: WorkerEntry,
    reason: ExitReason,
    cause: str,
    paused: bool,
    now: float,
) -> int:
    """Settle an attempt that may have run, or plan another; return the rows that are sent again.

    paused: it waited as its worker died, so that it is no failure of its operation.
    """
    if entry.cancel != NOT_ASKED and worker.kill_why:
        settle_error(tables, entry, BridgeError(CANCELLED, f"cancelled: its worker was killed ({cause})"), now)
        return 0
    if not paused:
        breakers.failed(tables, entry, now)
    letters = tables.poison.letters
    letter = letters.get(isolation.known_print(tables, entry.message, entry.runs)) if letters else None
    if letter is not None:
        isolation.condemn(tables, entry, letter, now)
        return 0
    error = worker_lost(worker, reason, cause, "maybe")
    if is_repeatable(entry) and entry.cancel == NOT_ASKED:
        delay_s = _plan(tables, entry, reason, now)
        if not isinstance(delay_s, str):
            _withdraw(entry)
            breakers.released(entry)
            _pause(tables, entry, delay_s, error, now)
            return entry.rows
        error.details["retry"] = delay_s
    settle_error(tables, entry, error, now)
    return 0


def _bereaved(
    tables: Tables, keyed: Keyed, worker: WorkerEntry, reason: ExitReason, cause: str, ran: bool, now: float
) -> int:
    """The attempt of a runner that is settled was lost: its followers have another; return the rows sent again.

    One that never began is made up for at once. One that ran is followed by a resend, as any: that of the follower that
    has most time. Where there is to be none, the loss is what all of them come to.
    """
    if not ran or not keyed.followers:
        keyed.ceded(tables, now)
        return 0
    error = worker_lost(worker, reason, cause, "maybe")
    heir = max(keyed.followers.values(), key=lambda entry: math.inf if entry.deadline is None else entry.deadline)
    heir.resends, heir.epoch = keyed.runner.resends, keyed.runner.epoch  # a worker has had it
    keyed.inherit(heir)
    delay_s = _plan(tables, heir, reason, now)
    if isinstance(delay_s, str):
        error.details["retry"] = delay_s
        settle_error(tables, heir, error, now)
        return 0
    _pause(tables, heir, delay_s, error, now)
    return heir.rows


def _plan(tables: Tables, entry: RequestEntry, reason: ExitReason, now: float) -> float | str:
    """Return after how many seconds what a worker died with runs again, or why it does not."""
    if isinstance(reason, Signalled) and reason.out_of_memory:
        return "not after want of memory"
    return plan(entry, tables.random, now)


def _withdraw(entry: RequestEntry) -> None:
    """Have a request whose attempt was lost wait."""
    pool = entry.pool
    entry.state = REQUEST_MOVES[entry.state][ON_WAIT]
    pool.in_flight -= entry.rows
    pool.queued += entry.rows
    entry.worker = None
    entry.dispatched_at = 0.0


def _pause(tables: Tables, entry: RequestEntry, delay_s: float, error: BridgeError, now: float) -> None:
    """Send a request that waits again, after a pause. error: how its last attempt was lost."""
    entry.pool.resent += entry.rows
    entry.resends += 1
    tables.after(now + delay_s, partial(_resume, entry, entry.resends, error))


def _resume(entry: RequestEntry, resends: int, error: BridgeError, tables: Tables, now: float) -> None:
    """A pause is over. Where nobody serves any more, or a breaker is open, the loss of the last attempt is the end."""
    if entry.state != WAITING or entry.resends != resends:
        return  # settled meanwhile
    if now >= tables.ends_at:
        return  # it is cancelled in this same Tick
    pool = entry.pool
    refusal = unserved(pool) or breakers.refusal(pool, entry.message.operation, now)
    if refusal is None and entry.session is not None:
        refusal = entry.session.lost_error()
    if refusal is not None:
        error.details["retry"] = refusal.message
        settle_error(tables, entry, error, now)
        return
    breakers.admitted(tables, entry, now)
    entry.state = REQUEST_MOVES[entry.state][ON_RESUME]
    dispatch.enqueue(tables, entry, now)
    dispatch.pump(tables, pool, now)


def worker_lost(worker: WorkerEntry, reason: ExitReason, cause: str, executed: str) -> BridgeError:
    """Return the error of what a dead worker held. executed: maybe | no."""
    doing = "ran" if executed == "maybe" else "held"
    signal = reason.number if isinstance(reason, Signalled) else None
    return BridgeError(
        "WORKER_LOST",
        f"worker {worker.worker_id} (pid {worker.pid}) was lost while it {doing} this request: {cause}",
        retryable=True,
        details={"cause": cause, "signal": signal, "executed": executed, "worker": worker.worker_id},
    )
