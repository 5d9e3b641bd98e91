"""Dynamic batching: one run for what many callers asked.

The thread that claims an attempt of a batched operation leads: it claims also what else of this operation waits in the
worker, from any caller, until there are max_items or max_wait_ms have passed since the first came; runs the operation
once on all of it; answers; and so on until nobody is left. There is one leader per operation and worker, so one batch
at a time; what other threads claim meanwhile joins it. A large request is taken in pieces, by turns with the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, NamedTuple, NoReturn, Protocol, Self

from bridge import faultpoints
from bridge.batched import BatchLimits
from bridge.protocol.errors import INVALID_REQUEST, REMOTE_ERROR, BridgeError
from bridge.protocol.messages import Message, Reply
from bridge.protocol.values import split_values
from bridge.worker.attempt import Runner, expired
from bridge.worker.batch_limit import BatchLimit, is_out_of_memory
from bridge.worker.batch_members import Claimed, Member, Piece, Row, cut, take_batch
from bridge.worker.call import Call, CallStopped, current_call

log = logging.getLogger(__name__)


class Batched(Protocol):
    """An operation that takes many items at once. Its methods are called by one thread at a time."""

    limits: BatchLimits

    def items(self, args: Any) -> list[Any]:
        """Return the items of one argument value. Raises BridgeError for arguments that are wrong."""

    def run(self, items: list[Any], call: Call) -> Any:
        """Return a result for each item, in order: a list, a tuple or an array with a row for each."""

    def joined(self, parts: list[Any]) -> Any:
        """Return the value for all items of one argument value, from what `run` returned for them, in order."""


class Source(Protocol):
    """Where attempts come from and replies go: the executor."""

    def claim_more(
        self, operation: str, most: int, until_s: float, *, alone: bool, is_current: Callable[[], bool]
    ) -> Sequence[Claimed]:
        """Return attempts of an operation that nobody has claimed, waiting for the first until then (monotonic).

        It does not wait while attempts of other operations are waiting; alone: then it returns nothing. is_current:
        tells whether the operation is still what its name stands for, for all that has come so far; if not, likewise.
        """

    def finish(self, attempt: Claimed, reply: Reply) -> None:
        """Deliver the reply to an attempt that `claim_more` returned, or that was claimed to lead."""


class BatchCall(Call):
    """The call that a batch runs in: it stops when nobody in it may go on, and its members bear what it used.

    It can ask the coordinator for nothing: it has no one caller in whose name. sizes: items of each member, by which
    they share; one each if left out. A member may be named more than once. A context manager: leaving shares out.
    """

    __slots__ = ("_members", "_sizes", "_undo")

    def __init__(self, operation: str, members: Sequence[Call], sizes: Sequence[int] | None = None) -> None:
        deadlines = [call.deadline for call in members if call.deadline is not None]
        first = members[0]
        super().__init__(
            first.request_id, first.epoch, operation,
            deadline=max(deadlines) if len(deadlines) == len(members) else None,
        )  # fmt: skip
        self._members = members
        self._sizes = sizes or [1] * len(members)
        self._undo = [call.on_stop(self._heard) for call in members]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for undo in self._undo:
            undo()
        total = sum(self._sizes)
        lm_calls, tokens = shares(self.lm_calls, self._sizes), shares(self.tokens, self._sizes)
        for number, call in enumerate(self._members):
            cost_usd = None if self.cost_usd is None else self.cost_usd * self._sizes[number] / total
            call.used(lm_calls=lm_calls[number], tokens=tokens[number], cost_usd=cost_usd, cached=self.cached)

    def _heard(self) -> None:
        """Stop if the member that must stop was the last that might go on."""
        try:
            self.check()
        except CallStopped as stop:
            self.stop(stop.error)

    def post(self, message: Message) -> NoReturn:
        """Refuse. Raises BridgeError(INVALID_REQUEST)."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raise the BridgeError(INVALID_REQUEST) for what only one caller's own call can ask for."""
        text = (
            f"{self.operation}: a @batched function serves many callers at once: it cannot ask in one caller's name; "
            "ask from a program that calls it, or give `connect` an endpoint for a client of its own"
        )
        raise BridgeError(INVALID_REQUEST, text)

    def check(self) -> None:
        """Raise CallStopped if every member must stop."""
        for call in self._members:
            try:
                call.check()
            except CallStopped as stop:
                stopped = stop
            else:
                return
        raise stopped


