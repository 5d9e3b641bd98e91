"""Calls of a caller's own tools: they come as ToolCall messages and run here, on threads or an event loop.

Whatever a tool does, the model is told: what it returned, or what it raised.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final

from bridge.loop_thread import LoopThread
from bridge.protocol.errors import REMOTE_ERROR, BridgeError, encode_error, not_found
from bridge.protocol.messages import ERROR, OK, ToolCall, ToolReply
from bridge.protocol.values import decode_value, encode_value
from bridge.worker.raised import remote_error

if TYPE_CHECKING:
    from orchestrator.client.core import Connection
    from orchestrator.client.tools import Tool

# Tools of one client that block, at once; further calls wait for a thread.
THREADS: Final = 32
_IDLE_S: Final = 10.0


# The request whose tool runs on this thread or task.
_asking: contextvars.ContextVar[Serving | None] = contextvars.ContextVar("dspool_tool_of", default=None)


def parent_of_tool(connection: Connection) -> int:
    """Return the request that called the tool that asks `connection` for something, 0 if none did.

    What a tool asks for is nested in it: the agent waits, so it goes before what nobody waits for in a worker.
    """
    serving = _asking.get()
    return 0 if serving is None else serving.parent_on(connection)


class ToolThreads:
    """Threads for tools that block, made as needed; each ends when it has been idle for 10 s.

    They are daemons: a tool that never returns does not hold up the end of the process.
    """

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def run(self, work: Callable[[], object]) -> None:
        """Run it as soon as there is a thread. Raises RuntimeError after `close`, and if the system gives none."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the client was closed")
            self._waiting.append(work)
            if len(self._waiting) > self._idle and self._threads < self._most:
                self._add_thread()
            self._changed.notify()

    def close(self) -> None:
        """Let the threads end as they become idle; what waits for one is dropped."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _add_thread(self) -> None:
        try:
            threading.Thread(target=self._serve, name=f"tools[{self._threads}]", daemon=True).start()
        except RuntimeError:
            if self._threads == 0:
                self._waiting.pop()
                raise
            return  # those that there are come to it
        self._threads += 1

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._waiting or self._closed, _IDLE_S)
                self._idle -= 1
                if not self._waiting:
                    self._threads -= 1
                    return
                work = self._waiting.popleft()
            work()
            del work  # an idle thread holds on to no arguments


class ToolHost:
    """Where the tools of one client run: threads, and an event loop for the asynchronous ones of a sync client."""

    def __init__(self) -> None:
        self.threads = ToolThreads()
        self.loop = LoopThread("tools-loop")

    def close(self) -> None:
        """Cancel asynchronous tools. What blocks a thread is left to end by itself."""
        self.threads.close()
        self.loop.close()


class Serving:
    """The tools of this process for the time of one request.

    loop: where asynchronous tools run; None = the client's own. Each call runs in a copy of the context that the
    request was made in.
    """

    def __init__(
        self, tools: Mapping[str, Tool], connection: Connection, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self._tools = tools
        self._connection = connection
        self._loop = loop
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._running: set[concurrent.futures.Future[None]] = set()
        self._epoch = self._request_id = 0
        self._ended = False

    def call(self, message: ToolCall) -> None:
        """Begin a call, and return at once."""
        if message.epoch != self._epoch:
            # The request runs anew, its worker has died: nobody waits for what that one asked.
            self._epoch, self._request_id = message.epoch, message.request_id
            self._cancel()
        tool = self._tools.get(message.name)
        if tool is None:
            refuse(self._connection, message, self._tools)
            return
        try:
            if tool.is_async:
                self._start(self._arun(message, tool))
            else:
                self._connection.tool_host.threads.run(functools.partial(self._run, message, tool))
        except RuntimeError as exc:  # no thread, or the loop is closed
            self._fail(message, exc)

    def parent_on(self, connection: Connection) -> int:
        """Return the request, if it is one of this connection and waits for its tools; else 0."""
        own = getattr(self._connection, "shared", self._connection)
        return self._request_id if connection is own and not self._ended else 0

    def end(self, _settled: object = None) -> None:
        """Cancel what can be cancelled: nobody waits for it. What runs on a thread ends by itself, unheard."""
        self._ended = True
        self._cancel()

    def _cancel(self) -> None:
        with self._lock:
            running = list(self._running)
        for one in running:
            one.cancel()

    # --- on the threads ---------------------------------------------------------------------------

    def _run(self, message: ToolCall, tool: Tool) -> None:
        if self._ended:
            return
        try:
            arguments = self._read(message, tool)
            result = self._own_context().run(tool.function, **arguments)
            if inspect.isawaitable(result):  # of a function that does not look asynchronous
                self._start(self._await(message, tool, result))
                return
        except BaseException as exc:  # noqa: BLE001 - sys.exit() in a tool ends the call, not its thread
            self._fail(message, exc)
        else:
            self._answer(message, tool, result)

    # --- on an event loop -------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        submit = self._connection.tool_host.loop.submit
        if self._loop is not None:
            loop = self._loop
            if loop.is_closed():
                work.close()
                raise RuntimeError("the event loop of this client is closed")
            submit = functools.partial(asyncio.run_coroutine_threadsafe, loop=loop)
        future = self._own_context().run(submit, work)
        with self._lock:
            self._running.add(future)
        future.add_done_callback(self._forget)
        if self._ended:
            future.cancel()

    def _own_context(self) -> contextvars.Context:
        context = self._context.copy()
        context.run(_asking.set, self)
        return context

    def _forget(self, future: concurrent.futures.Future[None]) -> None:
        with self._lock:
            self._running.discard(future)

    async def _arun(self, message: ToolCall, tool: Tool) -> None:
        try:
            work = tool.function(**self._read(message, tool))
        except BaseException as exc:  # noqa: BLE001 - as in `_run`
            self._fail(message, exc)
            return
        await self._await(message, tool, work)

    async def _await(self, message: ToolCall, tool: Tool, work: Any) -> None:
        try:
            result = await work
        except BaseException as exc:  # a SystemExit would end the loop
            if isinstance(exc, asyncio.CancelledError) and (self._ended or message.epoch != self._epoch):
                raise
            self._fail(message, exc)
        else:
            self._answer(message, tool, result)

    # --- answers ----------------------------------------------------------------------------------

    def _read(self, message: ToolCall, tool: Tool) -> dict[str, Any]:
        arguments = decode_value(message.payload or b"", nesting=self._connection.nesting)
        return tool.read(arguments)

    def _answer(self, message: ToolCall, tool: Tool, result: Any) -> None:
        connection = self._connection
        try:
            payload = encode_value(result, nesting=connection.nesting, max_bytes=connection.message_bytes)
        except BridgeError as error:
            text = f"what {tool.name} returned cannot be sent: {error.message}"
            kind = {"type": "TypeError" if "path" in error.details else "ValueError"}
            reply(connection, message, ERROR, encode_error(BridgeError(REMOTE_ERROR, text, details=kind)))
            return
        reply(connection, message, OK, payload)

    def _fail(self, message: ToolCall, exc: BaseException) -> None:
        if exc.__traceback__ is not None:
            exc = exc.with_traceback(exc.__traceback__.tb_next)  # from the tool's own frame
        reply(self._connection, message, ERROR, encode_error(remote_error(exc)))


def refuse(connection: Connection, message: ToolCall, known: Mapping[str, Tool]) -> None:
    """Answer the call of a tool that this process has not."""
    reply(connection, message, ERROR, encode_error(not_found("tool of the caller", message.name, known)))


def reply(connection: Connection, message: ToolCall, status: int, payload: bytes) -> None:
    """Answer a call. Nothing happens if its request is settled."""
    connection.reply_tool(
        ToolReply(
            request_id=message.request_id, payload=payload, status=status, epoch=message.epoch, number=message.number
        )
    )
