"""MCP servers: their tools as `dspy.Tool`s. Sessions are opened at first use and live on one event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, TypeVar

from bridge.loop_thread import LoopThread
from bridge.protocol.errors import REMOTE_ERROR, BridgeError, not_found
from bridge.worker import arguments
from bridge.worker.call import CallStopped, current_call
from bridge.worker.waits import await_, wait

T = TypeVar("T")

log = logging.getLogger(__name__)

# How long a server may take to start and to say Hello.
OPEN_S: Final = 30.0
# How long servers may take to end.
_CLOSE_S: Final = 5.0
# A server that pages for ever.
_MAX_PAGES: Final = 100


class Servers:
    """The MCP servers of this worker, by name. config: as in `WorkerSpec.mcp`: {command, env} or {url}.

    A server that is a command is a child of this worker and ends with it.
    """

    def __init__(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        self._loop = LoopThread("mcp")
        self._servers = {name: Server(name, one, self._loop) for name, one in config.items()}

    def tools(self, name: str, tool: str, path: str) -> list[Any]:
        """Return the tools of a server, or that one of them. Blocks while the server starts.

        Raises BridgeError: NOT_FOUND, INVALID_REQUEST without the package `mcp`, REMOTE_ERROR for a server that does
        not answer, or why the call had to stop.
        """
        import dspy  # type: ignore[import-untyped]

        server = self._servers.get(name)
        if server is None:
            raise not_found("MCP server", name, self._servers, advice="(servers are named under `mcp` in dspool.yaml)")
        _check_package(path)
        listed = {one.name: one for one in server.listed()}
        if tool and tool not in listed:
            raise not_found(f"tool of the MCP server {name!r}:", tool, listed)
        chosen = [listed[tool]] if tool else list(listed.values())
        return [dspy.Tool.from_mcp_tool(server, one) for one in chosen]

    def close(self) -> None:
        """End all sessions, and the servers that were started for them. Idempotent."""
        with contextlib.suppress(RuntimeError):  # closed before
            closing = [self._loop.submit(server.close()) for server in self._servers.values() if server.was_used]
            concurrent.futures.wait(closing, _CLOSE_S)
        self._loop.close()


class Server:
    """One server. It is what DSPy takes for a session: `call_tool` may be awaited on any event loop."""

    def __init__(self, name: str, config: Mapping[str, Any], loop: LoopThread) -> None:
        self.name = name
        self._config = config
        self._loop = loop
        self._session: _Session | None = None

    @property
    def was_used(self) -> bool:
        """Whether a session was ever opened."""
        return self._session is not None

    def listed(self) -> list[Any]:
        """Return its tools, as MCP describes them.

        Raises BridgeError: REMOTE_ERROR, or why the call had to stop.
        """
        future, call = self._loop.submit(self._list()), current_call.get()
        try:
            return future.result() if call is None else wait(call, future)
        except CallStopped as stop:
            raise stop.error from None

    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """Call a tool and return MCP's result. Raises what the session raises; CallStopped."""
        future, call = self._loop.submit(self._call(name, arguments or {})), current_call.get()
        return await (asyncio.wrap_future(future) if call is None else await_(call, future))

    # --- on the loop of the sessions --------------------------------------------------------------

    async def _list(self) -> list[Any]:
        client = await self._session_now().client()
        tools: list[Any] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if not cursor:
                return tools
        raise BridgeError(REMOTE_ERROR, f"the MCP server {self.name!r} lists its tools on more than {_MAX_PAGES} pages")

    async def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        session = self._session_now()
        client = await session.client()
        try:
            return await client.call_tool(name, arguments)
        except Exception as exc:
            if _is_lost(exc):
                session.ended.set()
            raise

    def _session_now(self) -> _Session:
        """Return the session; a new one if there is none, or its server has died."""
        if self._session is None or self._session.ended.is_set():
            self._session = _Session(self.name, self._config)
        return self._session

    async def close(self) -> None:
        """End the session."""
        if self._session is not None:
            await self._session.close()


class _Session:
    """One session, from its opening to its end, in one task as its context managers need it."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.ended = asyncio.Event()
        self._name = name
        self._config = config
        self._opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._serve(), name=f"mcp[{name}]")

    async def client(self) -> Any:
        """Return the client when the session is open. Raises BridgeError(REMOTE_ERROR) if it cannot be opened."""
        await asyncio.wait([self._opened])  # not itself: who is cancelled cancels it for nobody else
        return self._opened.result()

    async def close(self) -> None:
        """End it; wait until it has ended."""
        self.ended.set()
        await asyncio.wait([self._task])

    async def _serve(self) -> None:
        import mcp

        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(OPEN_S):
                    client = await stack.enter_async_context(mcp.Client(_watched(self._config, self.ended)))
                self._opened.set_result(client)
                await self.ended.wait()
        except Exception as exc:  # noqa: BLE001 - told to whoever waits for the session, else to the log
            self.ended.set()
            if self._opened.done():
                log.warning("mcp_session_failed: %s: %s", self._name, _cause(exc))
            else:
                self._opened.set_exception(_unopened(self._name, exc))


@contextlib.asynccontextmanager
async def _watched(config: Mapping[str, Any], ended: asyncio.Event) -> AsyncIterator[tuple[Any, Any]]:
    """Open the way to a server, which sets `ended` when the server is gone."""
    async with _transport(config) as (read, write):
        yield _Watched(read, ended), write


def _transport(config: Mapping[str, Any]) -> Any:
    if url := config.get("url"):
        from mcp.client.streamable_http import streamable_http_client

        return streamable_http_client(url)
    from mcp.client.stdio import StdioServerParameters, stdio_client

    command, *rest = config["command"]
    # The server inherits PATH, HOME and what else says who and where one is; no keys.
    parameters = StdioServerParameters(command=command, args=rest, env=dict(config.get("env") or {}), cwd=os.getcwd())
    return stdio_client(parameters, errlog=sys.stderr)


class _Watched:
    """A stream of messages that says when it ends."""

    def __init__(self, stream: Any, ended: asyncio.Event) -> None:
        self._stream = stream
        self._ended = ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aenter__(self) -> _Watched:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> Any:
        return await self._stream.__aexit__(*exc)

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except BaseException:
            self._ended.set()
            raise


def _is_lost(exc: Exception) -> bool:
    """Tell whether a session is of no use any more. What a tool does wrong is a result, and no exception."""
    from mcp.shared.exceptions import MCPError
    from mcp.types import CONNECTION_CLOSED, INVALID_REQUEST

    # A server that was started anew answers INVALID_REQUEST: it does not know the session.
    return not isinstance(exc, MCPError) or exc.error.code in (CONNECTION_CLOSED, INVALID_REQUEST)


def _check_package(path: str) -> None:
    try:
        import mcp  # noqa: F401
    except ImportError as exc:
        text = f"{path}: tools of MCP servers need the package mcp, which this worker's Python has not ({exc}): "
        raise arguments.invalid(path, f"{text}pip install 'dspool[mcp]'") from exc


def _unopened(name: str, exc: BaseException) -> BridgeError:
    exc = _cause(exc)
    why = f"it has not answered within {OPEN_S:g} s" if isinstance(exc, TimeoutError) else str(exc)
    return BridgeError(
        REMOTE_ERROR, f"the MCP server {name!r} could not be opened: {why}", details={"type": type(exc).__name__}
    )


def _cause(exc: BaseException) -> BaseException:
    """Return what is within groups of one, as task groups raise them."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc
