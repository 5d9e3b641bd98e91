"""Signatures of every kind, generated: `specs()` draws one, `CUSTOMS` are the classes that they name."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from hypothesis import strategies as st

from signatures.model import Field, Kind, Spec
from signatures.names import MEDIA, name_problem
from signatures.types import (
    ANY,
    MISSING,
    NONE,
    NOTHING,
    STR,
    Annotated,
    Constraints,
    Custom,
    Generic,
    Literal,
    Media,
    Record,
    Scalar,
    Type,
    constrained,
    measure,
    union,
)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    y: int = 0


class Plain:
    pass


CUSTOMS: Final[dict[str, type]] = {"Colour": Colour, "Point": Point, "pkg.Plain": Plain, "größe": Plain}

PLAIN_SCALARS: Final = ("str", "int", "float", "bool", "bytes", "bytearray", "complex")
LONG_SCALARS: Final = (
    "datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "decimal.Decimal", "uuid.UUID",
)  # fmt: skip
PATTERNS: Final = ("^[A-Z]+$", r"\d{3}", "it's", '"', "a|b", "ü")

# Everything, also halves of surrogate pairs and what does not print.
_any_text = st.text(st.characters(exclude_categories=()), max_size=12)
_nasty = st.sampled_from(
    [
        "math problem", "Given a, b", "user's question", "a", "a: b", "a -> b", "# no", "a #", "x\\", "\\", "'", '"',
        "'\"", "'\'\'", "a\nb", "a\r\nb", " a", "a ", "->", ":", "=", ", a", "a 'b'", "\u2028", "\ufeff", "\ud800",
        "🙂", "e\u0301", "Answer: yes", "1. Read; 2. write", "[x]", "{y} z", "a \\", "\x00", "a b # c", "int", "ﬁ",
        "\x85", "(see) it", "'a' b",
    ]
)  # fmt: skip
texts = st.one_of(_nasty, _any_text)
words = st.one_of(
    st.sampled_from(
        ["a", "b", "question", "answer", "größe", "名前", "str", "int", "list", "match", "हिन्दी", "x1", "b_"]
    ),
    st.from_regex(r"\A[^\W\d_]\w{0,6}\Z").map(lambda name: unicodedata.normalize("NFKC", name)),
).filter(lambda name: name_problem(name, "input") is None and not keyword.iskeyword(name))

_integers = st.integers(-(10**20), 10**20) | st.integers(-5, 5)
_floats = st.floats(allow_nan=False)
literal_values = st.one_of(texts, _integers, _floats, st.booleans(), st.none(), st.binary(max_size=4))
values = st.recursive(
    literal_values,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(texts, _integers), inner, max_size=3),
        st.sets(st.one_of(texts, _integers), max_size=3),
    ),
    max_leaves=6,
)


def _distinct(chosen: list[Any]) -> tuple[Any, ...]:
    return tuple({(type(one), one): one for one in chosen}.values())


_leaves = st.one_of(
    st.just(STR),
    st.just(ANY),
    st.sampled_from([*PLAIN_SCALARS, *LONG_SCALARS]).map(Scalar),
    st.sampled_from(["list", "dict", "tuple", "set", "frozenset", "Sequence", "Mapping"]).map(Generic),
    st.lists(literal_values, min_size=1, max_size=4).map(lambda chosen: Literal(_distinct(chosen))),
    st.sampled_from(sorted(MEDIA)).map(Media),
    texts.map(lambda language: Media("Code", language)),
    st.sampled_from(sorted(CUSTOMS)).map(lambda name: Custom(name, CUSTOMS[name])),
)


@st.composite
def constraints(draw: st.DrawFn) -> Callable[[Type], Constraints]:
    """Draw what gives a type constraints that it can have, often none."""
    low, high = sorted((draw(_integers | _floats), draw(_integers | _floats)))
    short, long = sorted((draw(st.integers(0, 9)), draw(st.integers(0, 10**9))))
    ends = draw(st.sets(st.sampled_from(["low", "high", "open", "more"])))
    pattern, format_ = draw(st.none() | st.sampled_from(PATTERNS)), draw(st.none() | st.sampled_from(["email", "url"]))

    def wanted(base: Type) -> Constraints:
        given: dict[str, Any] = {}
        kind = measure(base)
        if kind == "value":
            given = {"gt" if "open" in ends else "ge": low, "lt" if "open" in ends else "le": high}
            given = {name: end for name, end in given.items() if ("low" if name[0] == "g" else "high") in ends}
            if "more" in ends:
                given |= {"multiple_of": 5, "finite": base == Scalar("float")}
        elif kind == "length":
            given = {"min_length": short} if "low" in ends else {}
            given |= {"max_length": long} if "high" in ends else {}
            if base == STR and "more" in ends:
                given |= {"pattern": pattern, "format": format_}
        made = Constraints(**given)
        return NONE if made.problem(base) else made

    return wanted


@st.composite
def fields(draw: st.DrawFn, kind: Kind, depth: int = 3) -> Field:
    """Draw a field of one kind, as reading would give it."""
    type_ = draw(types(depth))
    if type_ == NOTHING and kind != "member":
        type_ = ANY
    limits = draw(constraints())(type_)
    field = Field.of(
        draw(words),
        kind,
        type_,
        description=draw(st.just("") | texts),
        constraints=limits,
        typed=type_ != STR or bool(limits) or draw(st.booleans()),
    )
    with_default = field.replace(default=draw(st.just(MISSING) | values), typed=field.typed)
    return field if with_default.default_problem() else with_default.settled()


@st.composite
def types(draw: st.DrawFn, depth: int = 3) -> Type:
    """Draw a type. depth: how many levels it may have."""
    if depth < 2 or draw(st.booleans()):
        leaf: Type = draw(_leaves)
        return leaf

    def part() -> Type:
        inner: Type = draw(types(depth - 1))
        limits = draw(constraints())(inner)
        return (inner, inner, NOTHING, constrained(inner, limits))[draw(st.integers(0, 3))]

    match draw(st.sampled_from(["one", "pair", "tuple", "variadic", "union", "annotated", "record"])):
        case "one":
            name = draw(st.sampled_from(["list", "set", "frozenset", "tuple", "Sequence", "Iterable", "Collection"]))
            return Generic(name, (part(),))
        case "pair":
            return Generic(draw(st.sampled_from(["dict", "Mapping"])), (part(), part()))
        case "tuple":
            return Generic("tuple", tuple(part() for _ in range(draw(st.integers(1, 3)))))
        case "variadic":
            return Generic("tuple", (part(),), variadic=True)
        case "union":
            return union(*(part() for _ in range(draw(st.integers(2, 3)))))
        case "annotated":
            base = part()
            notes = tuple(draw(st.lists(texts, min_size=1, max_size=2)))
            return base if isinstance(base, Annotated) else Annotated(base, notes)
    members = draw(st.lists(fields("member", depth - 1), min_size=1, max_size=3, unique_by=lambda field: field.name))
    return Record(tuple(members))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Draw a signature."""
    inputs = draw(st.lists(fields("input"), max_size=3))
    outputs = draw(st.lists(fields("output"), min_size=1, max_size=3))
    known: dict[str, Field] = {}
    for field in (*outputs, *inputs):
        known.setdefault(field.name, field)
    inputs, outputs = ([one for one in known.values() if one.kind == kind] for kind in ("input", "output"))
    return Spec(inputs, outputs, draw(st.just("") | texts))
