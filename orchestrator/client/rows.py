"""Mapping over rows: how they are cut into chunks, how many are under way, in which order answers come. No sockets."""

from __future__ import annotations

import functools
import math
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any, Final

from bridge.protocol.messages import ERROR
from bridge.protocol.values import split_values
from orchestrator.client.future import Future, Parked
from orchestrator.client.patience import Patience
from orchestrator.client.progress import Progress
from orchestrator.client.request import ORDINARY, Terms
from orchestrator.errors import CircuitOpen, DeadlineExceeded, DspoolError, Overloaded, WorkerLost

MAX_CHUNK: Final = 64
# What a coordinator takes in one request.
MAX_ROWS: Final = 1024
# A chunk is to cost this much, so that its overhead is small and several workers stay busy.
TARGET_MS: Final = 4.0
# Arguments of one request; also keeps its answer, of about the same size, below the limits.
MAX_CHUNK_BYTES: Final = 1 << 20
_GROWTH: Final = 4


@dataclass(frozen=True, slots=True)
class MapPlan:
    """What a `map` does. fields: of its Requests."""

    fields: dict[str, Any]
    rows: Iterable[Any]
    ordered: bool
    raises: bool
    window: int
    chunk: int | None  # None = by measurement
    progress: bool
    deadline_s: float | None
    terms: Terms = ORDINARY


