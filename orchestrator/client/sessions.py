"""Sessions: calls that share a state and a conversation, one after the other.

A handle names one session: when that has expired, was ended, or was lost with its worker, its calls raise SessionLost.
`session="name"` of `execute` and its like means whatever session has that name, and begins one where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from bridge.protocol.errors import BridgeError
from bridge.protocol.kept import read_state, read_turn
from orchestrator.client.remote import Awaiting, Waiting, bind_methods, remote, streaming, submitting
from orchestrator.client.request import Call, Terms, check_seconds, check_session, one_of, request_terms
from orchestrator.errors import InvalidRequest, from_bridge

if TYPE_CHECKING:
    from orchestrator.client.aio import AsyncClient, AsyncFuture
    from orchestrator.client.client import Client
    from orchestrator.client.future import Future
    from orchestrator.client.stream import AsyncStream, Stream

T = TypeVar("T")

AFFINITIES: Final = ("hint", "strict_queue", "strict_fail_fast")
ON_LOSS: Final = ("restore", "fail")


class SessionsApi:
    """What can be asked of a coordinator about sessions: those of this client's principal."""

    @remote
    def sessions(self) -> Call[list[dict[str, Any]]]:
        """Return the sessions: id, worker, calls, idle_s, ttl_s, state_bytes and more of each."""
        return Call("dspool.sessions", read=lambda found: found["sessions"])

    @remote
    def session_info(self, id: str) -> Call[dict[str, Any]]:
        """Return a session as `sessions` lists it, with its `state`, `history` and `metrics`. Raises NotFound."""
        return Call("dspool.session", {"id": check_session(id)}, read=_read_info)

    @remote
    def expire_session(self, id: str) -> Call[bool]:
        """End a session, after the call that runs in it; return whether there was one. What waits in it is refused."""
        return Call("dspool.session_expire", {"id": check_session(id)})


class SessionPlans:
    """What can be done in a session; each method is defined once for both clients."""

    id: str
    _generation: int | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        bind_methods(cls, SessionPlans)

    @remote
    def call(self, program: str, /, **inputs: Any) -> Call[Any]:
        """Call a deployed program with its inputs. Its `dspy.History` input is the conversation unless it is given."""
        return Call(program, inputs, terms=self._terms())

    @remote
    def execute(
        self, operation: str, args: Any = None, *, pool: str | None = None, deadline_s: float | None = None,
        lm: str | None = None, priority: str = "normal", idempotent: bool = False,
    ) -> Call[Any]:  # fmt: skip
        """Run an operation in the session; see `Client.execute`."""
        return Call(operation, args, pool, deadline_s, lm, terms=self._terms(priority, idempotent))

    @submitting
    def submit(
        self, operation: str, args: Any = None, *, pool: str | None = None, deadline_s: float | None = None,
        lm: str | None = None, priority: str = "normal", idempotent: bool = False,
    ) -> Call[Any]:  # fmt: skip
        """Start an operation in the session, behind what was asked of it before; see `Client.submit`."""
        return Call(operation, args, pool, deadline_s, lm, terms=self._terms(priority, idempotent))

    @streaming
    def stream(
        self, operation: str, args: Any = None, *, pool: str | None = None, deadline_s: float | None = None,
        lm: str | None = None, priority: str = "normal", idempotent: bool = False,
    ) -> Call[Any]:  # fmt: skip
        """Run an operation in the session and read what it says; see `Client.stream`."""
        return Call(operation, args, pool, deadline_s, lm, terms=self._terms(priority, idempotent))

    @remote
    def info(self) -> Call[dict[str, Any]]:
        """Return the session as `Client.session_info` does."""
        return Call("dspool.session", self._named(), read=_read_info)

    @remote
    def history(self) -> Call[list[dict[str, Any]]]:
        """Return its calls, the oldest first, as many as are kept.

        Each has operation, inputs, outputs, ok, error (a code, or None), at (unix seconds), run_ms and worker; omitted
        names what was too large to be kept.
        """
        return self._read(lambda found: _read_turns(found["turns"]), "turns")

    @remote
    def metrics(self) -> Call[dict[str, Any]]:
        """Return count, mean_ms, p95_ms, success_rate and trend ("improving", "steady" or "degrading") of its calls."""
        return self._read(lambda found: found["metrics"], "metrics")

    @remote
    def expire(self) -> Call[bool]:
        """End the session, after the call that runs in it; return whether it was there."""
        return Call("dspool.session_expire", self._named())

    @remote
    def _place(self) -> Call[str | None]:
        return self._read(lambda found: found["worker"])

    @remote
    def _state(self) -> Call[dict[str, Any]]:
        return self._read(lambda found: _read_state(found["state"]), "state")

    @remote
    def _put_state(self, values: Mapping[str, Any]) -> Call[None]:
        return Call("session.set", {"values": dict(values)}, terms=self._terms())

    @remote
    def _drop_state(self, keys: list[Any] | None) -> Call[list[str]]:
        return Call("session.delete", {"keys": keys}, terms=self._terms())

    def _terms(self, priority: str = "normal", idempotent: bool = False) -> Terms:
        return request_terms(priority, idempotent, None, self.id, self._opened())

    def _read(self, read: Callable[[Mapping[str, Any]], T], *parts: str) -> Call[T]:
        """Return the call that reads of the session its row and these parts alone: the others may be large."""
        return Call("dspool.session", {**self._named(), "parts": list(parts)}, read=read)

    def _named(self) -> dict[str, Any]:
        return {"id": self.id, "generation": self._opened()}

    def _opened(self) -> int:
        if self._generation is None:
            text = f"the session {self.id!r} is not open yet: `async with` it, or await it"
            raise InvalidRequest(text, path="session")
        return self._generation


