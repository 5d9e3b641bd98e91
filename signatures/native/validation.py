"""The operation `validate`: values against a signature's text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from signatures.errors import Problem, ValidationError
from signatures.names import close_name

if TYPE_CHECKING:
    from signatures.model import Spec

_KEPT: Final = 256
# Longer texts are read each time: what is kept is bounded in memory too.
_KEPT_CHARS: Final = 4_096
# Of arguments that there are not, this many are told: looking for close names is slow.
_MAX_UNKNOWN: Final = 20
_SIDES: Final = ("inputs", "outputs")
_KNOWN: Final = ("signature", *_SIDES)


def validate(args: Mapping[str, Any]) -> dict[str, Any]:
    """Operation `validate {signature, inputs}` or `validate {signature, outputs}` -> the values, converted.

    signature: its text; within one process also a Signature or a Spec. Defaults are filled in. Raises SignatureError
    for a text that is no signature, ValidationError that lists every problem of the values by its path, as
    `inputs.question`, or of the arguments.
    """
    if not isinstance(args, Mapping):
        raise _wrong("", f"validate takes a mapping of arguments, not {type(args).__name__}")
    sides = [side for side in _SIDES if side in args]
    if len(args) != 2 or len(sides) != 1 or "signature" not in args:
        raise ValidationError(_problems(args, sides))
    side, spec = sides[0], _spec(args["signature"])
    try:
        return spec.validate_inputs(args[side]) if side == "inputs" else spec.validate_outputs(args[side])
    except ValidationError as exc:
        raise ValidationError(_within(side, problem) for problem in exc.problems) from None


def _spec(signature: Any) -> Spec:
    if isinstance(signature, str):
        return _read(signature) if len(signature) <= _KEPT_CHARS else _read.__wrapped__(signature)
    from signatures.model import Spec

    found = signature if isinstance(signature, Spec) else getattr(signature, "spec", None)
    if isinstance(found, Spec):
        return found
    raise _wrong("signature", f"signature must be a text such as 'question -> answer', not {type(signature).__name__}")


@lru_cache(maxsize=_KEPT)
def _read(text: str) -> Spec:
    from signatures.text.parser import read

    return read(text)


def _within(side: str, problem: Problem) -> Problem:
    """Return a problem of a value as one of the arguments."""
    told = problem.message
    if not problem.path:
        return Problem(f"{side} {told.removeprefix('the value ')}", side)
    # A sentence that begins with its path goes on doing so.
    return Problem(f"{side}.{told}" if told.startswith(problem.path) else told, f"{side}.{problem.path}")


def _problems(args: Mapping[str, Any], sides: list[str]) -> list[Problem]:
    found = [] if "signature" in args else [Problem("validate needs signature", "signature")]
    if not sides:
        found.append(Problem("validate needs inputs, or outputs", "inputs"))
    if len(sides) > 1:
        found.append(Problem("validate takes inputs or outputs, not both; call it twice", "outputs"))
    for name in islice((name for name in args if name not in _KNOWN), _MAX_UNKNOWN):
        label = str(name)[:80]
        near = close_name(label, _KNOWN)
        hint = f"; did you mean {near}?" if near else f" (it takes {', '.join(_KNOWN)})"
        found.append(Problem(f"validate takes no {label}{hint}", label))
    return found


def _wrong(path: str, message: str) -> ValidationError:
    return ValidationError([Problem(message, path)])
