"""Signatures to DSPy and back: the same classes and prompts where DSPy has words, more where it has none."""

from __future__ import annotations

import enum
import inspect
import json
import typing
from typing import Annotated, Any, Literal, TypeVar

import dspy
import pydantic
import pytest
from dspy.utils.exceptions import AdapterParseError
from hypothesis import HealthCheck, given, settings

from bridge.worker.checked import is_checked
from bridge.worker.described import described
from bridge.worker.dspy_signature import from_dspy, spec_of, to_dspy
from signatures import Field, Signature, SignatureError, ValidationError
from signatures.model import Spec
from signatures.text.parser import read
from tests.corpus.classes import outermost
from tests.corpus.rows import Row, load, short, types_of
from tests.support.signatures import Plain, specs

ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()]
CORPUS = load("signatures")
# Read alike by both: DSPy makes the class of the text itself.
PLAIN = [row for row in CORPUS if "difference" not in row and "extension" not in row]


class Team(enum.Enum):
    BILLING = "billing"
    TECH = "tech"


class Ticket(pydantic.BaseModel):
    title: str
    team: Team = Team.TECH


@pytest.fixture(autouse=True)
def _unions_as_written() -> None:
    """Forget the unions of other tests: `typing` gives one with the same members for another, in that one's order."""
    for forget in typing._cleanups:  # type: ignore[attr-defined]
        forget()


def _prompts(cls: Any) -> list[Any]:
    asked = dspy.History(messages=[])
    inputs = {name: asked if one.annotation is dspy.History else "some text" for name, one in cls.input_fields.items()}
    demos = [{**inputs, **dict.fromkeys(cls.output_fields, "an answer")}]
    return [adapter.format(cls, demos, inputs) for adapter in ADAPTERS]


def _names(cls: Any) -> tuple[list[str], list[str]]:
    return list(cls.input_fields), list(cls.output_fields)


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
@pytest.mark.parametrize("row", PLAIN, ids=short)
def test_the_class_is_the_one_that_dspy_makes_of_the_text(row: Row) -> None:
    types = types_of(row)
    spec = read(row["text"], types=types)
    mine = to_dspy(spec)
    theirs = dspy.Signature(row["text"], custom_types=outermost(types))
    if any(is_checked(mine.fields[name].annotation) or one.description for name, one in spec.fields.items()):
        # DSPy reads what a Field in an Annotated says, and tells nobody.
        assert _names(mine) == _names(theirs)
        assert spec_of(theirs) == spec
        return
    assert mine.equals(theirs)
    assert theirs.equals(mine)
    assert (list(mine.input_fields), list(mine.output_fields)) == (
        list(theirs.input_fields),
        list(theirs.output_fields),
    )
    assert mine.dump_state() == theirs.dump_state()
    assert _prompts(mine) == _prompts(theirs)


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
@pytest.mark.parametrize("row", [row for row in CORPUS if "." not in "".join(row.get("custom_types", []))], ids=short)
def test_there_and_back(row: Row) -> None:
    spec = read(row["text"], types=types_of(row))
    cls = to_dspy(spec)
    assert from_dspy(cls).spec == spec
    # What DSPy's modules do to a signature loses nothing.
    assert from_dspy(cls.append("more", dspy.OutputField(), str).delete("more")).spec == spec
    assert from_dspy(dspy.Signature(dict(cls.fields), cls.instructions)).spec == spec


def _holds(spec: Spec) -> bool:
    """Tell whether DSPy can hold it: pydantic takes no lone surrogates, DSPy no such names and no opaque classes."""
    odd = any(character == "\0" or "\ud800" <= character <= "\udfff" for character in _unescaped(spec))
    kept = inspect.cleandoc(spec.instructions) == spec.instructions
    return kept and not odd and Plain not in spec.customs.values()


def _unescaped(spec: Spec) -> str:
    """Return its text with the escapes undone."""
    return spec.text.encode("ascii", "backslashreplace").decode("unicode_escape")


