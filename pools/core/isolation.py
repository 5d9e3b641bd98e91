"""Suspects run alone: what a worker dies of while it runs nothing else is known.

While requests are under suspicion or in quarantine every pool has a `Seclusion`. What equals a suspect waits there
instead of in the queue, and runs one at a time on a worker that is kept for it: the one that held least, given nothing
new until the suspect has ended. So it waits for no longer than that worker's work, and the others serve meanwhile.

The first answer to an equal request clears a suspect, wherever that ran: what workers die of kills them there too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Request
from pools.core.dispatch import dispatch, enqueue, pump
from pools.core.entries import NOT_ASKED, PoolEntry, RequestEntry, WorkerEntry
from pools.core.events import DropLetter, PardonLetter, ReturnLetter
from pools.core.leaving import recall
from pools.core.poison import Letter, Poison, fingerprint, poison_error, shape
from pools.core.programs import version_of
from pools.core.settlement import settle_error
from pools.core.states import DISPATCHED, ON_RESUME, ON_WAIT, QUEUED, READY, REQUEST_MOVES, SETTLED, WAITING
from pools.core.tables import Tables


class Seclusion:
    """What waits to run alone in one pool, in order, and the worker that is kept for it.

    epoch: of the attempt that runs alone, or did last; 0 = others have had their turn since. alone: the epochs of those
    that do, and of those that lend their slot out: they may wait for the next one.
    """

    __slots__ = ("alone", "epoch", "pool", "waiting", "worker")

    def __init__(self, pool: PoolEntry) -> None:
        self.pool = pool
        self.waiting: dict[int, RequestEntry] = {}
        self.worker: WorkerEntry | None = None
        self.epoch = 0
        self.alone: set[int] = set()

    def takes(self, tables: Tables, entry: RequestEntry, now: float) -> bool:
        """Take a request that is to be queued, and is in no queue, if it may not run beside others, or at all."""
        print_ = known_print(tables, entry.message, entry.runs)
        letter = tables.poison.letters.get(print_)
        if letter is not None:
            condemn(tables, entry, letter, now)
        elif print_ in tables.poison.suspects:
            entry.state = REQUEST_MOVES[entry.state][ON_WAIT]
            self.waiting[entry.request_id] = entry
        else:
            return False
        return True

    def answered(self, tables: Tables, epoch: int, entry: RequestEntry, now: float) -> None:
        """A worker has answered an attempt: if that ran to its end, nobody suspects its equals any more."""
        if entry.state == SETTLED or entry.cancel != NOT_ASKED:
            return
        if tables.poison.clear(known_print(tables, entry.message, entry.runs)):
            alone = self.worker is not None and epoch == self.epoch
            tables.log("suspect_cleared", operation=entry.message.operation, pool=self.pool.name, alone=alone)
            release_cleared(tables, now)

    def proceed(self, tables: Tables, now: float) -> None:
        """Run the next one alone, if none does and a worker holds nothing else."""
        worker = self.worker
        if worker is not None and self._runs_one(worker):
            self._keep(worker)  # also where one goes on that had lent its slot out
            return
        entry = self._next(tables, now)
        if entry is None:
            self._share()
            return
        if self.epoch and len(self.pool.ready) < 2 and self.pool.queue.open_lanes:
            # There is no other worker: between two of them whatever else waits has its turn.
            self.epoch = 0
            self._share()
            return
        if worker is None or worker.state != READY or worker.died:
            self.let_go()
            worker = self._reserve(tables)
        if worker is None or worker.held:
            return
        self._keep(worker)
        del self.waiting[entry.request_id]
        entry.state = REQUEST_MOVES[entry.state][ON_RESUME]
        dispatch(tables, entry, worker, now)
        self.epoch = entry.epoch
        self.alone.add(entry.epoch)

    def let_go(self) -> None:
        """Keep no worker."""
        self.alone.clear()
        if self.worker is not None:
            self.worker.reserved = False
            self.worker = None

    def _keep(self, worker: WorkerEntry) -> None:
        """Give a worker nothing else, not what is left of the hand that it is being dealt either."""
        worker.reserved = True
        if self.pool.dealt_to is worker:
            self.pool.dealt_to = None

    def _runs_one(self, worker: WorkerEntry) -> bool:
        """Return whether one of those that were to run alone runs."""
        self.alone &= worker.attempts.keys()
        return any(not worker.attempts[epoch].paused for epoch in self.alone)

    def _share(self) -> None:
        """Let others have the worker, unless it holds who will go on and somebody else serves whom they wait for."""
        if self.worker is None or not self.alone:
            self.let_go()
        elif len(self.pool.ready) < 2:
            self.worker.reserved = False

    def _next(self, tables: Tables, now: float) -> RequestEntry | None:
        """Return the first that waits, or None. Those whose sessions are lost wait no longer."""
        while self.waiting:
            entry = next(iter(self.waiting.values()))
            lost = entry.session.lost_error() if entry.session is not None else None
            if lost is None:
                return entry
            settle_error(tables, entry, lost, now)
        return None

    def _reserve(self, tables: Tables) -> WorkerEntry | None:
        """Keep the worker that holds least, and have it give back what it has not begun."""
        pool = self.pool
        worker = min(pool.ready, key=lambda worker: worker.held, default=None)
        if worker is None:
            return None
        self._keep(worker)
        # The last first: each goes to the head of the queue as it comes back.
        for epoch in reversed(worker.attempts):
            entry = worker.attempts[epoch]
            if entry.state == DISPATCHED and not worker.started(epoch):
                recall(tables, worker, entry)
        self.worker = worker
        return worker


def print_of(message: Request, runs: str) -> bytes:
    """Return a request's fingerprint. runs: what workers are asked for; another version of a program is another one."""
    return fingerprint(message, version_of(runs))


