"""Native operations with the errors that travel: a client's process and a worker answer the same.

Nothing here needs DSPy, a worker or a connection.
"""

from __future__ import annotations

from typing import Any

from bridge.protocol.errors import INVALID_REQUEST, SIGNATURE_ERROR, BridgeError, not_found
from signatures.errors import SignatureError, ValidationError
from signatures.native import operations
from signatures.native.templates import TemplateError

# Of many problems this many are told.
_SHOWN = 20


def names() -> tuple[str, ...]:
    """Return the names of the native operations."""
    return operations.names()


def run(operation: str, args: Any) -> Any:
    """Run a native operation: `template`, `validate`, `metrics.…`, `validators.…`.

    Raises BridgeError: NOT_FOUND for another name; INVALID_REQUEST with `path` and `problems` for arguments that are
    wrong, with the path `template` for a template that is; SIGNATURE_ERROR, see `signature_error`.
    """
    function = operations.NATIVE.get(operation)
    if function is None:
        raise not_found("native operation", operation, operations.NATIVE)
    try:
        return function(args)
    except SignatureError as exc:
        raise signature_error(exc) from exc
    except ValidationError as exc:
        raise invalid(exc) from exc
    except TemplateError as exc:
        raise BridgeError(INVALID_REQUEST, str(exc), details={"path": "template"}) from exc


def invalid(error: ValidationError) -> BridgeError:
    """Return the INVALID_REQUEST for values that do not fit: `path` of the first, `problems` of all as texts."""
    told = [problem.message for problem in error.problems]
    if len(told) > _SHOWN:
        told[_SHOWN:] = [f"and {len(told) - _SHOWN} more"]
    return BridgeError(INVALID_REQUEST, "; ".join(told), details={"path": error.path, "problems": told})


def signature_error(error: SignatureError) -> BridgeError:
    """Return the SIGNATURE_ERROR for a signature that is not accepted.

    Its details: text, line and column of the first problem, `problems` as mappings {message, line, column}.
    """
    problems = [{"message": one.message, "line": one.line, "column": one.column} for one in error.problems]
    details = {"text": error.text, "line": error.line, "column": error.column, "problems": problems}
    return BridgeError(SIGNATURE_ERROR, error.message, details=details)
