"""Long work: a request with progress events, and the result of an optimization."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from bridge.protocol import values
from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Event
from orchestrator.client.calls import ProgramVersion, is_program_name
from orchestrator.client.future import CancelOutcome, Future
from orchestrator.client.mailbox import tell
from orchestrator.client.request import Call
from orchestrator.errors import InvalidRequest, NotFound, from_bridge

if TYPE_CHECKING:
    from orchestrator.client.aio import AsyncCancelOutcome, AsyncFuture
    from orchestrator.client.core import Connection

T = TypeVar("T")

# Kept events; of a longer job the oldest are forgotten.
MAX_EVENTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One step of a job. sequence counts from 1; data depends on the kind."""

    sequence: int
    kind: str
    data: dict[str, Any]


class EventLog:
    """The events of a job so far. `add` runs under the connection's lock, the rest anywhere."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.waiters: list[Any] = []
        self.listeners: list[Callable[[], object]] = []
        self.last = 0

    def add(self, event: Event) -> None:
        """Keep an event and wake who waits for it."""
        self._events.append(event)
        self.last = event.sequence
        for parked in self.waiters:
            parked.wake()
        for tell_news in self.listeners:
            tell_news()

    def after(self, sequence: int) -> list[Event]:
        """Return the events after one."""
        if self.last <= sequence:
            return []
        return [event for event in tuple(self._events) if event.sequence > sequence]


def read_event(event: Event, nesting: int) -> JobEvent:
    """Return an event in its public form."""
    try:
        data = values.decode_value(event.payload or b"", nesting=nesting) if event.payload else {}
    except BridgeError as exc:
        raise from_bridge(exc) from None
    return JobEvent(event.sequence, event.kind, data)


def status_of(future: Future, log: EventLog) -> str:
    """Return queued | running | done | failed | cancelled, as far as this side knows."""
    if not future.done():
        return "running" if log.last else "queued"
    if future.cancelled():
        return "cancelled"
    return "failed" if future.exception() is not None else "done"


class _JobBase(Generic[T]):
    def __init__(self, future: Future, log: EventLog, call: Call[T], connection: Connection) -> None:
        self._future = future
        self._log = log
        self._call = call
        self._connection = connection
        self.request_id = future.request_id
        self.id = f"job-{future.request_id:x}"

    def status(self) -> str:
        """Return queued, running, done, failed or cancelled."""
        return status_of(self._future, self._log)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status()}>"


class Job(_JobBase[T]):
    """Work that tells how it goes. It lives as long as this client's connection."""

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise the job's error. Raises TimeoutError after `timeout` seconds."""
        self._future.exception(timeout)
        return self._call.value(self._future)

    def events(self, after: int = 0) -> Iterator[JobEvent]:
        """Iterate over the events after number `after`, the past ones first; ends with the job."""
        log, future = self._log, self._future
        while True:
            over = future.done()
            for event in log.after(after):
                after = event.sequence
                yield read_event(event, self._connection.nesting)
            if over:
                return
            self._connection.wait_until(functools.partial(_has_news, log, future, after), [log.waiters, future.waiters])

    def cancel(self, force: bool = False) -> CancelOutcome:
        """Ask for cancellation; see Future.cancel."""
        return self._future.cancel(force)


def _has_news(log: EventLog, future: Future, after: int) -> bool:
    return log.last > after or future.done()


class AsyncJob(_JobBase[T]):
    """A Job whose waits are awaited."""

    def __init__(self, future: AsyncFuture, log: EventLog, call: Call[T], connection: Connection) -> None:
        super().__init__(future.core, log, call, connection)
        self._awaitable = future

    async def result(self, timeout: float | None = None) -> T:  # noqa: ASYNC109 - as Job's
        """Return the result, or raise the job's error. Raises TimeoutError after `timeout` seconds; the job goes on."""
        await self._awaitable.settled(timeout)
        return self._call.value(self._future)

    async def events(self, after: int = 0) -> AsyncIterator[JobEvent]:
        """Iterate over the events after number `after`, the past ones first; ends with the job."""
        log, future, loop = self._log, self._future, asyncio.get_running_loop()
        news = asyncio.Event()
        listener = functools.partial(tell, loop, news.set)
        log.listeners.append(listener)
        self._awaitable.on_settled(news.set)
        try:
            while True:
                news.clear()
                over = future.done()
                for event in log.after(after):
                    after = event.sequence
                    yield read_event(event, self._connection.nesting)
                if over:
                    return
                await news.wait()
        finally:
            log.listeners.remove(listener)

    def cancel(self, force: bool = False) -> AsyncCancelOutcome:
        """Ask for cancellation; see AsyncFuture.cancel."""
        return self._awaitable.cancel(force)


# --- optimization -----------------------------------------------------------------------------

Steps = Generator[Call[Any], Any, ProgramVersion]


@dataclass(frozen=True)
class OptimizationResult(Generic[T]):
    """What an optimizer found.

    program: the state of the best program, JSON. score, baseline_score: percent on the validation set, with and
    without it. candidates: what was tried, best first. usage: lm_calls, tokens, cost_usd. details: all that was told.
    """

    program: dict[str, Any]
    score: float
    baseline_score: float
    candidates: list[dict[str, Any]]
    usage: dict[str, Any]
    details: dict[str, Any] = field(repr=False)
    _source: Any = field(repr=False, compare=False)
    _deploy: Callable[[Steps], T] = field(repr=False, compare=False)

    @property
    def improvement(self) -> float:
        """Points gained over the unoptimized program."""
        return self.score - self.baseline_score

    def to_yaml(self, path: str | PathLike[str]) -> None:
        """Write everything to a YAML file."""
        import yaml

        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(self.details, file, sort_keys=False, allow_unicode=True)

    def deploy(self, name: str | None = None) -> T:
        """Deploy the optimized program: as `name`, or in the place of the one it was made from.

        Raises InvalidRequest if it was made from a target that has no name and none is given.
        """
        return self._deploy(self._deployment(name))

    def _deployment(self, name: str | None) -> Steps:
        source = self._source
        if is_program_name(source):
            rows = yield Call("programs.list")
            found = [row for row in rows if row["name"] == source]
            if not found:
                raise NotFound(f"program {source!r}, which was optimized, is not deployed any more")
            name, target, pool = name or source, found[0]["target"], found[0]["pool"]
            config = found[0].get("config")
        else:
            target, pool, config = source, None, None
        if name is None:
            raise InvalidRequest("give the deployed program a name: deploy(name=…)", path="name")
        args = {"name": name, "target": target, "pool": pool, "state": self.program, "config": config}
        found = yield Call("programs.deploy", args)
        return ProgramVersion.of(found)


def read_result(found: Mapping[str, Any], source: Any, deploy: Callable[[Steps], T]) -> OptimizationResult[T]:
    """Return the public form of what operation `optimize` answers."""
    return OptimizationResult(
        program=found["program"],
        score=found["score"],
        baseline_score=found["baseline_score"],
        candidates=list(found["candidates"]),
        usage=dict(found["usage"]),
        details=dict(found),
        _source=source,
        _deploy=deploy,
    )
