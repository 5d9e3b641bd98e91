"""The same text, read here and by DSPy: equal, or different as docs/signatures.md says.

DSPy imports what a text names. Only texts of the corpus and of that table are given to it.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import types
import typing
import warnings
from pathlib import Path
from typing import Any, Final, NamedTuple

import dspy
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from signatures import MISSING, SignatureError, parse
from signatures.annotations import to_annotation
from signatures.model import Field
from signatures.types import Annotated, Constraints, Media, Type
from tests.corpus.classes import outermost
from tests.corpus.rows import Row, load, short, types_of

PAGE: Final = Path(__file__).parents[3] / "docs" / "signatures.md"
SIGNATURES = load("signatures")
MISTAKES = load("mistakes")


class CallersOwn(BaseModel):
    """A class that DSPy finds by looking through the caller's variables."""


# --- the table --------------------------------------------------------------------------------


class Difference(NamedTuple):
    """A row of the table. dspy, here: "accepts", "rejects", "loses", "imports" or "reads T"."""

    id: str
    example: str
    dspy: str
    here: str


def _table() -> dict[str, Difference]:
    section = PAGE.read_text(encoding="utf-8").split("\n## Differences from DSPy\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `([a-z-]+)` \| `(.+?)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)
    rows = [Difference(id_, example, *(one.replace("`", "").strip() for one in ours)) for id_, example, *ours in found]
    assert len(rows) == len(re.findall(r"^\| `", section, re.MULTILINE)), "a row of the table is not in its form"
    return {row.id: row for row in rows}


TABLE: Final = _table()


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.id)
def test_dspy_does_what_the_table_says(row: Difference) -> None:
    assert _dspy_verdict(row.example, row.dspy) == row.dspy


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.id)
def test_the_engine_does_what_the_table_says(row: Difference) -> None:
    modules = _forgotten_modules(row.example)
    try:
        fields = parse(row.example).spec.fields
    except SignatureError:
        assert row.here == "rejects"
    else:
        first = next(iter(fields.values()))
        assert row.here in ("accepts", f"reads {_shown(_of_type(first.type))}")
        if row.dspy == "loses":
            assert len(fields) + sum(not one.required for one in fields.values()) == _written(row.example)
    assert not modules & set(sys.modules)


def test_the_table_has_every_row_once() -> None:
    assert len(TABLE) >= 20
    assert len({row.example for row in TABLE.values()}) == len(TABLE)
    assert all(row.dspy != row.here for row in TABLE.values())


def _dspy_verdict(text: str, expected: str) -> str:
    """Return what DSPy does with a text, in the words of the table."""
    modules = _forgotten_modules(text) if expected == "imports" else set()
    try:
        # Without custom types, so that it looks for `CallersOwn` as it does for any caller.
        read = _dspy_reads(text, None)
    except Exception:  # noqa: BLE001 - pydantic, the compiler and DSPy each raise their own
        read = None
    if modules & set(sys.modules):
        return "imports"
    if read is None:
        return "rejects"
    if len(read) < _written(text):
        return "loses"
    shown = f"reads {_shown(next(iter(read.values())).annotation)}"
    return shown if expected.startswith("reads") else "accepts"


def _forgotten_modules(text: str) -> set[str]:
    """Return the modules that a text names and that can safely be imported anew; they are no longer loaded."""
    modules = {"colorsys"} & set(re.findall(r"\w+", text))
    for name in modules:
        sys.modules.pop(name, None)
    return modules


def _written(text: str) -> int:
    """Return how many fields and defaults are written in a text, counted as Python's parameters."""
    count = 0
    for side in text.split("->"):
        function = ast.parse(f"def f({side}): pass").body[0]
        assert isinstance(function, ast.FunctionDef)
        given = function.args
        names = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
        count += sum(one is not None for one in (*names, *given.defaults, *given.kw_defaults))
    return count


