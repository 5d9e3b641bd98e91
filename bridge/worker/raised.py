"""What was raised, as an error that travels."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterable
from typing import Any, Final

from bridge.protocol.errors import CANCELLED, DEADLINE_EXCEEDED, INTERNAL, REMOTE_ERROR, BridgeError

_REDACTED: Final = "[redacted]"
_OURS: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
# The public errors, which are not imported for a look at what was raised.
_PUBLIC: Final = ("orchestrator.errors", "DspoolError")
# Of a request they say that it was itself cut short.
_OWN_ENDS: Final = frozenset({CANCELLED, DEADLINE_EXCEEDED})
_IMPORTING: Final = ("<frozen importlib", importlib.__file__)


def remote_error(exc: BaseException) -> BridgeError:
    """Return the error that tells the caller what user code raised; a BridgeError keeps its code.

    details: `type` (`ValueError`, `mypkg.errors.Odd`) and `remote_traceback`, from the first frame of user code.
    """
    details = {"type": _type_name(exc), "remote_traceback": _traceback_text(exc)}
    if isinstance(exc, BridgeError):
        return BridgeError(exc.code, exc.message, retryable=exc.retryable, details={**details, **exc.details})
    return BridgeError(REMOTE_ERROR, _message(exc), details=details)


def outcome_error(exc: BaseException) -> BridgeError:
    """Return what the caller of a program is told that raised: of a request of the program's own, how that ended.

    Its code, details and whether it may be tried again stay, with the program's `remote_traceback`. Not so where it was
    cancelled or out of time, which the program's own request was not: that is a REMOTE_ERROR like any exception.
    """
    if isinstance(exc, BridgeError):
        return exc
    error: Any = exc
    if not _is_public(exc) or error.code in _OWN_ENDS:
        return remote_error(exc)
    details = {"type": _type_name(exc), **error.details, "remote_traceback": _traceback_text(exc)}
    if "executed" in details:
        details["executed"] = "maybe"  # the program that asked has run, whatever it asked for
    message, asked = str(error.message), f"in {details.get('nested')}: "
    if "nested" in details and not message.startswith(asked):  # a program that calls itself is named once
        message = asked + message
    return BridgeError(str(error.code), message, retryable=bool(error.retryable), details=details)


def redacted(error: BridgeError, secrets: Iterable[str]) -> BridgeError:
    """Return the error without the secrets, which a program can have put into an exception of its own."""
    for secret in secrets:
        error.message = error.message.replace(secret, _REDACTED)
        for key, value in error.details.items():
            if isinstance(value, str):
                error.details[key] = value.replace(secret, _REDACTED)
    return error


def internal_error(exc: BaseException) -> BridgeError:
    """Return the error for a fault of the worker itself."""
    return BridgeError(INTERNAL, f"the worker failed: {_type_name(exc)}: {_message(exc)}")


def _is_public(exc: BaseException) -> bool:
    # One that a program has derived from it may have been made without its constructor.
    if not isinstance(getattr(exc, "details", None), dict):
        return False
    return any((cls.__module__, cls.__qualname__) == _PUBLIC for cls in type(exc).__mro__)


def _type_name(exc: BaseException) -> str:
    cls = type(exc)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException as problem:  # noqa: BLE001 - a __str__ of user code
        return f"<its __str__ raised {type(problem).__name__}>"


def _traceback_text(exc: BaseException) -> str:
    try:
        trace = traceback.TracebackException(type(exc), exc, exc.__traceback__, compact=True)
        chain: list[traceback.TracebackException | None] = [trace]
        while chain:
            one = chain.pop()
            if one is not None:
                one.stack = _user_frames(one.stack)
                chain += [one.__cause__, one.__context__]
        return "".join(trace.format())
    except BaseException as problem:  # noqa: BLE001 - out of memory, or hooks of user code
        return f"<no traceback: {type(problem).__name__}>"


def _user_frames(stack: traceback.StackSummary) -> traceback.StackSummary:
    """Return the frames from the first that is neither the worker's nor the import system's.

    If there is none: nothing for an import that found no code, all for what the worker itself raised.
    """
    for index, frame in enumerate(stack):
        if not frame.filename.startswith((_OURS, *_IMPORTING)):
            return traceback.StackSummary.from_list(list(stack[index:]))
    if stack and stack[-1].filename.startswith(_IMPORTING):
        return traceback.StackSummary()
    return stack
