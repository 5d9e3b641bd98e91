"""The event loop on which a worker runs asynchronous programs: one thread, many attempts."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any, Final, TypeVar

log = logging.getLogger(__name__)

_CLOSE_S: Final = 1.0

T = TypeVar("T")
ProgramTask = asyncio.Task[None]

_reach = threading.local()
# The tasks that the program of this context has started.
_tasks: ContextVar[set[asyncio.Task[Any]] | None] = ContextVar("dspool_tasks", default=None)


class ProgramLoop:
    """One asyncio loop on a thread of its own, started by the first `start`. Thread-safe.

    A program that blocks it holds up the other asynchronous programs of its worker, nothing else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Coroutine[Any, Any, None], context: Context, running: Callable[[ProgramTask], None]) -> None:
        """Run a coroutine as a task in that context. running: is given the task before it begins, on the loop."""
        loop = self._loop or self._begin()
        loop.call_soon_threadsafe(_start, loop, work, context, running)

    def close(self) -> None:
        """Cancel what runs and end the thread; what does not end in time is left to the end of the process."""
        with self._lock:
            loop, thread, self._loop = self._loop, self._thread, None
            if loop is not None:
                loop.call_soon_threadsafe(loop.stop)
        if thread is not None:
            thread.join(_CLOSE_S)

    def _begin(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_task_factory(_task)
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name="programs", daemon=True)
                self._thread.start()
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        while self._serves(loop):
            # Left by `close` alone: a program that stops its loop must not end the others.
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # asyncio lets these of any task through, after telling whoever awaits it. The other programs go on.
                log.warning("program_task_exited", exc_info=True)
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    def _serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        with self._lock:
            return self._loop is loop


def _start(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, None],
    context: Context,
    running: Callable[[ProgramTask], None],
) -> None:
    tasks: set[asyncio.Task[Any]] = set()
    context.run(_tasks.set, tasks)
    task = loop.create_task(work, context=context)
    task.add_done_callback(lambda _: _cancel_all(tasks))
    running(task)


def _task(loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None) -> asyncio.Task[Any]:
    """Make a task, and note which program's it is: what a program leaves behind ends with it."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
    tasks = _tasks.get()
    if tasks is not None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    return task


def _cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tuple(tasks):
        task.cancel()


async def on_thread(function: Callable[[], T]) -> T:
    """Run a function on a thread from which `anyio.from_thread` works; wait until it ends, even when cancelled.

    A thread cannot be stopped from outside: a cancelled call stops at its next boundary. Until then it has its slot.
    """
    import anyio.to_thread  # a worker that needs none of it boots without

    outcome: list[T | BaseException] = []

    def run() -> bool:
        # Nothing is raised through the loop, which sys.exit() would end.
        _reach.loop = True
        try:
            outcome.append(function())
        except BaseException as exc:  # noqa: BLE001 - it is raised again where it is waited for
            outcome.append(exc)
            return False
        return True

    # DSPy's own threads for this are eight for all programs together: these are bounded by the worker's slots.
    limiter = anyio.CapacityLimiter(math.inf)
    work = asyncio.ensure_future(anyio.to_thread.run_sync(run, limiter=limiter))
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None and work.cancelled():  # with all that its program has left behind
        raise cancelled
    (result,) = outcome
    if not work.result():
        raise result  # type: ignore[misc]
    if cancelled is not None:
        raise cancelled
    return result  # type: ignore[return-value]


def reaches_loop() -> bool:
    """Tell whether this thread can have something awaited: it runs an event loop, or was started by `on_thread`."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return getattr(_reach, "loop", False)
    return True