@settings(derandomize=True, deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
@given(specs().filter(_holds))
def test_anything_there_and_back(spec: Spec) -> None:
    cls = to_dspy(spec)
    assert from_dspy(cls).spec == spec
    text = described(cls)
    assert text is not None
    assert list(read(text).fields) == list(spec.fields)


EXTENDED = """answer briefly: a "what it is about", n: int[1..10] = 3, who: {name: str, age: int[0..] = 1},
    tags: list[str][..5] = [], loose: str[3..] | None
    -> score: float[0..1], title: str[..8] "short", code: str['^[0-9]{3}$'] | None, mail: str[email],
       people: list[{name: str, born: datetime.date | None = None}], words: list[str][1..2], rate: float[finite]"""


def test_extensions_there_and_back() -> None:
    spec = read(EXTENDED)
    cls = to_dspy(spec)
    assert from_dspy(cls).spec == spec
    assert cls.instructions == "answer briefly"
    assert cls.input_fields["a"].json_schema_extra["desc"] == "what it is about"
    assert cls.input_fields["n"].default == 3


GOOD = {
    "score": 1, "title": "007", "code": "012", "mail": "a@example.org",
    "people": [{"name": "Ada", "born": "1815-12-10"}, {"name": "x"}], "words": ["a"], "rate": 2.5,
}  # fmt: skip


def _completion(adapter: Any, values: dict[str, Any]) -> str:
    if isinstance(adapter, dspy.JSONAdapter):
        return json.dumps(values)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    if isinstance(adapter, dspy.XMLAdapter):
        return "\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in texts.items())
    return "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items()) + "\n\n[[ ## completed ## ]]"


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda one: type(one).__name__)
def test_an_answer_is_read_by_the_rules_of_the_engine(adapter: Any) -> None:
    spec = read(EXTENDED)
    parsed = adapter.parse(to_dspy(spec), _completion(adapter, GOOD))
    assert parsed == spec.validate_outputs(GOOD)
    assert [type(value) for value in parsed.values()] == [float, str, str, str, list, list, float]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score", 1.5), ("score", "nan"), ("title", "much too long"), ("code", "12"), ("code", "abc"),
        ("mail", "nobody"), ("people", [{"name": "a", "age": 3}]), ("people", [{}]),
        ("words", []), ("words", ["a", "b", "c"]), ("rate", "inf"),
    ],
)  # fmt: skip
def test_an_answer_that_breaks_a_constraint_is_refused(adapter: Any, name: str, value: Any) -> None:
    spec = read(EXTENDED)
    with pytest.raises(ValidationError) as ours:
        spec.validate_outputs({**GOOD, name: value})
    with pytest.raises(AdapterParseError) as theirs:
        adapter.parse(to_dspy(spec), _completion(adapter, {**GOOD, name: value}))
    reason = ours.value.problems[0].message.partition(" must ")[2].partition(", got ")[0]
    assert reason in str(theirs.value)


def test_a_nullable_output_may_be_left_out_as_with_dspy() -> None:
    cls = to_dspy(read("a -> b: str, c: str | None, d: str[..3] | None, e: int = 7"))
    parsed = dspy.ChatAdapter().parse(cls, _completion(dspy.ChatAdapter(), {"b": "x"}))
    assert parsed == {"b": "x", "c": None, "d": None, "e": 7}


def test_prompts_tell_constraints_and_descriptions() -> None:
    text = dspy.ChatAdapter().format(to_dspy(read(EXTENDED)), [], {"a": "x"})[0]["content"]
    for told in (
        "greater than or equal to: 0, less than or equal to: 1", "maximum length: 8", "what it is about", "short",
        '"pattern": "^[0-9]{3}$"', "in the format: email", '"format": "date"', "answer briefly",
        "`score` (float)", "`title` (str)", "neither infinite nor nan",
    ):  # fmt: skip
        assert told in text


