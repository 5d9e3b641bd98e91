"""What is checked before a request is sent, and the form in which a method describes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from bridge.protocol import values
from bridge.protocol.errors import BridgeError, shown
from bridge.protocol.messages import (
    FLAG_IDEMPOTENT,
    MAX_KEY_CHARS,
    PRIORITY_HIGH,
    PRIORITY_LOW,
    PRIORITY_NORMAL,
    ToolCall,
)
from bridge.protocol.names import is_text
from orchestrator.client.future import Future
from orchestrator.client.sharing import Payload
from orchestrator.errors import DspoolError, InvalidRequest, from_bridge

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from orchestrator.client.core import Connection

T = TypeVar("T")

MAX_NAME_CHARS: Final = 200
MAX_SECONDS: Final = 366 * 24 * 3600.0
_NAME: Final = "a text of 1 to {} characters without lone surrogates"
PRIORITIES: Final = {"high": PRIORITY_HIGH, "normal": PRIORITY_NORMAL, "low": PRIORITY_LOW}


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request is served: fields of a Request, each with the default of the wire.

    generation: of the session that is meant, 0 = whichever has the name now. worker: the one that is to run it; only
    the services process may say so.
    """

    priority: int = PRIORITY_NORMAL
    flags: int = 0
    idempotency_key: str = ""
    session: str = ""
    generation: int = 0
    worker: str = ""


ORDINARY: Final = Terms()


class Serving(Protocol):
    """The tools of this process for the time of one request."""

    def call(self, message: ToolCall) -> object:
        """Take a call; it is answered with `Connection.reply_tool`. Under the connection's lock: it must be quick."""

    def end(self, future: Future) -> object:
        """The request is settled: nobody waits for answers any more."""


class Tools(Protocol):
    """Tools of this process that a request may use."""

    def serve(self, connection: Connection, loop: AbstractEventLoop | None = None) -> Serving:
        """Begin to serve one request. loop: where asynchronous tools run; None = a loop of its own."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One remote call, described: what both clients do the same. `read` makes the public value of the plain one.

    events: the caller reads events. tools: of this process, that the request may use.
    """

    operation: str
    args: Any = None
    pool: str | None = None
    deadline_s: float | None = None
    lm: str | None = None
    read: Callable[[Any], T] | None = None
    events: bool = False
    terms: Terms = ORDINARY
    tools: Tools | None = None

    def value(self, future: Future) -> T:
        """Return the value of its settled future. Raises its error."""
        result = future.result()
        return result if self.read is None else self.read(result)


def request_fields(
    operation: str, pool: str | None, deadline_s: float | None, lm: str | None, flags: int = 0
) -> dict[str, Any]:
    """Return the fields of a Request. Raises InvalidRequest that names the argument at fault."""
    check_request(operation, pool, deadline_s, lm)
    fields: dict[str, Any] = {"operation": operation}
    if pool is not None:
        fields["pool"] = pool
    if lm is not None:
        fields["lm"] = lm
    if flags:
        fields["flags"] = flags
    return fields


def check_request(operation: str, pool: str | None, deadline_s: float | None, lm: str | None) -> None:
    """Raise InvalidRequest that names the argument at fault, if one is."""
    is_short = type(operation) is str and 0 < len(operation) <= MAX_NAME_CHARS
    if not is_short or not (operation.isascii() or is_text(operation)):
        raise _invalid("operation", _NAME.format(MAX_NAME_CHARS), operation)
    if deadline_s is not None:
        check_seconds(deadline_s)
    if pool is not None:
        check_name("pool", pool)
    if lm is not None:
        check_name("lm", lm)


def request_terms(
    priority: str, idempotent: bool = False, idempotency_key: str | None = None, session: str | None = None,
    generation: int = 0,
) -> Terms:  # fmt: skip
    """Return the terms that were asked for; a key makes a request idempotent.

    Raises InvalidRequest that names the argument at fault.
    """
    if priority == "normal" and idempotent is False and idempotency_key is None and session is None:
        return ORDINARY
    one_of("priority", priority, tuple(PRIORITIES))
    if not isinstance(idempotent, bool):
        raise _invalid("idempotent", "True or False", idempotent)
    if idempotency_key is not None:
        check_name("idempotency_key", idempotency_key, MAX_KEY_CHARS)
    if session is not None:
        check_session(session)
        if idempotency_key is not None:
            text = "a call in a session takes no idempotency_key: each one is a turn of its own"
            raise InvalidRequest(text, path="idempotency_key")
    again = idempotent or idempotency_key is not None
    flags = FLAG_IDEMPOTENT if again else 0
    return Terms(PRIORITIES[priority], flags, idempotency_key or "", session or "", generation)


def check_session(name: Any) -> str:
    """Return the name of a session as given, if it can be one. Raises InvalidRequest."""
    session = check_name("session", name)
    if "\0" in session:
        raise _invalid("session", f"{_NAME.format(MAX_NAME_CHARS)} and NUL", name)
    return session


def check_name(path: str, name: Any, most: int = MAX_NAME_CHARS) -> str:
    """Return the name of a pool, a language model … as given, if it can be one. Raises InvalidRequest."""
    if not isinstance(name, str) or not 0 < len(name) <= most or not is_text(name):
        raise _invalid(path, _NAME.format(most), name)
    return name


def check_seconds(seconds: Any, path: str = "deadline_s") -> None:
    """Raise InvalidRequest unless it is a deadline, or a time like one."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    # A whole number can be beyond what a float, and so a deadline, can hold.
    if not number or not 0 < seconds <= MAX_SECONDS:
        raise _invalid(path, "a number of seconds above 0, at most a year", seconds)


def check_count(path: str, value: Any, most: int | None = None) -> int:
    """Return a whole number above 0, at most `most`. Raises InvalidRequest."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most is not None and value > most):
        raise _invalid(path, "a whole number above 0" if most is None else f"a whole number from 1 to {most}", value)
    return value


def encode_args(args: Any, nesting: int, max_bytes: int) -> bytes:
    """Return encoded arguments. Raises InvalidRequest with the path of what cannot travel, or TooLarge."""
    try:
        return values.encode_value(args, nesting=nesting, max_bytes=max_bytes)
    except BridgeError as exc:
        raise from_bridge(exc) from None


def encode_payload(args: Any, nesting: int, max_bytes: int) -> Payload:
    """Return encoded arguments like `encode_args`, large arrays in parts of their own that nobody has copied."""
    try:
        parts = values.encode_parts(args, nesting=nesting, max_bytes=max_bytes)
    except BridgeError as exc:
        raise from_bridge(exc) from None
    return parts if len(parts) > 1 else bytes(parts[0])


def encode_rows(rows: list[Any], nesting: int, max_bytes: int) -> bytes | None:
    """Return rows encoded and joined; None if one of them cannot travel or they take more than `max_bytes`."""
    try:
        data = values.encode_values(rows, nesting=nesting)
    except BridgeError:
        return None
    return data if len(data) <= max_bytes else None


def _invalid(path: str, wanted: str, got: Any) -> DspoolError:
    return InvalidRequest(f"{path} must be {wanted}, got {shown(got)}", path=path)


def mapping(path: str, value: Any) -> Mapping[str, Any]:
    """Return a mapping. Raises InvalidRequest."""
    if not isinstance(value, Mapping):
        raise _invalid(path, "a mapping", value)
    return value


def one_of(path: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return one of the choices. Raises InvalidRequest."""
    if not isinstance(value, str) or value not in choices:
        raise _invalid(path, " or ".join(map(repr, choices)), value)
    return str(value)