class Chunker:
    """Chooses how many rows go into a request, from how long rows have taken."""

    def __init__(self, chunk: int | None, window: int) -> None:
        self._fixed = chunk
        # At least four chunks are under way in a full window.
        self._most = max(1, min(MAX_CHUNK, window // 4))
        self.size = chunk or 1

    def observe(self, rows: int, run_ms: float) -> None:
        """Take note of an answered request."""
        if self._fixed is None:
            wanted = TARGET_MS / max(run_ms / rows, 1e-4)
            self.size = max(1, min(int(wanted), self.size * _GROWTH, self._most))


class Chunk:
    """Rows that travel together. A row that could not be encoded is its error; the others share a future.

    Those of which the reply says that they were not run share the next one; so do all, if they were refused for now.
    """

    __slots__ = ("_answers", "done", "future", "number", "outcomes", "payloads", "sent", "until")

    def __init__(self) -> None:
        self.number: float = math.inf  # its place among those that were sent
        self.payloads: list[bytes] = []  # of one row or of several
        self.sent = 0  # rows in the payloads
        self.outcomes: list[Any] = []  # an error, or None for a row that is sent
        self.future: Future | None = None
        self.done: Callable[[object], object] | None = None  # called when the future is settled
        self.until: float | None = None  # the deadline, monotonic
        self._answers: list[Any] = []  # to rows that were sent before

    @property
    def rows(self) -> int:
        """How many rows of the input it stands for."""
        return len(self.outcomes)

    def settled(self) -> bool:
        """Return whether there is something to collect, or nothing was to be sent."""
        return not self.sent if self.future is None else self.future.done()

    def refusal(self) -> Overloaded | CircuitOpen | None:
        """Return the error if the coordinator has not taken the rows, but may later; None if they are not settled."""
        future = self.future
        reply = future.reply if future is not None and future.done() else None
        # What names a worker was run there.
        if future is None or reply is None or reply.status != ERROR or reply.worker:
            return None
        error = future.exception()
        return error if isinstance(error, Overloaded | CircuitOpen) and error.retryable else None

    def was_lost(self) -> bool:
        """Return whether the rows ended without an answer of their worker's: such ends are what opens a breaker."""
        future = self.future
        reply = future.reply if future is not None else None
        if future is None or reply is None or reply.status != ERROR:
            return False
        return isinstance(future.exception(), WorkerLost | DeadlineExceeded)

    def collect(self) -> int:
        """Take in the answers that came. Return to how many rows; `sent` is how many must be sent again."""
        sent, future = self.sent, self.future
        if future is None:
            return 0
        error = future.exception()
        if error is not None:
            answers: list[Any] = [error] * sent
        else:
            value = future.result()
            answers = [value] if sent == 1 else value
            if not 0 < len(answers) <= sent:
                answers = [DspoolError(f"{sent} rows were sent, {len(answers)} answers came")] * sent
        self._answers = self._answers + answers if self._answers else answers
        count = len(answers)
        if count < sent:
            payloads = self.payloads if len(self.payloads) == sent else split_values(self.payloads[0], sent)
            self.payloads = payloads[count:]
        self.sent = sent - count
        self.future = None
        return count

    def results(self) -> list[Any]:
        """Return a value or a DspoolError for each row, in their order. Only when all is collected."""
        answers = self._answers
        if len(answers) == len(self.outcomes):
            return answers
        remaining = iter(answers)
        return [next(remaining) if outcome is None else outcome for outcome in self.outcomes]


def cut(batch: Sequence[Any], encode: Callable[[Any], bytes]) -> list[Chunk]:
    """Cut rows into chunks of at most MAX_CHUNK_BYTES (a larger row is alone)."""
    chunks = [Chunk()]
    size = 0
    for row in batch:
        try:
            payload = encode(row)
        except DspoolError as error:
            chunks[-1].outcomes.append(error)
            continue
        if chunks[-1].payloads and size + len(payload) > MAX_CHUNK_BYTES:
            chunks.append(Chunk())
            size = 0
        chunks[-1].payloads.append(payload)
        chunks[-1].sent += 1
        chunks[-1].outcomes.append(None)
        size += len(payload)
    return chunks


def whole(payload: bytes, rows: int) -> Chunk:
    """Return the chunk of rows that were encoded together."""
    chunk = Chunk()
    chunk.payloads.append(payload)
    chunk.sent = rows
    chunk.outcomes = [None] * rows
    return chunk


def raising(outcomes: list[Any]) -> Iterable[Any]:
    """Return outcomes such that iterating over them raises the first error among them."""
    # By type: a chunk has many rows, but few types.
    failed = any(issubclass(kind, DspoolError) for kind in set(map(type, outcomes)))
    return _until_error(outcomes) if failed else outcomes


def _until_error(outcomes: list[Any]) -> Iterator[Any]:
    for outcome in outcomes:
        if isinstance(outcome, DspoolError):
            raise outcome
        yield outcome


class Window:
    """The chunks under way. `ordered`: they are taken as they were added, else as they finish.

    Those that were refused for now are taken as soon as that is known, to be sent again, while `patience` lasts.
    """

    def __init__(self, *, ordered: bool, window: int, chunk: int | None, patience: Patience) -> None:
        self._ordered = ordered
        self._patience = patience
        self._limit = window
        self._chunker = Chunker(chunk, window)
        self._chunks: dict[int, Chunk] = {}
        self._added = 0
        self._rows = 0
        self._finished: deque[int] = deque()  # `ordered`: only those that failed
        self._watching: list[Parked] = []  # who waits for them
        # No two threads count one of them: the map counts what it sends, the others are counted under a lock.
        self._sends = self._settles = self._answers = 0
        self._seen_answers = 0  # at the last look
        self._looked = False  # since the last send

    def room(self) -> int:
        """Return how many rows to send next, 0 if the window is full. What is not taken yet counts."""
        size = self._chunker.size
        return size if not self._rows or self._rows + size <= self._limit else 0

    def add(self, chunk: Chunk) -> None:
        """Add a chunk; its `done` is to be called, from any thread, when its future is settled."""
        chunk.number = number = self._added = self._added + 1
        self._chunks[number] = chunk
        self._rows += chunk.rows
        chunk.done = functools.partial(self._settled, number)

    def sending(self) -> None:
        """Take note that a chunk is about to be sent."""
        self._sends += 1
        self._looked = False

    def _settled(self, number: int, future: object) -> None:
        reply = future.reply if isinstance(future, Future) else None
        failed = reply is not None and reply.status == ERROR
        if isinstance(future, Future):
            self._settles += 1
            # What names a worker was run there.
            self._answers += reply is not None and (not failed or bool(reply.worker))
        if failed or not self._ordered:
            self._finished.append(number)
        if self._ordered and (failed or self._settles == self._sends):
            for parked in self._watching:
                parked.wake()

    def ready(self) -> bool:
        """Return whether `take` has something to do."""
        return bool(self._finished) or self._front_settled() or self._to_look()

    def _to_look(self) -> bool:
        """Return whether only a time is waited for, and nobody has looked yet whether that must be."""
        return self._patience.until is not None and not self._looked and self._settles == self._sends

    def _look(self) -> None:
        """Cut a wait short if rows of this map were answered meanwhile.

        The time was told of a queue with these rows in it. Without an answer since the last look it stands.
        """
        if self._answers > self._seen_answers:
            self._patience.hurry()
        self._seen_answers, self._looked = self._answers, True

    def take(self) -> Chunk | None:
        """Return the next chunk that is settled, None if there is none. One with rows to send again stays."""
        while self._ordered and self._finished:
            failed = self._chunks.get(self._finished.popleft())
            if failed is not None and self._refused(failed):
                return failed
        if self._front_settled():
            number = next(iter(self._chunks))
        elif not self._ordered and self._finished:
            number = self._finished.popleft()
        else:
            if self._to_look():
                self._look()
            return None
        chunk = self._chunks[number]
        if self._refused(chunk):
            return chunk
        reply = chunk.future.reply if chunk.future is not None else None
        answers = chunk.refusal() is None and not chunk.was_lost()
        answered = chunk.collect()
        if reply is not None:
            self._chunker.observe(answered, reply.run_ms)
            if answers:
                self._patience.answered()
        if not chunk.sent:
            del self._chunks[number]
            self._rows -= chunk.rows
        return chunk

    def _front_settled(self) -> bool:
        return self._ordered and bool(self._chunks) and next(iter(self._chunks.values())).settled()

    def _refused(self, chunk: Chunk) -> bool:
        """Return whether a chunk was refused and is to be sent again."""
        error = chunk.refusal()
        if error is None or not self._patience.refused(error, chunk.until):
            return False
        chunk.future = None
        return True

    def waiters(self) -> list[list[Any]]:
        """Return the lists of waiters of which one is woken when `ready` comes true."""
        futures = self.futures()
        if self._ordered:
            return [self._watching, *(future.waiters for future in futures[:1])]
        return [future.waiters for future in futures]

    def futures(self) -> list[Future]:
        """Return the futures under way, the one awaited first in front."""
        return [chunk.future for chunk in self._chunks.values() if chunk.future is not None]

    @property
    def empty(self) -> bool:
        """Whether nothing is under way."""
        return not self._chunks


class RowMap:
    """A map under way, without its waiting: `steps` says when to wait, the client waits in its way."""

    def __init__(
        self, plan: MapPlan, max_in_flight: int, *, encode: Callable[[Any], bytes],
        send: Callable[[bytes, int, float | None, Callable[[object], object]], Future], has_room: Callable[[int], bool],
        encode_rows: Callable[[list[Any]], bytes | None] = lambda _: None,
        ended: Callable[[], bool] = lambda: False, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Send with `send(payload, rows, deadline_s, notify)`; `notify` is called, on any thread, when it is settled.

        encode_rows: encodes rows in one go, or returns None: then each is encoded by itself. ended: whether `send` can
        only raise, for which no time is waited.
        """
        self._patience = Patience(clock)
        self.window = Window(
            ordered=plan.ordered, window=min(plan.window, max_in_flight), chunk=plan.chunk, patience=self._patience
        )
        self._ended, self._clock = ended, clock
        self._plan = plan
        self._encode, self._encode_rows, self._send, self._has_room = encode, encode_rows, send, has_room
        self._source = iter(plan.rows)
        self._exhausted = False
        self._unsent: deque[Chunk] = deque()

    @property
    def until(self) -> float | None:
        """When to go on (by the clock) although the window is not ready, None if not by itself."""
        return self._patience.until

    def values(self) -> Generator[Iterable[Any] | None, None, None]:
        """Yield what `steps` does, as the plan has it: errors raised or not, progress told, the rest cancelled."""
        plan = self._plan
        with Progress(plan.fields["operation"], plan.rows, shown=plan.progress) as progress:
            try:
                for outcomes in self.steps():
                    if outcomes is None:
                        yield None
                        continue
                    yield raising(outcomes) if plan.raises else outcomes
                    progress.advance(len(outcomes))
            finally:
                self.cancel()

    def steps(self) -> Iterator[list[Any] | None]:
        """Yield the outcomes of a chunk, or None: wait until `window.ready()`, or `until` is over, or there is room."""
        while True:
            self._fill()
            chunk = self.window.take()
            if chunk is not None and chunk.sent:
                # The first goes first: for it the others may have to be kept.
                insort(self._unsent, chunk, key=attrgetter("number"))
            elif chunk is not None:
                yield chunk.results()
            elif self.window.empty and self._exhausted and not self._unsent:
                return
            else:
                yield None

    def _fill(self) -> None:
        if not self._patience.over() and not self._ended():
            return
        while True:
            if not self._unsent and not self._exhausted and (size := self.window.room()):
                batch = list(islice(self._source, size))
                self._exhausted = len(batch) < size
                payload = self._encode_rows(batch) if len(batch) > 1 else None
                chunks = cut(batch, self._encode) if payload is None else [whole(payload, len(batch))]
                self._unsent.extend(chunk for chunk in chunks if chunk.rows)
            if not self._unsent or not self._has_room(self._unsent[0].sent):
                return
            self._start(self._unsent.popleft())

    def _start(self, chunk: Chunk) -> None:
        deadline_s = self._plan.deadline_s
        if chunk.done is None:
            self.window.add(chunk)
            chunk.until = None if deadline_s is None else self._clock() + deadline_s
        elif chunk.until is not None:
            deadline_s = max(chunk.until - self._clock(), 0.001)
        assert chunk.done is not None
        if chunk.sent:
            self.window.sending()
            chunk.future = self._send(b"".join(chunk.payloads), chunk.sent, deadline_s, chunk.done)
        else:
            chunk.done(None)

    def cancel(self) -> None:
        """Cancel what is under way."""
        for future in self.window.futures():
            future.cancel()
