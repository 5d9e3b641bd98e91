"""What was raised, as an error that travels."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterable
from typing import Final

from bridge.protocol.errors import INTERNAL, REMOTE_ERROR, BridgeError

_REDACTED: Final = "[redacted]"
_OURS: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
_IMPORTING: Final = ("<frozen importlib", importlib.__file__)


def remote_error(exc: BaseException) -> BridgeError:
    """Return the error that tells the caller what user code raised; a BridgeError keeps its code.

    details: `type` (`ValueError`, `mypkg.errors.Odd`) and `remote_traceback`, from the first frame of user code.
    """
    details = {"type": _type_name(exc), "remote_traceback": _traceback_text(exc)}
    if isinstance(exc, BridgeError):
        return BridgeError(exc.code, exc.message, retryable=exc.retryable, details={**details, **exc.details})
    return BridgeError(REMOTE_ERROR, _message(exc), details=details)


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
