"""What is wrong with a value that was refused: a second, slow look that tells every problem with its path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from signatures.converters import containers
from signatures.converters.build import taker
from signatures.converters.levels import Refused, Take
from signatures.converters.shown import got, shown, type_name
from signatures.converters.words import expects
from signatures.errors import Problem
from signatures.names import close_name
from signatures.types import (
    MISSING,
    NONE,
    STR,
    Annotated,
    Constrained,
    Constraints,
    Custom,
    Generic,
    Record,
    Scalar,
    Type,
    Union,
)

MAX_TOLD: Final = 100
# To look for close names is slow.
_MAX_CLOSE: Final = 8
_MAX_DEPTH: Final = 64


class Full(Exception):
    """Enough problems were found."""


class Found:
    """The problems so far. `add` raises Full once there are enough."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.close = 0
        self.depth = 0

    def add(self, path: str, says: str) -> None:
        """Add a problem: says follows the name of the value."""
        if len(self.problems) == MAX_TOLD:
            self.problems.append(Problem(f"and more: these are the first {MAX_TOLD}"))
            raise Full
        self.problems.append(Problem(f"{path or 'the value'} {says}", path))

    def unknown(self, path: str, name: str, known: Iterable[str]) -> None:
        """Add that a name is not known, and the one that was probably meant."""
        self.close += 1
        names = list(known)
        close = close_name(name, names) if self.close <= _MAX_CLOSE else None
        if close is not None:
            return self.add(path, f"is unknown; did you mean '{close}'?")
        if not names:
            return self.add(path, "is unknown; there are no names here, leave it out")
        more = ", …" if len(names) > _MAX_CLOSE else ""
        return self.add(path, f"is unknown; known are {', '.join(names[:_MAX_CLOSE])}{more}")


def problems_of(type: Type, constraints: Constraints, value: Any, path: str, raised: Exception | None) -> list[Problem]:
    """Return what is wrong with a value that a converter refused, or that raised something; at least one problem."""
    found = Found()
    collect(found, lambda: check(type, constraints, value, path, found), path, raised)
    return found.problems


def collect(found: Found, look: Callable[[], None], path: str, raised: Exception | None) -> None:
    """Run a look that adds to the problems, and see to it that there is at least one."""
    try:
        look()
    except Full:
        return
    except Exception as exc:  # noqa: BLE001 - as in `convert`: the code of a given value can raise anything
        raised = exc
    if not found.problems:
        found.add(path, "cannot be read" if raised is None else f"cannot be read: it raised {type_name(raised)}")


def refuses(take: Take, value: Any) -> bool:
    """Tell whether a converter does not take a value."""
    try:
        take(value)
    except Refused:
        return True
    except Exception:  # noqa: BLE001 - as above
        return True
    return False


def check(type: Type, constraints: Constraints, value: Any, path: str, found: Found) -> None:
    """Add every problem of a value, if it has any."""
    if refuses(taker(type, constraints), value):
        explain(type, constraints, value, path, found)


def explain(type: Type, constraints: Constraints, value: Any, path: str, found: Found) -> None:
    """Add every problem of a value that is refused."""
    match type:
        case Annotated():
            return explain(type.base, constraints, value, path, found)
        case Constrained():
            return explain(type.base, type.constraints, value, path, found)
        case Union() if (member := _only_fit(type, value)) is not None:
            return explain(member, NONE, value, path, found)
        case Generic() if _fits(type, value):
            return _container(type, constraints, value, path, found)
        case Record() if _fits(type, value):
            from signatures.converters.members import members_of

            return members(members_of(type.members), value, path, found)
        case Custom():
            from signatures.converters.explain_classes import explain_class

            return explain_class(type, value, path, found)
        case Scalar():
            return _scalar(type, constraints, value, path, found)
    return found.add(path, _must_be(type, constraints, value))


def _must_be(type: Type, constraints: Constraints, value: Any) -> str:
    return f"must be {expects(type, constraints)}, got {got(value)}"


def _scalar(type: Scalar, constraints: Constraints, value: Any, path: str, found: Found) -> None:
    try:
        taker(type, constraints)(value)
    except TimeoutError:
        # Other texts would take as long again: the search ends here.
        found.add(path, f"takes too long to match against {shown(constraints.pattern)}; shorten it")
        raise Full from None
    except Refused:
        pass
    lengths = Constraints(min_length=constraints.min_length, max_length=constraints.max_length)
    if lengths and not refuses(taker(type), value) and refuses(taker(type, lengths), value):
        length = counted(len(taker(type)(value)), "character" if type == STR else "byte")
        return found.add(path, f"must be {expects(type, constraints)}, got {length}")
    return found.add(path, _must_be(type, constraints, value))