def test_a_schema_for_structured_outputs_can_be_made() -> None:
    from dspy.adapters.json_adapter import _get_structured_outputs_response_format

    made = _get_structured_outputs_response_format(to_dspy(read(EXTENDED.replace("= None", "")))).model_json_schema()
    assert made["properties"]["score"]["maximum"] == 1
    assert made["properties"]["people"]["items"]["required"] == ["name", "born"]


Java = dspy.Code["java"]


class Support(dspy.Signature):
    """Sort a ticket.

    Be quick.
    """

    ticket: Ticket = dspy.InputField(desc="as it came in")
    limit: int = dspy.InputField(default=3, ge=1, lt=10)
    untyped = dspy.InputField()
    team: Team = dspy.OutputField()
    tags: list[Annotated[str, pydantic.Field(max_length=5)]] = dspy.OutputField(max_length=3)
    extra: dict[str, Any] = dspy.OutputField(default_factory=dict)
    image: dspy.Image = dspy.OutputField()
    code: Java = dspy.OutputField()


def test_a_class_of_dspys() -> None:
    found = from_dspy(Support)
    assert str(found) == (
        '"Sort a ticket.\\n\\nBe quick.": ticket: Ticket "as it came in", limit: int[1..<10] = 3, untyped '
        "-> team: Team, tags: list[str[..5]][..3], extra: dict[str, Any] = {}, image: dspy.Image, "
        'code: dspy.Code["java"]'
    )
    assert found.spec.customs == {"Ticket": Ticket, "Team": Team}
    assert (found.__name__, issubclass(found, Signature)) == ("Support", True)
    again = to_dspy(found)
    assert again.__name__ == "Support"
    assert again.instructions == Support.instructions
    assert again.output_fields["team"].annotation is Team
    assert again.output_fields["image"].annotation is dspy.Image
    assert from_dspy(again) == found


def test_a_declared_signature() -> None:
    class Sorted(Signature):
        """Sort it."""

        ticket: Ticket = Field(input=True)
        team: Literal["billing", "tech"] = Field(output=True, description="who cares for it")

    cls = to_dspy(Sorted)
    assert (cls.__name__, cls.instructions) == ("Sorted", "Sort it.")
    assert from_dspy(cls) == Sorted
    assert to_dspy(Sorted, name="Other").__name__ == "Other"


def test_what_no_signature_can_hold_is_named() -> None:
    unknown = TypeVar("unknown")

    class Wrong(dspy.Signature):
        a: list[unknown] = dspy.InputField()
        config: str = dspy.InputField()
        b: str = dspy.OutputField(default_factory=object)

    with pytest.raises(SignatureError) as caught:
        from_dspy(Wrong)
    assert "'a'" in str(caught.value)
    assert described(Wrong) is None


def test_what_dspy_does_not_take_is_a_signature_error() -> None:
    class Opaque:
        """Pydantic knows nothing about it."""

    with pytest.raises(SignatureError, match="DSPy does not take this signature") as caught:
        to_dspy(read("a: Opaque -> b", types={"Opaque": Opaque}))
    assert caught.value.text == "a: Opaque -> b"


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
@pytest.mark.parametrize("row", CORPUS, ids=short)
def test_a_described_signature_is_a_text_that_anybody_reads(row: Row) -> None:
    spec = read(row["text"], types=types_of(row))
    text = described(to_dspy(spec))
    assert text is not None
    again = read(text)
    assert list(again.fields) == list(spec.fields)
    if not spec.customs:
        assert again == spec


def test_a_described_chain_of_thought_says_no_more_than_was_said() -> None:
    cls = dspy.ChainOfThought(to_dspy("a -> b: int")).predict.signature
    assert described(cls) == 'a -> reasoning "Think step by step to reason about the answer.", b: int'.replace(
        ' "Think step by step to reason about the answer."', ""
    )
    assert described(Support).startswith('"Sort a ticket.\\n\\nBe quick.": ticket: Any "as it came in", limit')
