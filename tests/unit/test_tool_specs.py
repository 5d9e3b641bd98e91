"""Functions described as tools: names, schemas, defaults, and what cannot be one."""

from __future__ import annotations

import enum
import functools
import json
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import dspy
import pytest
from pydantic import BaseModel, Field

from orchestrator import errors
from orchestrator.client.tools import Tool, Toolset


class Place(BaseModel):
    name: str
    floors: list[int] = []


class Tree(BaseModel):
    kids: list[Tree] = []


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


def forecast(
    city: str, place: Place, days: Annotated[int, Field(ge=1, description="how many")] = 3, unit: Unit = Unit.C,
    kind: Literal["rain", "sun"] | None = None, limit=math.inf, note: Any = None,
) -> str:  # fmt: skip
    """Tell the weather."""
    return f"{city} {place.name} {days} {unit} {kind} {limit} {note}"


class Desk:
    """A desk."""

    async def lookup(self, word: str) -> str:
        """Look a word up."""
        return word

    def __call__(self, word: str) -> str:
        """Ask the desk."""
        return word


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    function.__name__ = name
    return function


def only(tool: Any) -> Tool:
    (found,) = Toolset.of([tool]).own.values()
    return found


def test_a_function_is_told_as_dspy_tells_it_in_one_process() -> None:
    def plain(city: str, days: int = 3, ratio: float = 0.5, names: list[str] = ["a"], anything=None) -> str:  # noqa: B006
        """Tell the weather.

        Of a city.
        """
        return city

    here, there = only(plain), dspy.Tool(plain)
    assert (here.name, here.description) == (there.name, there.desc)
    assert here.parameters["properties"] == there.args
    assert list(here.parameters["properties"]) == list(there.args)
    function = there.format_as_litellm_function_call()["function"]
    assert here.parameters["required"] == function["parameters"]["required"]


def test_annotations_become_a_schema_without_references_and_defaults_plain_values() -> None:
    parameters = only(forecast).parameters
    assert parameters["required"] == ["city", "place"]
    properties = parameters["properties"]
    assert properties["days"] == {"type": "integer", "minimum": 1, "description": "how many", "default": 3}
    assert properties["place"]["properties"]["floors"]["items"] == {"type": "integer"}
    assert properties["unit"]["enum"] == ["celsius", "fahrenheit"]
    assert properties["unit"]["default"] == "celsius"
    assert (properties["kind"]["default"], properties["limit"]["default"]) == (None, "inf")
    assert "$ref" not in json.dumps(parameters)


def test_arguments_are_read_by_the_annotations() -> None:
    read = only(forecast).read({"city": "Rome", "place": {"name": "here", "floors": ["1"]}, "unit": "fahrenheit"})
    assert read == {"city": "Rome", "place": Place(name="here", floors=[1]), "unit": Unit.F}
    with pytest.raises(ValueError, match="valid integer"):
        only(forecast).read({"days": "many"})
    assert only(forecast).read({"note": {"any": "thing"}, "unknown": 1}) == {"note": {"any": "thing"}, "unknown": 1}


def test_methods_partials_objects_and_dspy_tools() -> None:
    desk = Desk()
    assert (only(desk.lookup).name, only(desk.lookup).is_async) == ("lookup", True)
    assert list(only(desk.lookup).parameters["properties"]) == ["word"]
    desk.__name__ = "desk"  # type: ignore[attr-defined]
    assert (only(desk).description, only(desk).is_async) == ("Ask the desk.", False)
    rome = only(named(functools.partial(forecast, city="Rome"), "rome"))
    assert (rome.name, rome.description) == ("rome", "Tell the weather.")
    assert rome.parameters["properties"]["city"]["default"] == "Rome"
    given = only(dspy.Tool(desk.lookup, name="find", desc="Find it.", arg_desc={"word": "what to find"}))
    assert (given.name, given.description, given.is_async) == ("find", "Find it.", True)
    assert given.parameters["properties"]["word"]["description"] == "what to find"
    assert given.read({"word": "x"}) == {"word": "x"}

    def open_ended(first: int, **rest: Any) -> None: ...

    assert only(open_ended).parameters["additionalProperties"] is True
    assert list(only(open_ended).parameters["properties"]) == ["first"]


def test_texts_are_told_as_they_are_and_files_by_their_absolute_path() -> None:
    specs = Toolset.of(["pkg.mod:fn", "mcp:files", "mcp:files/read", "here.py:fn", forecast]).specs
    assert specs[:3] == ("pkg.mod:fn", "mcp:files", "mcp:files/read")
    assert isinstance(specs[3], str)
    assert specs[3].startswith("/")
    assert specs[3].endswith("/here.py:fn")
    assert specs[4] == only(forecast).spec


def takes_itself(tree: Tree) -> None: ...
def by_position(a: int, /) -> None: ...
def any_number(*words: str) -> None: ...
def of_an_object(desk: Desk) -> None: ...
def unreadable(desk: NoSuchName) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (lambda city: city, "is a lambda"),
        (17, "must be a function, an import path"),
        (Desk, "must be a function"),
        ("weather", "must be a function"),
        (functools.partial(forecast, "Rome"), "has no name"),
        (named(functools.partial(forecast), "not a name"), "no name of a tool"),
        (takes_itself, "takes tree, a type that holds itself"),
        (by_position, "by_position takes a by position"),
        (any_number, r"any_number takes \*words by position"),
        (of_an_object, "of_an_object takes desk, which is"),
        (unreadable, "annotations of unreadable cannot be read: NameError"),
        (named(functools.partial(forecast), "forecast"), "a tool named 'forecast' exists already"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_tool_is_refused_by_its_place(tool: Any, said: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=said) as caught:
        Toolset.of([forecast, tool])
    assert caught.value.path == "tools[1]"


@pytest.mark.parametrize("tools", ["pkg.mod:fn", {"a": forecast}, forecast, 3])
def test_tools_are_a_list(tools: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match="must be a list") as caught:
        Toolset.of(tools)
    assert caught.value.path == "tools"