def shares(amount: int, sizes: Sequence[int]) -> list[int]:
    """Return `amount` in whole parts proportional to `sizes`, whose sum it is: by largest remainder."""
    total = sum(sizes)
    parts = [amount * size // total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda number: -(amount * sizes[number] % total))
    for number in order[: amount - sum(parts)]:
        parts[number] += 1
    return parts


class _Ran(NamedTuple):
    """results: of every item; or what was raised instead."""

    results: Any = None
    error: BaseException | None = None


class Batcher:
    """Runs the batches of one operation in one worker. Thread-safe."""

    def __init__(self, name: str, operation: Batched, runner: Runner) -> None:
        self.operation = operation
        self._name = name
        self._runner = runner
        self._limits = operation.limits
        self._limit = BatchLimit(self._limits.max_items)
        self._lock = threading.Lock()
        self._led = False
        self._joining: deque[Claimed] = deque()
        self._members: deque[Member] = deque()  # the leader's

    def enter(self, attempt: Claimed, source: Source) -> None:
        """Take a claimed attempt. The calling thread leads, unless another one does."""
        with self._lock:
            self._joining.append(attempt)
            if self._led:
                return
            self._led = True
        self._lead(source)

    def _lead(self, source: Source) -> None:
        cycles = 0
        while True:
            with self._lock:
                joining, self._joining = self._joining, deque()
                if not joining and not self._members:
                    self._led = False
                    return
            for attempt in joining:
                self._admit(attempt, source)
            if self._members:
                self._gather(source, alone=cycles > 0)
                self._run_batch(source)
                cycles += 1

    # --- who is in -----------------------------------------------------------------------------------

    def _admit(self, attempt: Claimed, source: Source) -> None:
        if attempt.request.session and (refused := self._runner.enter(attempt)) is not None:
            source.finish(attempt, refused)
            return
        request, call = attempt.request, attempt.call
        self._runner.mark(request.epoch)
        now = call.started_s = time.monotonic()
        faultpoints.hit("worker.before_run")
        if call.deadline is not None and now >= call.deadline:
            source.finish(attempt, expired(request))
            return
        member = Member(attempt, self._runner.message_bytes)
        payload = request.payload or b""
        if request.rows == 1:
            self._read(member.add([]), payload)
        else:
            try:
                payloads: Sequence[bytes] = split_values(payload, request.rows)
            except BridgeError as error:
                rows = [member.add([]) for _ in range(request.rows)]
                for row in rows:
                    self._fail(row, error)
            else:
                for row, one in [(member.add([]), one) for one in payloads]:
                    self._read(row, one)
        if member.open_rows:
            self._members.append(member)
        else:
            self._finish(member, source)

    def _read(self, row: Row, payload: bytes) -> None:
        """Give a row its items; without any it is settled."""
        try:
            row.items = self.operation.items(self._runner.value_of(payload))
        except BaseException as exc:  # noqa: BLE001 - odd arguments can raise anything
            self._fail(row, exc)
        else:
            if not row.items:
                self._settle(row)

    def _gather(self, source: Source, *, alone: bool) -> None:
        """Claim more until there is a batch, or max_wait_ms have passed since the first came."""
        limit = self._limit.items
        until_s = min(member.attempt.received_s for member in self._members) + self._limits.max_wait_ms / 1e3
        while (room := self._limits.max_items - len(self._members)) > 0:
            # What is enough for a batch does not wait; who else is there has a turn in it.
            enough = sum(member.pending() for member in self._members) >= limit
            more = source.claim_more(
                self._name, room, 0.0 if enough else until_s, alone=alone, is_current=self._is_current
            )  # fmt: skip
            for attempt in more:
                self._admit(attempt, source)
            if enough or not more:
                return

    def _is_current(self) -> bool:
        # A program can be deployed anew meanwhile: what comes after that is for its new version.
        return self._runner.batched(self._name) is self.operation

    def _drop_stopped(self, source: Source) -> None:
        for member in list(self._members):
            try:
                member.attempt.call.step()
            except CallStopped as stop:
                member.stop(stop.error)
                self._members.remove(member)
                self._finish(member, source)

    # --- a batch -------------------------------------------------------------------------------------

    def _run_batch(self, source: Source) -> None:
        self._drop_stopped(source)
        pieces = take_batch(self._members, self._limit.items, self._limit.chars)
        if not pieces:
            return
        started = time.perf_counter()
        self._run(pieces)
        item_ms = (time.perf_counter() - started) * 1e3 / sum(piece.size for piece in pieces)
        for piece in pieces:
            piece.row.member.run_ms += item_ms * piece.size
        for member in {id(piece.row.member): piece.row.member for piece in pieces}.values():
            member.attempt.call.rows_done = member.settled_rows
            if not member.open_rows:
                self._members.remove(member)
                self._finish(member, source)

    def _run(self, pieces: list[Piece]) -> None:
        """Run the operation on a batch; what fails is run again in halves or one by one."""
        ran = self._attempt(pieces)
        error = ran.error
        count = sum(piece.size for piece in pieces)
        if error is None:
            self._limit.ran()
            self._deal(pieces, ran.results)
        elif isinstance(error, CallStopped):
            for piece in pieces:
                piece.row.member.stop(_stopped(piece.row.member.attempt.call, error))
        elif is_out_of_memory(error) and count > 1:
            log.warning("batch_out_of_memory: %s, %d items, %s", self._name, count, type(error).__name__)
            self._limit.ran_out(count)
            ran = _Ran()  # the error holds the frames, and they what filled the memory
            del error
            for half in cut(pieces):
                self._run(half)
        elif len(pieces) > 1:
            del error, ran
            for piece in pieces:
                self._run([piece])
        else:
            self._fail(pieces[0].row, error)

    def _attempt(self, pieces: list[Piece]) -> _Ran:
        pieces = [piece for piece in pieces if piece.row.outcome is None]
        if not pieces:
            return _Ran(())
        items = [item for piece in pieces for item in piece.items()]
        calls, sizes = [piece.row.member.attempt.call for piece in pieces], [piece.size for piece in pieces]
        try:
            with BatchCall(self._name, calls, sizes) as call:
                return _Ran(copy_context().run(run_in, call, self.operation, items))
        except BaseException as exc:  # noqa: BLE001 - sys.exit() in a program ends the batch, never the process
            return _Ran(error=exc)

    def _deal(self, pieces: Sequence[Piece], results: Any) -> None:
        """Give each piece its part of the results."""
        pieces = [piece for piece in pieces if piece.row.outcome is None]  # another piece of its row can have failed
        problem = miscounted(self._name, results, sum(piece.size for piece in pieces))
        at = 0
        for piece in pieces:
            row = piece.row
            if problem is not None:
                self._fail(row, problem)
                continue
            row.parts.append(results[at : at + piece.size])
            row.got += piece.size
            at += piece.size
            if row.got == len(row.items):
                self._settle(row)

    # --- outcomes ------------------------------------------------------------------------------------

    def _settle(self, row: Row) -> None:
        row.settle(self._runner.outcome_of(lambda: self.operation.joined(row.parts), row.member.attempt.call))

    def _fail(self, row: Row, exc: BaseException) -> None:
        if row.outcome is None:
            row.settle(self._runner.failure(exc, row.member.attempt.call))

    def _finish(self, member: Member, source: Source) -> None:
        faultpoints.hit("worker.after_run")
        source.finish(member.attempt, member.reply())
        member.rows.clear()  # they name it: a circle, which would keep its payload until the collector comes


def run_in(call: BatchCall, operation: Batched, items: list[Any]) -> Any:
    """Run an operation on a batch, as its call's. To be called in a context of its own."""
    current_call.set(call)
    return operation.run(items, call)


def miscounted(name: str, results: Any, count: int) -> BridgeError | None:
    """Return what is wrong with the results of a batch of so many items, None if there is one for each."""
    try:
        found = len(results)
        results[0:0]  # a mapping or a set has a length, and no order
    except Exception:  # noqa: BLE001 - whatever it is, it is no list
        text = f"{name} must return a list with a result for each item, got {type(results).__name__}"
        return BridgeError(REMOTE_ERROR, text, details={"type": "TypeError"})
    if found == count:
        return None
    text = f"{name} returned {found} results for {count} items; it must return one for each, in their order"
    return BridgeError(REMOTE_ERROR, text, details={"type": "ValueError"})


def _stopped(call: Call, batch: CallStopped) -> BridgeError:
    """Return why a call had to stop."""
    try:
        call.check()
    except CallStopped as stop:
        return stop.error
    return batch.error


class Batchers:
    """The batchers of a worker, by operation. Thread-safe."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._lock = threading.Lock()
        self._batchers: dict[str, Batcher] = {}

    def of(self, name: str, operation: Batched) -> Batcher:
        """Return the batcher of an operation; a new version of a program has a new one."""
        found = self._batchers.get(name)
        if found is None or found.operation is not operation:
            with self._lock:
                found = self._batchers.get(name)
                if found is None or found.operation is not operation:
                    self._forget_former()
                    found = self._batchers[name] = Batcher(name, operation, self._runner)
        return found

    def _forget_former(self) -> None:
        """Let go of versions that are no more, and of what had to make room. Batches that run keep theirs."""
        for name, one in list(self._batchers.items()):
            if self._runner.batched(name) is not one.operation:
                del self._batchers[name]
