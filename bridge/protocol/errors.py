"""Errors as they travel: a code that decides, a message that explains, details that help.

Below the client nobody needs the public exception tree of `orchestrator.errors`: a `BridgeError` carries the
code, and `encode_error` / `decode_error` move it. Codes are stable and public.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgpack
import msgspec

INTERNAL: Final = "INTERNAL"
REMOTE_ERROR: Final = "REMOTE_ERROR"
WORKER_LOST: Final = "WORKER_LOST"
DEADLINE_EXCEEDED: Final = "DEADLINE_EXCEEDED"
CANCELLED: Final = "CANCELLED"
OVERLOADED: Final = "OVERLOADED"
CIRCUIT_OPEN: Final = "CIRCUIT_OPEN"
POISON_REQUEST: Final = "POISON_REQUEST"
SLOW_CONSUMER: Final = "SLOW_CONSUMER"
INVALID_REQUEST: Final = "INVALID_REQUEST"
SIGNATURE_ERROR: Final = "SIGNATURE_ERROR"
TOO_LARGE: Final = "TOO_LARGE"
NOT_FOUND: Final = "NOT_FOUND"
UNAVAILABLE: Final = "UNAVAILABLE"
UNAUTHENTICATED: Final = "UNAUTHENTICATED"
VERSION_MISMATCH: Final = "VERSION_MISMATCH"
LM_ERROR: Final = "LM_ERROR"
SANDBOX_MISSING: Final = "SANDBOX_MISSING"
STORAGE: Final = "STORAGE"
SESSION_LOST: Final = "SESSION_LOST"
WORKER_BUSY: Final = "WORKER_BUSY"

# A traceback or message beyond this is cut in the middle: an error must always be able to travel.
MAX_TEXT_CHARS: Final = 20_000
_MAX_DEPTH: Final = 6
_MAX_ITEMS: Final = 1_000
# What this project encodes is smaller: a code is not looked for in more.
_MAX_CODED_BYTES: Final = 64 * 1024
_ITEMS: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])


class BridgeError(Exception):
    """An error with a code, as it travels.

    details are plain msgpack values; keys with a meaning for the client: `path` (INVALID_REQUEST),
    `suggestions` (NOT_FOUND), `retry_after_s` (OVERLOADED, CIRCUIT_OPEN), `stage` (DEADLINE_EXCEEDED), `type` and
    `remote_traceback` (REMOTE_ERROR, BootFailed), `cause signal executed worker` (WORKER_LOST),
    `provider status` (LM_ERROR), `sandbox module` (SANDBOX_MISSING), `file reason` (STORAGE),
    `reason session` (SESSION_LOST), `worker session` (WORKER_BUSY).
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.details: dict[str, Any] = dict(details or {})


def encode_error(error: BridgeError) -> bytes:
    """Return the payload of a Reply with status ERROR, a Refused, an Invalid or a BootFailed."""
    fields = [error.code, cut(error.message), error.retryable, _plain(error.details)]
    return msgpack.packb(fields, unicode_errors="surrogatepass")  # type: ignore[no-any-return]


def decode_error(payload: bytes) -> BridgeError:
    """Read an encoded error; anything unreadable becomes an INTERNAL error that says so."""
    try:
        code, message, retryable, details = msgpack.unpackb(payload, unicode_errors="surrogatepass")[:4]
        return BridgeError(str(code), str(message), retryable=bool(retryable), details=dict(details))
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as exc:
        return BridgeError(INTERNAL, f"an error came that could not be read ({exc}): {payload[:80]!r}")


def error_code(payload: bytes) -> str:
    """Return the code of an encoded error and read nothing else of it; of more than 64 KiB it is REMOTE_ERROR."""
    if len(payload) > _MAX_CODED_BYTES:
        return REMOTE_ERROR
    try:
        return msgspec.msgpack.decode(_ITEMS.decode(payload)[0], type=str)
    except (msgspec.DecodeError, LookupError, RecursionError):
        return INTERNAL


def not_found(what: str, name: str, known: Iterable[str], *, advice: str = "") -> BridgeError:
    """Return a NOT_FOUND that names close matches."""
    names = sorted(known)
    suggestions = closest(name, names)
    hint = f"; did you mean {' or '.join(map(repr, suggestions))}?" if suggestions else ""
    listing = f" (known: {', '.join(names[:20])})" if names and not suggestions else ""
    text = f"unknown {what} {name[:200]!r}{hint}{listing}"
    return BridgeError(NOT_FOUND, f"{text} {advice}".rstrip(), details={"suggestions": suggestions})


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that look like `name`."""
    return difflib.get_close_matches(name[:200], list(known), n=3, cutoff=0.6)


def shown(value: Any, chars: int = 100) -> str:
    """Return the start of a value's repr, for a message; a value whose repr fails is named by its type."""
    try:
        text = repr(value[:chars] if isinstance(value, str | bytes | list | tuple) else value)
    except Exception:  # noqa: BLE001 - a stranger's __repr__; a whole number of more than 4,300 digits has none
        return f"<{type(value).__name__}>"
    return text if len(text) <= chars else f"{text[:chars]}…"


def cut(text: str) -> str:
    """Return text with its middle left out if it is very long."""
    if len(text) <= MAX_TEXT_CHARS:
        return text
    half = MAX_TEXT_CHARS // 2
    return f"{text[:half]}\n… {len(text) - MAX_TEXT_CHARS} characters left out …\n{text[-half:]}"


def _plain(value: Any, depth: int = 0) -> Any:
    """Return `value` as plain msgpack data: what is not, or is nested too deeply, becomes its (cut) text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else _text(value)
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        return {_text(key): _plain(item, depth + 1) for key, item in itertools.islice(value.items(), _MAX_ITEMS)}
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        return [_plain(item, depth + 1) for item in value[:_MAX_ITEMS]]
    return cut(_text(value))


def _text(value: Any) -> str:
    """Return str(value); an object whose __str__ fails must not hide the error it came with."""
    try:
        return str(value)
    except Exception as exc:  # noqa: BLE001 - a stranger's __str__ can raise anything
        return f"<{type(value).__name__} whose text failed: {type(exc).__name__}>"
