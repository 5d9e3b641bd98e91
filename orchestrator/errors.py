"""Every error a user of dspool can meet, as one tree under `DspoolError`.

The class says what kind of failure it was, `code` is its stable name, `details` holds plain data that can travel.
Attributes such as `WorkerLost.signal` are views of `details`, so an error looks the same whether it was raised here,
came over the wire, or was pickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from bridge.protocol import errors as codes
from bridge.protocol.errors import BridgeError
from signatures.errors import Problem
from signatures.errors import SignatureError as _SignatureError

CONFIG_ERROR: Final = "CONFIG_ERROR"
# What of a remote traceback is shown under the local one; the whole of it is the error's `remote_traceback`.
_TRACEBACK_LINES: Final = 30


class DspoolError(Exception):
    """The root. Raised itself only for a failure inside dspool (code INTERNAL) or a code this version does not know.

    code: the stable upper-case name. retryable: the same call may succeed later. It may also run a second time then,
    unless it was never admitted (Overloaded) or `WorkerLost.executed` says `no`.
    details: plain data. A class's own details can be given by name: `DeadlineExceeded("…", stage="queued")`.
    """

    CODE: ClassVar[str] = codes.INTERNAL
    RETRYABLE: ClassVar[bool] = False
    DETAILS: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        message: str,
        code: str | None = None,
        retryable: bool | None = None,
        details: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> None:
        if unknown := named.keys() - self.DETAILS:
            raise TypeError(f"{type(self).__name__} has no detail {', '.join(sorted(unknown))}")
        super().__init__(message)
        self.message = message
        self.code = code or self.CODE
        self.retryable = self.RETRYABLE if retryable is None else retryable
        self.details: dict[str, Any] = {**(details or {}), **named}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.code, self.retryable, self.details), self.__dict__


class RemoteError(DspoolError):
    """The program raised. `type` and `message` are its exception's, `remote_traceback` is where, in the worker."""

    CODE = codes.REMOTE_ERROR
    DETAILS = frozenset({"type", "remote_traceback"})

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        if lines := self.remote_traceback.rstrip().splitlines():
            shown = lines[-_TRACEBACK_LINES:]
            heading = "in the worker:" if len(shown) == len(lines) else f"in the worker (last {len(shown)} lines):"
            self.add_note("\n".join([heading, *shown]))

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

    @property
    def type(self) -> str:
        """Name of the exception's class."""
        return str(self.details.get("type", "Exception"))

    @property
    def remote_traceback(self) -> str:
        """The worker's traceback as text, whole."""
        return str(self.details.get("remote_traceback", ""))


class WorkerLost(DspoolError):
    """The worker died with the request in its hands."""

    CODE = codes.WORKER_LOST
    DETAILS = frozenset({"cause", "signal", "executed", "worker"})

    @property
    def cause(self) -> str:
        """How it ended, in words."""
        return str(self.details.get("cause", "unknown"))

    @property
    def signal(self) -> int | None:
        """The signal that ended it, None if none did."""
        return self.details.get("signal")

    @property
    def executed(self) -> str:
        """`no`: the program never ran; `maybe`: it had started."""
        return str(self.details.get("executed", "maybe"))

    @property
    def worker(self) -> str:
        """Id of the worker."""
        return str(self.details.get("worker", ""))


class DeadlineExceeded(DspoolError):
    """The deadline passed first."""

    CODE = codes.DEADLINE_EXCEEDED
    DETAILS = frozenset({"stage"})

    @property
    def stage(self) -> str:
        """Where it passed: `queued`, `running`, …; the empty string if unknown."""
        return str(self.details.get("stage", ""))


class Cancelled(DspoolError):
    """The request was cancelled."""

    CODE = codes.CANCELLED


class Overloaded(DspoolError):
    """The pool's queue is full; the request was not admitted."""

    CODE = codes.OVERLOADED
    RETRYABLE = True
    DETAILS = frozenset({"retry_after_s"})

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which a new try is likely to be admitted, None if unknown."""
        return self.details.get("retry_after_s")


class CircuitOpen(DspoolError):
    """Too much of the same failed just now, so the request was not admitted (see `breaker` in the configuration)."""

    CODE = codes.CIRCUIT_OPEN
    RETRYABLE = True
    DETAILS = frozenset({"retry_after_s"})

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which one is let through again to see how it goes, None if unknown."""
        return self.details.get("retry_after_s")


class PoisonRequest(DspoolError):
    """Workers died of this request: it is in quarantine and not run again (see `Client.dead_letters`)."""

    CODE = codes.POISON_REQUEST


class InvalidRequest(DspoolError):
    """What was asked for makes no sense; asking again will not help."""

    CODE = codes.INVALID_REQUEST
    DETAILS = frozenset({"path"})

    @property
    def path(self) -> str:
        """Path to the value at fault (`inputs.docs[3]`), the empty string if there is none."""
        return str(self.details.get("path", ""))


class ConfigError(InvalidRequest):
    """The configuration cannot be used. The message lists every problem."""

    CODE = CONFIG_ERROR
    DETAILS = frozenset({"path", "problems"})

    @property
    def problems(self) -> list[dict[str, str]]:
        """Each problem as `{"where": "dspool.yaml:4", "path": "pools.general.sise", "message": "…"}`."""
        return list(self.details.get("problems", ()))


class TooLarge(DspoolError):
    """A message is above a configured limit."""

    CODE = codes.TOO_LARGE