def _shown(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else repr(annotation)


# --- the corpus -------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What both sides must agree on about a field. shape: the type, see `_shape`."""

    name: str
    is_input: bool
    is_untyped: bool
    shape: Any
    notes: tuple[str, ...]
    constraints: dict[str, Any]
    description: str
    default: Any


@pytest.mark.parametrize("row", SIGNATURES, ids=short)
def test_a_signature_is_read_as_dspy_reads_it_or_differs_as_documented(row: Row) -> None:
    spec = parse(row["text"], types=types_of(row)).spec
    difference = TABLE[row["difference"]] if "difference" in row else None
    try:
        theirs = [_seen_there(name, info) for name, info in _dspy_reads(row["text"], _customs(row)).items()]
    except Exception:
        # pydantic, the compiler and DSPy each raise their own.
        if difference is None or difference.dspy not in ("rejects", "imports"):
            raise
        return
    ours = [_seen_here(field) for field in spec.fields.values()]
    if difference is None:
        assert ours == theirs
        return
    assert ours != theirs
    if difference.dspy == "loses":
        assert [one._replace(default=MISSING) for one in ours] == theirs
    else:
        assert difference.dspy.startswith("reads")
        assert [one._replace(shape=None) for one in ours] == [one._replace(shape=None) for one in theirs]


@pytest.mark.parametrize("row", MISTAKES, ids=short)
def test_dspy_takes_a_wrong_text_only_where_that_is_documented(row: Row) -> None:
    try:
        _dspy_reads(row["text"], _customs(row))
    except Exception:  # noqa: BLE001 - as above
        assert "difference" not in row
    else:
        assert "difference" in row, "DSPy takes it: name the documented difference"
        difference = TABLE[row["difference"]]
        assert difference.here == "rejects"
        assert difference.dspy != "rejects"


def _customs(row: Row) -> dict[str, type]:
    return outermost(row.get("custom_types", []))


def _dspy_reads(text: str, customs: dict[str, type] | None) -> dict[str, FieldInfo]:
    with warnings.catch_warnings():
        # Of names that pydantic's models have too; DSPy's fields may be called so all the same.
        warnings.simplefilter("ignore")
        fields: dict[str, FieldInfo] = dspy.Signature(text, "Instructions.", custom_types=customs).fields
    return fields


def _seen_there(name: str, info: FieldInfo) -> Seen:
    extra: Any = info.json_schema_extra
    notes, constraints = _metadata(info.metadata)
    default = MISSING if info.is_required() else info.default
    is_input = extra["__dspy_field_type"] == "input"
    is_untyped = bool(extra.get("IS_TYPE_UNDEFINED")) and is_input
    return Seen(
        name, is_input, is_untyped, _shape(info.annotation), notes, constraints, info.description or "", default
    )


def _seen_here(field: Field) -> Seen:
    inner: Type = field.type
    notes: tuple[str, ...] = ()
    if isinstance(field.type, Annotated):
        # pydantic keeps the notes of a whole field apart from its type.
        inner, notes = field.type.base, field.type.notes
    return Seen(
        field.name, field.kind == "input", not field.typed, _shape(_of_type(inner)), notes, field.constraints.items(),
        field.description, field.default,
    )  # fmt: skip


def _of_type(node: Type) -> Any:
    return to_annotation(node, media=_media, constrain=_constrain)


def _media(node: Media) -> Any:
    python = getattr(dspy, node.name)
    return python if node.argument is None else python[node.argument]


def _constrain(base: Any, constraints: Constraints) -> Any:
    return typing.Annotated[base, constraints]


def _metadata(metadata: list[Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the notes and the constraints among the metadata of an annotation."""
    notes: list[str] = []
    constraints: dict[str, Any] = {}
    for one in metadata:
        match one:
            case str():
                notes.append(one)
            case Constraints():
                constraints |= one.items()
            case FieldInfo():
                constraints |= _metadata(one.metadata)[1]
            case _ if dataclasses.is_dataclass(one):
                constraints |= {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
            case _:
                constraints |= vars(one)
    return tuple(notes), constraints


def _shape(annotation: Any) -> Any:
    """Return a type in a form in which typing's names and Python's own are the same.

    `typing.List[int]` is `list[int]`, a union has no order, None is its type, DSPy's code types go by their names.
    """
    if annotation is None:
        return type(None)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "Literal", tuple((type(one), one) for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return "Union", frozenset(_shape(one) for one in arguments)
    if origin is typing.Annotated:
        notes, constraints = _metadata(list(arguments[1:]))
        return "Annotated", _shape(arguments[0]), notes, frozenset(constraints.items())
    if origin is not None:
        return origin, tuple(_shape(one) for one in arguments)
    if isinstance(annotation, type) and issubclass(annotation, dspy.Code):
        return annotation.__name__
    return annotation
