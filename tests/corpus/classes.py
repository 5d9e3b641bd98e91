"""The classes that rows of the corpus name as their own types."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, create_model
from typing_extensions import TypedDict

# Rows that were classes elsewhere need only the names: one text each is enough.
_MODELS: Final = (
    "Action", "Address", "Answer", "AnswerCard", "BamlNested", "CalendarEvent", "CircularModel", "Citations",
    "ComplexNestedModel", "ComplexResponse", "Contact", "CustomType", "DataFrame", "Details", "Document",
    "DocumentWrapper", "Envelope", "EvalResult", "Event", "EventIdentifier", "ExampleSerializable",
    "ExtractEntityFromDescriptionOutput", "ExtractedEntity", "First", "FirstDict", "GlobalCustomType", "ImageModel",
    "ImageWrapper", "InnerModel", "InnerType", "InnerTypeAlias", "JsonNestedSummary", "JudgeResponse", "LocalType",
    "ModelWithAliasNoDescription", "ModelWithAliases", "ModelWithLists", "MyType", "NestedResponse", "NestedType",
    "Node", "NumberList", "OffStackItem", "Order", "OutputField3", "PatientDetails", "Person", "PetOwner",
    "ProblematicModel", "Profile", "QueryResult", "ScienceNews", "Score", "Second", "SecondDict", "SimpleModel",
    "SimpleResponse", "StringFirstEnvelope", "Summary", "SystemConfig", "TestInput", "TextValue", "TimedEvent",
    "ToolCall", "User", "UserProfile", "WebsiteInfo", "XmlSummary",
)  # fmt: skip


class Item(BaseModel):
    name: str
    quantity: int = 1


class Season(Enum):
    SPRING = "spring"
    WINTER = "winter"


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class EmailType(Enum):
    MEETING = "meeting"
    OTHER = "other"


class UrgencyLevel(Enum):
    LOW = "low"
    HIGH = "high"


class Status(Enum):
    OPEN = "open"
    CLOSED = "closed"


class TicketStatus(Enum):
    NEW = 1
    DONE = 2


class Label(Enum):
    GOOD = "good"
    BAD = "bad"


@dataclass
class Point:
    x: int
    y: int = 0


class Flags(TypedDict):
    urgent: bool
    reason: str


class MyContainer:
    class Query(BaseModel):
        text: str

    class Score(BaseModel):
        score: float


class OuterContainer:
    class InnerType(BaseModel):
        name: str


_NAMED: Final[dict[str, Any]] = {
    **{name: create_model(name, text=(str, ...)) for name in _MODELS},
    **{
        python.__name__: python
        for python in (
            Item, Season, Color, EmailType, UrgencyLevel, Status, TicketStatus, Label, Point, Flags, Path,
            MyContainer, OuterContainer,
        )
    },
    "Container2": MyContainer,
}  # fmt: skip


def named(names: list[str]) -> dict[str, type]:
    """Return the classes of these names, dotted ones too, as `parse(types=…)` takes them."""
    return {name: _named(name) for name in names}


def outermost(names: list[str]) -> dict[str, type]:
    """Return them as DSPy takes them: by the first part of a dotted name."""
    return {name.partition(".")[0]: _NAMED[name.partition(".")[0]] for name in names}


def _named(name: str) -> type:
    first, _, rest = name.partition(".")
    found: type = operator.attrgetter(rest)(_NAMED[first]) if rest else _NAMED[first]
    return found
