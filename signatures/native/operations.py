"""The native operations by the names that clients use: each takes a mapping of arguments, checked before it runs.

The same table serves the client's process and the workers, so that both give the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from signatures.errors import Problem, ValidationError
from signatures.names import close_name
from signatures.native import metrics, validators
from signatures.native.templates import render
from signatures.native.validation import validate

Operation = Callable[[Mapping[str, Any]], Any]

_MAX_PROBLEMS: Final = 20


class Kind(NamedTuple):
    """What an argument must be, and the words for it."""

    words: str
    fits: Callable[[Any], bool]


ANY: Final = Kind("anything", lambda value: True)
TEXT: Final = Kind("a string", lambda value: isinstance(value, str))
NUMBER: Final = Kind("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool))
COUNT: Final = Kind("an integer of at least 0", lambda value: type(value) is int and value >= 0)
FLAG: Final = Kind("true or false", lambda value: isinstance(value, bool))
LIST: Final = Kind("a list", lambda value: isinstance(value, (list, tuple)))
TEXTS: Final = Kind("a list of strings", lambda value: LIST.fits(value) and all(isinstance(one, str) for one in value))
NAMED: Final = Kind(
    "a mapping of names to values",
    lambda value: isinstance(value, Mapping) and all(isinstance(one, str) for one in value),
)


@dataclass(frozen=True, slots=True)
class Native:
    """A function behind checked arguments, called by their names.

    required, optional: what it takes, and of what kind; an optional argument may be None, which leaves it out.
    Raises ValidationError that lists everything missing, unknown or of the wrong kind, or says what the function has
    refused with a plain ValueError; errors of other types, such as TemplateError, pass through.
    """

    name: str
    function: Callable[..., Any]
    required: Mapping[str, Kind]
    optional: Mapping[str, Kind] = field(default_factory=dict)

    def __call__(self, args: Mapping[str, Any]) -> Any:
        """Check the arguments and run the operation."""
        problems = list(self._problems(args))
        if problems:
            raise ValidationError(problems[:_MAX_PROBLEMS])
        given = {name: value for name, value in args.items() if name in self.required or value is not None}
        try:
            return self.function(**given)
        except ValueError as error:
            if type(error) is not ValueError:
                raise
            refused = str(error)
        raise ValidationError([Problem(f"{self.name}: {refused}")])

    def _problems(self, args: Any) -> Iterator[Problem]:
        if not isinstance(args, Mapping):
            yield Problem(f"{self.name} takes a mapping of arguments, got {_told(args)}")
            return
        known = {**self.required, **self.optional}
        for name in self.required:
            if name not in args:
                yield Problem(f"{self.name} needs '{name}': {self.required[name].words}", name)
        unknown = 0
        for name, value in args.items():
            kind = known.get(name) if isinstance(name, str) else None
            if kind is None:
                unknown += 1
                if unknown <= _MAX_PROBLEMS:
                    yield self._unknown(str(name)[:80], known)
            elif not (kind.fits(value) or (value is None and name in self.optional)):
                yield Problem(f"{name} must be {kind.words}, got {_told(value)}", name)

    def _unknown(self, name: str, known: Mapping[str, Kind]) -> Problem:
        close = close_name(name, known)
        return Problem(
            f"{self.name} takes no '{name}'; "
            + (f"did you mean '{close}'?" if close else f"it takes {', '.join(known)}"),
            name,
        )


def _metric(name: str, **options: Kind) -> Native:
    return Native(f"metrics.{name}", metrics.METRICS[name], {"prediction": ANY, "reference": ANY}, options)


def _validator(
    name: str, check: Callable[..., str | None], optional: Mapping[str, Kind] | None = None, **more: Kind
) -> Native:
    def outcome(**args: Any) -> dict[str, Any]:
        problem = check(**args)
        return {"valid": problem is None, "problem": problem}

    return Native(f"validators.{name}", outcome, {"value": ANY, **more}, optional or {})


_ENDS: Final = {"min": NUMBER, "max": NUMBER, "exclusive_min": FLAG, "exclusive_max": FLAG}

_CHECKED: Final = (
    Native("template", render, {"template": TEXT, "values": NAMED}),
    _metric("exact", frac=NUMBER),
    _metric("contains"),
    _metric("f1"),
    _metric("numeric", rel_tol=NUMBER, abs_tol=NUMBER),
    _metric("set_overlap"),
    _metric("list_overlap"),
    _metric("json_match"),
    _validator("email", validators.email),
    _validator("url", validators.url, {"schemes": TEXTS}),
    _validator("json", validators.json),
    _validator("regex", validators.regex, pattern=TEXT),
    _validator("length", validators.length, {"min": COUNT, "max": COUNT}),
    _validator("choice", validators.choice, options=LIST),
    _validator("range", validators.range, _ENDS),
)

# By wire name. An operation that checks its arguments itself has a line of its own here.
NATIVE: Final[Mapping[str, Operation]] = {
    **{operation.name: operation for operation in _CHECKED},
    "validate": validate,
}


def names() -> tuple[str, ...]:
    """Return the wire names of all native operations, in order."""
    return tuple(sorted(NATIVE))


def is_native(name: str) -> bool:
    """Return whether an operation is native. Imports nothing more."""
    return name in NATIVE


def _told(value: Any) -> str:
    is_short = len(value) < 60 if isinstance(value, str) else isinstance(value, (bool, float)) or _is_small(value)
    shown = repr(value) if is_short else ""
    return f"{type(value).__name__} ({shown})" if shown else type(value).__name__


def _is_small(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() < 128