def known_print(tables: Tables, message: Request, runs: str) -> bytes:
    """Return a request's fingerprint; b"", at little cost, if its shape is that of no suspect and no dead letter."""
    if message.operation not in tables.poison.operations:
        return b""
    version = version_of(runs)
    return fingerprint(message, version) if tables.poison.may_know(shape(message, version)) else b""


def refusal(tables: Tables, message: Request) -> BridgeError | None:
    """Return why a request that equals a dead letter is not accepted, None for any other."""
    poison = tables.poison
    if not poison.letters:
        return None
    letter = poison.letters.get(known_print(tables, message, tables.programs.runs(message.operation)))
    if letter is None:
        return None
    letter.requests += 1
    return poison_error(letter)


def condemn(tables: Tables, entry: RequestEntry, letter: Letter, now: float) -> None:
    """Settle a request that equals a dead letter."""
    letter.requests += 1
    settle_error(tables, entry, poison_error(letter), now)


def watch(tables: Tables, operations: Iterable[str], now: float) -> None:
    """Requests of these operations are under suspicion or in quarantine: have all pools look, and admission ask.

    The suspects are forgotten in time.
    """
    known = tables.poison.operations
    known.update(operations)
    for name in [name for name in tables.routes if name[0] in known]:
        del tables.routes[name]
    for pool in tables.user_pools.values():
        if pool.seclusion is None:
            pool.seclusion = Seclusion(pool)
    _arm(tables, tables.poison)


def single_out(tables: Tables, found: Mapping[bytes, RequestEntry], now: float) -> None:
    """Take what equals a new suspect, or dead letter, out of the queues, and back from workers that have not begun it.

    found: one of the equal requests, by fingerprint.
    """
    shapes = {_shape(entry) for entry in found.values()}
    for entry in list(tables.requests.values()):
        if _shape(entry) in shapes and print_of(entry.message, entry.runs) in found:
            _single_out(tables, entry, now)


def _shape(entry: RequestEntry) -> tuple[str, int]:
    """Return what equal requests have in common and costs nothing to ask."""
    return entry.message.operation, len(entry.message.payload or b"")


def _single_out(tables: Tables, entry: RequestEntry, now: float) -> None:
    pool, worker = entry.pool, entry.worker
    if pool.seclusion is None or entry.state == SETTLED:
        return
    if entry.state == QUEUED:
        pool.queue.discard(entry)
        enqueue(tables, entry, now, first=True)
    elif entry.state == WAITING and pool.seclusion.waiting.get(entry.request_id) is entry:
        letter = tables.poison.letters.get(known_print(tables, entry.message, entry.runs))
        if letter is not None:
            condemn(tables, entry, letter, now)
    elif entry.state == DISPATCHED and worker is not None and not worker.reserved and not worker.started(entry.epoch):
        recall(tables, worker, entry)


def release_cleared(tables: Tables, now: float) -> None:
    """Put what waits and equals no suspect any more into the queues; where nothing is left to watch for, stop it."""
    for pool in tables.pools.values():
        seclusion = pool.seclusion
        if seclusion is None:
            continue
        for entry in list(seclusion.waiting.values()):
            if entry.state != WAITING:
                continue  # settled with one before it
            if known_print(tables, entry.message, entry.runs) not in tables.poison.suspects:
                del seclusion.waiting[entry.request_id]
                entry.state = REQUEST_MOVES[entry.state][ON_RESUME]
                enqueue(tables, entry, now)
        if not tables.poison:
            seclusion.let_go()
            pool.seclusion = None
    if not tables.poison:
        tables.poison.operations.clear()
    for pool in tables.pools.values():  # what is cleared in one may have waited in another
        pump(tables, pool, now)


def on_drop(tables: Tables, event: DropLetter, now: float, peer: bytes) -> None:
    """Forget a dead letter."""
    letter = tables.poison.drop(event.letter_id)
    tables.log("dead_letter_dropped", dead_letter=letter.letter_id, operation=letter.message.operation)
    release_cleared(tables, now)


def on_pardon(tables: Tables, event: PardonLetter, now: float, peer: bytes) -> None:
    """Let a dead letter run once more."""
    letter = tables.poison.pardon(event.letter_id, now)
    tables.log("dead_letter_requeued", dead_letter=letter.letter_id, operation=letter.message.operation)
    watch(tables, {letter.message.operation}, now)


def on_return(tables: Tables, event: ReturnLetter, now: float, peer: bytes) -> None:
    """Put a pardoned letter back that nobody ran."""
    print_ = print_of(event.message, tables.programs.runs(event.message.operation))
    if print_ not in tables.poison.suspects:
        return
    letter = tables.poison.quarantine(print_, event.message, event.pool, event.principal)
    letter.requests = event.requests
    tables.log("dead_letter_returned", "warning", dead_letter=letter.letter_id, operation=event.message.operation)
    release_cleared(tables, now)


def _arm(tables: Tables, poison: Poison) -> None:
    at = poison.expires_at()
    if at is not None and not poison.timer_at:
        poison.timer_at = at
        tables.after(at, _expire)


def _expire(tables: Tables, now: float) -> None:
    poison = tables.poison
    poison.timer_at = 0.0
    poison.expire(now)
    release_cleared(tables, now)
    _arm(tables, poison)