class NotFound(DspoolError):
    """No operation, pool, language model, program … of this name."""

    CODE = codes.NOT_FOUND
    DETAILS = frozenset({"suggestions"})

    @property
    def suggestions(self) -> list[str]:
        """Known names that look like it."""
        return list(self.details.get("suggestions", ()))


class Unavailable(DspoolError):
    """What the call needs is not there: no coordinator, a pool whose workers cannot boot, a directory in use."""

    CODE = codes.UNAVAILABLE


class SlowConsumer(Unavailable):
    """Who asked did not read: a stream was not taken for too long, or the whole connection's answers were not."""

    CODE = codes.SLOW_CONSUMER


class Unauthenticated(DspoolError):
    """Who connected is not who it says it is."""

    CODE = codes.UNAUTHENTICATED


class VersionMismatch(DspoolError):
    """The peer speaks another version of the protocol."""

    CODE = codes.VERSION_MISMATCH


class LMError(DspoolError):
    """The language model's provider failed."""

    CODE = codes.LM_ERROR
    DETAILS = frozenset({"provider", "status"})

    @property
    def provider(self) -> str:
        """Name of the provider."""
        return str(self.details.get("provider", ""))

    @property
    def status(self) -> int | None:
        """The HTTP status it answered with, None if it did not answer."""
        return self.details.get("status")


class SandboxMissing(DspoolError):
    """A module runs code that a language model writes, and the worker has no sandbox for it.

    The code is never run in the worker instead. The message says what to do.
    """

    CODE = codes.SANDBOX_MISSING
    DETAILS = frozenset({"sandbox", "module"})

    @property
    def sandbox(self) -> str:
        """What is missing: `deno`."""
        return str(self.details.get("sandbox", ""))

    @property
    def module(self) -> str:
        """Name of the module that needs it, as far as it is known."""
        return str(self.details.get("module", ""))


class SessionLost(DspoolError):
    """The session that was meant is not there any more: what it held is gone, and a new one is not put in its place."""

    CODE = codes.SESSION_LOST
    DETAILS = frozenset({"reason", "session"})

    @property
    def reason(self) -> str:
        """`expired`, `ended`, `worker_lost`, `restarted` (the coordinator was), or `unknown`."""
        return str(self.details.get("reason", "unknown"))

    @property
    def session(self) -> str:
        """Id of the session."""
        return str(self.details.get("session", ""))


class WorkerBusy(DspoolError):
    """The worker that a session is bound to has no free slot, or the session itself is busy (`strict_fail_fast`)."""

    CODE = codes.WORKER_BUSY
    RETRYABLE = True
    DETAILS = frozenset({"worker", "session"})

    @property
    def worker(self) -> str:
        """Id of the worker."""
        return str(self.details.get("worker", ""))

    @property
    def session(self) -> str:
        """Id of the session."""
        return str(self.details.get("session", ""))


class StorageError(DspoolError):
    """The store cannot be used, or not for this: the message names its file (or database) and what to do.

    Nothing of what was asked has been kept. Calls to pools and to programs that are deployed do not need the store.
    """

    CODE = codes.STORAGE
    DETAILS = frozenset({"file", "reason"})

    @property
    def file(self) -> str:
        """Path of the store, or the address of its database without its password."""
        return str(self.details.get("file", ""))

    @property
    def reason(self) -> str:
        """What is wrong, in one word.

        `full`, `io`, `read_only`, `corrupt`, `newer_schema`, `foreign` (no store of dspool), `locked`, `cannot_open`,
        `unreachable` (a database that does not answer), `failed` (anything else).
        """
        return str(self.details.get("reason", "failed"))


class SignatureError(DspoolError, _SignatureError):
    """A signature that is not accepted. Also a `signatures.SignatureError`: `str()` tells every problem with its caret.

    problems: every mistake, in the order of their places; `details["problems"]` holds them as mappings of message, line
    and column.
    """

    CODE = codes.SIGNATURE_ERROR
    DETAILS = frozenset({"text", "line", "column", "problems"})
    # Plain attributes, as every DspoolError has them.
    message: str = ""
    line: int = 1
    column: int = 1

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        details = self.details
        self.text = str(details.get("text", ""))
        self.line = int(details.get("line", 1))
        self.column = int(details.get("column", 1))
        told = [one for one in details.get("problems", ()) if isinstance(one, Mapping)]
        self.problems = tuple(_problem(one) for one in told) or (Problem(self.message, "", self.line, self.column),)

    @classmethod
    def of(cls, error: _SignatureError) -> SignatureError:
        """Return the engine's error as this class."""
        problems = [{"message": one.message, "line": one.line, "column": one.column} for one in error.problems]
        made = cls(error.message, text=error.text, line=error.line, column=error.column, problems=problems)
        made.file = error.file
        return made


def _problem(told: Mapping[str, Any]) -> Problem:
    message, path = str(told.get("message", "")), str(told.get("path", ""))
    return Problem(message, path, int(told.get("line", 0)), int(told.get("column", 0)))


def _family(root: type[DspoolError]) -> Iterator[type[DspoolError]]:
    yield root
    for child in root.__subclasses__():
        yield from _family(child)


_BY_CODE: Final[dict[str, type[DspoolError]]] = {cls.CODE: cls for cls in _family(DspoolError)}


def from_bridge(error: BridgeError) -> DspoolError:
    """Return the public form of an error that travelled; a code nobody knows becomes a plain `DspoolError`."""
    cls = _BY_CODE.get(error.code, DspoolError)
    return cls(error.message, error.code, error.retryable, error.details)