def counted(number: int, unit: str) -> str:
    """Return "1 item" or "2 items"."""
    return f"{number} {unit}{'' if number == 1 else 's'}"


# --- containers ---------------------------------------------------------------------------------


def _fits(type: Type, value: Any) -> bool:
    """Tell whether a value is of the right kind, so that what is wrong is inside it."""
    match type:
        case Annotated() | Constrained():
            return _fits(type.base, value)
        case Generic(name="dict" | "Mapping") | Record():
            return isinstance(value, Mapping)
        case Generic(name="set" | "frozenset"):
            return isinstance(value, list | tuple | set | frozenset)
        case Generic():
            return isinstance(value, list | tuple)
        case Custom():
            from signatures.converters.classes import is_made_of

            return is_made_of(type.python, value)
    return False


def _only_fit(type: Union, value: Any) -> Type | None:
    fitting = [member for member in type.members if _fits(member, value)]
    return fitting[0] if len(fitting) == 1 else None


def _container(type: Generic, constraints: Constraints, value: Any, path: str, found: Found) -> None:
    before = len(found.problems)
    size = len(value)
    if type.name in ("dict", "Mapping"):
        size = _entries(type, value, path, found)
    elif type.name in ("set", "frozenset"):
        _set_items(type, value, path, found)
    elif type.arguments and (type.name != "tuple" or type.variadic or len(value) == len(type.arguments)):
        _items(type, containers.listed(value), path, found)
    if len(found.problems) == before:
        found.add(path, f"must be {expects(type, constraints)}, got {counted(size, 'item')}")


def _items(type: Generic, items: Iterable[Any], path: str, found: Found) -> None:
    fixed = type.name == "tuple" and not type.variadic
    for index, one in enumerate(items):
        item = type.arguments[index if fixed else 0]
        check(item, NONE, one, f"{path}[{index}]", found)


def _set_items(type: Generic, value: Any, path: str, found: Found) -> None:
    item = type.arguments[0] if type.arguments else None
    ordered = isinstance(value, list | tuple)
    for index, one in enumerate(value if not ordered else containers.listed(value)):
        # Items of a set have no place; they are told apart by their text.
        place = f"{path}[{index}]" if ordered else f"{path}[{_key(one)}]"
        before = len(found.problems)
        if item is not None:
            check(item, NONE, one, place, found)
        if before == len(found.problems) and refuses(hash, one if item is None else taker(item)(one)):
            found.add(place, f"must be something that a set can hold, got {got(one)}")


def _entries(type: Generic, value: Any, path: str, found: Found) -> int:
    given = containers.mapped(value)
    if not type.arguments:
        return len(given)
    key, item = type.arguments
    names: dict[Any, Any] = {}
    for name, one in given.items():
        place = f"{path}[{_key(name)}]"
        if refuses(taker(key), name):
            found.add(place, f"has a key that must be {expects(key)}, got {got(name)}")
        elif refuses(hash, taken := taker(key)(name)):
            found.add(place, f"has a key that a mapping cannot hold, got {got(name)}")
        elif taken in names:
            found.add(place, f"has the same key as {path}[{_key(names[taken])}]; leave one out")
        else:
            names[taken] = name
        check(item, NONE, one, place, found)
    return len(given)


def _key(name: Any) -> str:
    return shown(name) or type_name(name)


# --- named members ------------------------------------------------------------------------------


def members(known: Iterable[Any], value: Any, path: str, found: Found) -> None:
    """Add the problems of a mapping with named members (`members.Member`): missing, unknown and wrong ones."""
    if found.depth > _MAX_DEPTH:
        return found.add(path, f"is nested deeper than {_MAX_DEPTH} levels")
    given = containers.mapped(value)
    by_name = {member.name: member for member in known}
    found.depth += 1
    for name, member in by_name.items():
        one = given.get(name, MISSING)
        place = joined(path, name)
        if one is MISSING:
            if member.required:
                found.add(place, f"is missing; give {expects(member.type, member.constraints)}")
        else:
            check(member.type, member.constraints, one, place, found)
    for name in given:
        if not isinstance(name, str):
            found.add(path, f"has the name {_key(name)}; a name must be {expects(STR)}")
        elif name not in by_name:
            found.unknown(joined(path, str.__str__(name)), str.__str__(name), by_name)
    found.depth -= 1
    return None


def joined(path: str, name: str) -> str:
    """Return the path of a member: `docs[3].title`, or `docs[3]['odd name']` for what is no name."""
    if not name.isidentifier() or len(name) > 80:
        return f"{path}[{_key(name)}]"
    return f"{path}.{name}" if path else name