class Session(Waiting, SessionPlans):
    """A session of a client. Thread-safe. A context manager whose end does not end the session: that is `expire`.

    id: its name. state: a mapping that is written through: what is put into it is in the session when that returns.
    """

    def __init__(self, client: Client, row: dict[str, Any]) -> None:
        self._client = client
        self.id: str = row["id"]
        self._generation = row["generation"]
        self.state = State(self)

    @property
    def worker(self) -> str | None:
        """The worker where its last call ran and its next one goes first; None before the first."""
        return self._place()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave it as it is."""

    def __repr__(self) -> str:
        return f"<Session {self.id!r}>"

    def _run(self, call: Call[Any]) -> Any:
        return self._client._run(call)

    def _submit(self, call: Call[Any]) -> Future:
        return self._client._put(call.operation, call.args, call.pool, call.deadline_s, call.lm, call.terms)

    def _stream(self, call: Call[Any]) -> Stream:
        return self._client._stream(call)


class State(MutableMapping[str, Any]):
    """What a session remembers, a mapping of texts to values. Each use asks the coordinator.

    `copy` reads all of it at once, `update` writes many values at once.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def copy(self) -> dict[str, Any]:
        """Return all of it."""
        return self._session._state()

    def __getitem__(self, key: str) -> Any:
        return self.copy()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._session._put_state({key: value})

    def __delitem__(self, key: str) -> None:
        if not self._session._drop_state([key]):
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __len__(self) -> int:
        return len(self.copy())

    def items(self) -> ItemsView[str, Any]:
        """Return what it holds now."""
        return self.copy().items()

    def values(self) -> ValuesView[Any]:
        """Return the values that it holds now."""
        return self.copy().values()

    def update(self, /, *args: Any, **values: Any) -> None:
        """Put many values into it, all or none of them."""
        self._session._put_state(dict(*args, **values))

    def clear(self) -> None:
        """Take everything out of it."""
        self._session._drop_state(None)

    def __repr__(self) -> str:
        return f"<State of session {self._session.id!r}>"


class AsyncSession(Awaiting, SessionPlans):
    """A session of an AsyncClient: `async with client.session("x") as s`, or `s = await client.session("x")`.

    id: its name. state: see AsyncState. Its methods are those of `Session`, awaited.
    """

    def __init__(self, client: AsyncClient, opening: Call[dict[str, Any]]) -> None:
        self._client = client
        self._opening = opening
        self.id: str = opening.args["id"]
        self._generation: int | None = None
        self.state = AsyncState(self)

    @property
    async def worker(self) -> str | None:
        """The worker where its last call ran and its next one goes first; None before the first. To be awaited."""
        return await self._place()

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave it as it is."""

    def __repr__(self) -> str:
        return f"<AsyncSession {self.id!r}>"

    async def _open(self) -> Self:
        if self._generation is None:
            self._generation = (await self._client._run(self._opening))["generation"]
        return self

    async def _run(self, call: Call[Any]) -> Any:
        return await self._client._run(call)

    async def _submit(self, call: Call[Any]) -> AsyncFuture:
        return await self._client._submit(call)

    def _stream(self, call: Call[Any]) -> AsyncStream:
        return self._client._stream(call)


class AsyncState:
    """What a session remembers: texts to values."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def items(self) -> dict[str, Any]:
        """Return all of it."""
        return await self._session._state()

    async def get(self, key: str, default: Any = None) -> Any:
        """Return one value."""
        return (await self._session._state()).get(key, default)

    async def set(self, key: str, value: Any) -> None:
        """Put a value into it."""
        await self._session._put_state({key: value})

    async def update(self, /, *args: Any, **values: Any) -> None:
        """Put many values into it, all or none of them."""
        await self._session._put_state(dict(*args, **values))

    async def delete(self, key: str) -> bool:
        """Take a value out of it; return whether it was there."""
        return bool(await self._session._drop_state([key]))

    async def clear(self) -> None:
        """Take everything out of it."""
        await self._session._drop_state(None)


def opening(id: str, ttl_s: float | None, affinity: str | None, on_loss: str | None) -> Call[dict[str, Any]]:
    """Return the call that opens a session. Raises InvalidRequest."""
    args: dict[str, Any] = {"id": check_session(id)}
    if ttl_s is not None:
        check_seconds(ttl_s, "ttl_s")
        args["ttl_s"] = float(ttl_s)
    if affinity is not None:
        args["affinity"] = one_of("affinity", affinity, AFFINITIES)
    if on_loss is not None:
        args["on_loss"] = one_of("on_loss", on_loss, ON_LOSS)
    return Call("dspool.session_open", args)


def _read_info(found: Mapping[str, Any]) -> dict[str, Any]:
    history = _read_turns(found["turns"])
    return {**found, "turns": len(history), "state": _read_state(found["state"]), "history": history}


def _read_state(data: bytes) -> dict[str, Any]:
    try:
        return read_state(data)
    except BridgeError as exc:
        raise from_bridge(exc) from None


def _read_turns(turns: list[bytes]) -> list[dict[str, Any]]:
    try:
        return [read_turn(turn) for turn in turns]
    except BridgeError as exc:
        raise from_bridge(exc) from None
