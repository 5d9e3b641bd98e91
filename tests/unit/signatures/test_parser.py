"""Signature texts: what they mean, how they are written again, and where every mistake in them is told."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from signatures.errors import SignatureError
from signatures.model import MAX_FIELDS, Spec
from signatures.text.parser import MAX_CHARS, read
from signatures.types import MAX_DEPTH, MISSING
from tests.support.signatures import CUSTOMS


def problems(text: str, **arguments: Any) -> list[tuple[int, int, str]]:
    with pytest.raises(SignatureError) as caught:
        read(text, **arguments)
    assert caught.value.text == text
    return [(one.line, one.column, one.message) for one in caught.value.problems]


# --- what a text means ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inputs", "outputs"),
    [
        ("question -> answer", ("question",), ("answer",)),
        (" a , b:int->c : str , d ", ("a", "b"), ("c", "d")),
        ("-> joke", (), ("joke",)),
        ("a, -> b,", ("a",), ("b",)),
        ("question,\r\n  context: list[str]\n-> answer", ("question", "context"), ("answer",)),
        ("a \\\n, b # two, and -> more\n-> c", ("a", "b"), ("c",)),
        ("frage_ä -> antwort", ("frage_ä",), ("antwort",)),
        ("ﬁeld, हिन्दी -> 答え", ("field", "हिन्दी"), ("答え",)),
        ("str, list: int -> match, type", ("str", "list"), ("match", "type")),
        ("lm_, a -> lm, demos, config", ("lm_", "a"), ("lm", "demos", "config")),
    ],
)
def test_the_fields_of_a_text(text: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    spec = read(text)
    assert tuple(field.name for field in spec.inputs) == inputs
    assert tuple(field.name for field in spec.outputs) == outputs


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("int", "int"),
        ("typing . Any", "Any"),
        ("date", "datetime.date"),
        ("datetime.timedelta", "datetime.timedelta"),
        ("Decimal", "decimal.Decimal"),
        ("NoneType | UUID", "None | uuid.UUID"),
        ("typing.List", "list"),
        ("List[Dict[str, typing.Set[int]]]", "list[dict[str, set[int]]]"),
        ("list[int,]", "list[int]"),
        ("tuple[int, ...]", "tuple[int, ...]"),
        ("Tuple[int, str]", "tuple[int, str]"),
        ("Optional[int]", "int | None"),
        ("Union[int, Union[str, int], None]", "int | str | None"),
        ("int | (str | int)", "int | str"),
        ("(int)", "int"),
        ("Union[int]", "int"),
        ("Literal['x', \"x\", 'y' 'z', -1, +2, 1.0, 1, True, None, b'w', 0x10]",
         'Literal["x", "yz", -1, 2, 1.0, 1, True, None, b\'w\', 16]'),
        ("Literal[Literal['a', 'b'], 'c']", 'Literal["a", "b", "c"]'),
        ("Annotated[int, 'one', 'two']", 'Annotated[int, "one", "two"]'),
        ("Annotated[Annotated[int, 'in'], 'out']", 'Annotated[int, "in", "out"]'),
        ("list[Annotated[int, Field(ge=0, lt=9)]]", "list[int[0..<9]]"),
        ("int[0..9] | None", "int[0..9] | None"),
        ("dict[str, float[0<..<1]]", "dict[str, float[0<..<1]]"),
        ("dspy.Image | dspy.Code['python']", 'dspy.Image | dspy.Code["python"]'),
        ("{name, age: int 'years' = 3,}", '{name, age: int "years" = 3}'),
        ("list[{x: {y: int | None}}]", "list[{x: {y: int | None}}]"),
        ("Colour | list[pkg.Plain]", "Colour | list[pkg.Plain]"),
        ("größe", "größe"),
    ],
)  # fmt: skip
def test_a_type_is_written_in_one_way(written: str, canonical: str) -> None:
    spec = read(f"a: {written} -> b", types=CUSTOMS)
    assert str(spec.inputs[0].type) == canonical
    again = read(str(spec), types=CUSTOMS)
    assert again == spec
    assert again.sha256 == spec.sha256


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int[0..100]", {"ge": 0, "le": 100}),
        ("float[-.5<..1e3]", {"gt": -0.5, "le": 1000.0}),
        ("float[..<-1]", {"lt": -1}),
        ("int[1..]", {"ge": 1}),
        ("decimal.Decimal[0..]", {"ge": 0}),
        ("int[multiple_of=5, 0..]", {"ge": 0, "multiple_of": 5}),
        ("float[finite]", {"finite": True}),
        ("str[..80]", {"max_length": 80}),
        ("list[1..5]", {"min_length": 1, "max_length": 5}),
        ("list[str][1..5]", {"min_length": 1, "max_length": 5}),
        ("tuple[int, ...][..3]", {"max_length": 3}),
        ("str['^[A-Z]' '+$', email, 1..]", {"min_length": 1, "pattern": "^[A-Z]+$", "format": "email"}),
        ("str[r'\\d']", {"pattern": "\\d"}),
        ("Annotated[int, 'n', Field(ge=1), Field(le=2)]", {"ge": 1, "le": 2}),
        ("Annotated[str, Field(min_length=1, pattern='x')]", {"min_length": 1, "pattern": "x"}),
        ("Annotated[int, 'n'][0..]", {"ge": 0}),
    ],
)
def test_constraints_of_the_field_itself(text: str, expected: dict[str, Any]) -> None:
    spec = read(f"a: {text} -> b")
    assert spec.inputs[0].constraints.items() == expected
    assert read(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("a = 'x'", "x"),
        ("a: int = -0x_ff", -255),
        ("a: float = 1", 1.0),
        ("a: float = 1e999", float("inf")),
        ("a: bool = True", True),
        ("a: int | None = None", None),
        ("a: list[int] = [1, 2,]", [1, 2]),
        ("a: tuple[int, ...] = (1,)", (1,)),
        ("a: tuple = ()", ()),
        ("a: int = ((3))", 3),
        ("a: set[int] = {1, 2}", {1, 2}),
        ("a: set[int] = [1]", {1}),
        ("a: dict[str, Any] = {'x': {'y': [None]}, }", {"x": {"y": [None]}}),
        ("a: dict = {}", {}),
        ("a: bytes = b'\\x00'", b"\x00"),
        ("a: complex = 1-2j", 1 - 2j),
        ("a: date = '2024-02-29'", date(2024, 2, 29)),
        ("a: Decimal = '1.50'", Decimal("1.50")),
        ("a: timedelta = 90", timedelta(seconds=90)),
        ("a: Colour = 'red'", "red"),
        ("a 'what it is' = '''b\nc'''", "b\nc"),
        ("a = 'one' \"two\"", "onetwo"),
        ("a = '\\N{BULLET}\\u00e4\\t\\101\\d'", "•ä\tA\\d"),
    ],
)
def test_a_default_is_kept_as_a_value_of_its_type(text: str, default: Any) -> None:
    spec = read(f"{text} -> b", types=CUSTOMS)
    kept = spec.inputs[0].default
    assert kept == default
    assert type(kept) is type(default)
    assert read(str(spec), types=CUSTOMS) == spec


def test_what_is_not_written_is_known() -> None:
    spec = read("a, b: str -> c, d: str")
    assert [field.typed for field in (*spec.inputs, *spec.outputs)] == [False, True, True, True]
    assert all(field.default is MISSING and field.description == "" for field in spec.fields.values())
    assert str(spec) == "a, b: str -> c, d"
    assert spec.instructions == ""


def test_descriptions_stand_behind_the_type_or_in_a_field() -> None:
    spec = read("a 'one', b: Annotated[int, Field(description='two')] -> c: str \"three\" = 'x'")
    assert [field.description for field in spec.fields.values()] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("text", "instructions"),
    [
        ("math problem: a -> b", "math problem"),
        ("Given a, b: a -> b", "Given a, b"),
        ("user's question: a -> b: Literal['x']", "user's question"),
        ("'a: b' : a -> b", "a: b"),
        ("'one\\ntwo \\ud800': -> b", "one\ntwo \ud800"),
        ("# a: comment\n make a joke: -> b", "make a joke"),
        ("a: int -> b", ""),
        ("a -> b: int", ""),
    ],
)
def test_a_prefix_is_the_instructions(text: str, instructions: str) -> None:
    spec = read(text)
    assert spec.instructions == instructions
    assert read(str(spec)) == spec


@pytest.mark.parametrize("instructions", ["plain words", "one", "a: b", "'quoted", "x -> y", "\ud800\n", "it's # not"])
@pytest.mark.parametrize("fields", ["a -> b", "int: str, a -> b: Literal['x']", '-> b "it\'s"'])
def test_instructions_as_an_argument(fields: str, instructions: str) -> None:
    spec = read(fields, instructions=instructions)
    assert spec.instructions == instructions
    assert read(str(spec)) == spec


def test_instructions_are_given_once() -> None:
    assert problems("in short: a -> b", instructions="in long")[0][2].endswith("leave one out")
    assert read("in short: a -> b", instructions="").instructions == "in short"


def test_custom_types_are_classes_of_the_caller() -> None:
    spec = read("a: list[Point] -> b: pkg.Plain", types=CUSTOMS)
    assert spec.customs == {"Point": CUSTOMS["Point"], "pkg.Plain": CUSTOMS["pkg.Plain"]}
    assert read("a: Point -> b", types={"Point": int}) != read("a: Point -> b", types={"Point": str})


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "part"),
    [
        ("", (1, 1), "is empty"),
        ("question  ", (1, 9), "needs '->'"),
        ("do it:", (1, 7), "needs '->'"),
        ("a -> b -> c", (1, 8), "exactly one '->'"),
        ("a ->", (1, 3), "at least one output"),
        ("a → b", (1, 3), "write '->' instead of '→'"),
        ("a =>b", (1, 3), "write '->' instead of '=>'"),
        ("a; b -> c", (1, 2), "write ',' instead of ';'"),
        ("a\uff0c b -> c", (1, 2), "write ',' instead of '\uff0c'"),
        ("a, b c -> d", (1, 6), "put a comma between 'b' and 'c'"),
        ("what is it -> d", (1, 6), "or a ':' behind instructions"),
        ("a b: int -> c", (1, 6), "is read as instructions"),
        ("a: strr -> b", (1, 4), "did you mean 'str'"),
        ("a -> b: Image", (1, 9), "did you mean 'dspy.Image'"),
        ("a: string -> b", (1, 4), "did you mean 'str'"),
        ("a: any -> b", (1, 4), "did you mean 'Any'"),
        ("a: Piont -> b", (1, 4), "did you mean 'Point'"),
        ("a -> b: dspy.LM", (1, 9), "unknown type 'dspy.LM'; types are"),
        ("a: os.system -> b", (1, 4), "unknown type 'os.system'"),
        ("a: list[os] -> b", (1, 9), "unknown type 'os'"),
        ("a: str | subprocess -> b", (1, 10), "unknown type 'subprocess'"),
        ("a: Optional -> b", (1, 4), "needs arguments"),
        ("a: dict[str] -> b", (1, 4), "takes 2 arguments"),
        ("a: str[int] -> b", (1, 7), "takes no arguments"),
        ("a: 'Foo' -> b", (1, 4), "remove the quotes"),
        ("a: f() -> b", (1, 4), "unknown type 'f'"),
        ("a: None -> b", (1, 4), "None alone"),
        ("a: int? -> b", (1, 7), "'| None'"),
        ("*a -> b", (1, 1), "name each field"),
        ("a, *, b -> c", (1, 4), "not possible"),
        ("a, /, b -> c", (1, 4), "not possible"),
        ("_a -> b", (1, 1), "underscore"),
        ("a, a -> b", (1, 4), "named twice"),
        ("a -> a", (1, 6), "an input and an output"),
        ("a -> instructions", (1, 6), "taken by DSPy"),
        ("lm -> b", (1, 1), "taken by DSPy"),
        ("class -> b", (1, 1), "'class_'"),
        ("a-b -> c", (1, 1), "'a-b' is no name"),
        ("ä: lst[int] -> b", (1, 4), "did you mean 'list'"),
        ("a,\nü: lst[int] -> b", (2, 4), "did you mean 'list'"),
        ("a) -> b", (1, 2), "remove the ')'"),
        ("a: list[int -> b", (1, 8), "the '[' is not closed"),
        ("a: list[int) -> b", (1, 12), "write ']' instead of ')'"),
        ("a: dict[str: int] -> b", (1, 12), "write a comma instead"),
        ("a: list(int) -> b", (1, 8), "write '[' instead of '('"),
        ("a: Literal[x] -> b", (1, 12), "Literal takes"),
        ("a 'x -> b", (1, 3), "is not closed on its line"),
        ("a '''x -> b", (1, 3), "is not closed"),
        ("a: str = '\\x4' -> b", (1, 10), "escape"),
        ("a: str = '\\N{NO SUCH}' -> b", (1, 10), "names no character"),
        ("a: bytes = b'ä' -> b", (1, 12), "bytes are written in ASCII"),
        ("a: int = 'x' -> b", (1, 10), "does not fit its type"),
        ("a: int = x -> b", (1, 10), "is no literal"),
        ("a: int = 1 + 2 -> b", (1, 12), "nothing is calculated"),
        ("a: int = 010 -> b", (1, 10), "is no number"),
        ("a: dict = {1: 2, 3} -> b", (1, 11), "'key: value'"),
        ("a: set = {[1]} -> b", (1, 11), "write a tuple"),
        ("a: int = 3 'x' -> b", (1, 12), "the description comes before the default"),
        ("a = 'x' : str -> b", (1, 9), "the type comes before the default"),
        ("a 'x' 'y' -> b", (1, 7), "one description"),
        ("a b'x' -> b", (1, 3), "remove the b"),
        ("a: bool[0..1] -> b", (1, 8), "takes no constraints"),
        ("a: int[9..0] -> b", (1, 7), "swap the ends"),
        ("a: int[0...5] -> b", (1, 9), "write '..'"),
        ("a: str[80] -> b", (1, 8), "[..80]"),
        ("a: int[5 -> b", (1, 8), "[5..5]"),
        ("a: str['('] -> b", (1, 8), "pattern"),
        ("a: str[1.5..] -> b", (1, 8), "whole number"),
        ("a: str[0<..] -> b", (1, 9), "without '<'"),
        ("a: int[0..1][2..] -> b", (1, 13), "in one bracket"),
        ("a: {} -> b", (1, 4), "at least one member"),
        ("a: {x, x} -> b", (1, 8), "named twice"),
        ("a: {x: int) -> b", (1, 11), "write '}' instead of ')'"),
        ("a: Annotated[int, Field(gee=0)] -> b", (1, 25), "did you mean 'ge'"),
        ("a: list[Annotated[int, Field(description='x')]] -> b", (1, 9), "of the field itself"),
        ("a\0 -> b", (1, 2), "U+0000"),
        ("a \ud800 -> b", (1, 3), "U+D800"),
    ],
)
def test_one_mistake_is_told_at_its_place(text: str, place: tuple[int, int], part: str) -> None:
    line, column, message = problems(text, types=CUSTOMS)[0]
    assert part in message
    assert (line, column) == place
    assert len(problems(text, types=CUSTOMS)) == 1


def test_all_mistakes_are_told_in_their_order() -> None:
    text = "a: strr, a: dict[str],\n b c: int = 'x' -> class: int[9..0], d: {x: Image}, e: list[int"
    assert [(line, column) for line, column, _ in problems(text)] == [
        (1, 4), (1, 10), (1, 13), (2, 4), (2, 13), (2, 20), (2, 30), (2, 45), (2, 60),
    ]  # fmt: skip


def test_of_many_mistakes_twenty_are_told_and_the_others_counted() -> None:
    text = ", ".join(f"f{n}: nope{n}" for n in range(50)) + " -> b"
    told = problems(text)
    assert len(told) == 21
    assert told[-1] == (0, 0, "and 30 more problems")


def test_a_name_that_is_close_is_looked_up_for_a_few_mistakes_only() -> None:
    told = problems(", ".join(f"f{n}: strr" for n in range(12)) + " -> b")
    assert ["did you mean" in message for _, _, message in told] == [True] * 8 + [False] * 4


def test_the_caret_stands_below_the_fault() -> None:
    with pytest.raises(SignatureError) as caught:
        read("question: strr -> answer")
    shown, caret = str(caught.value).split("\n")[1:]
    assert shown[caret.index("^") :].startswith("strr")


def test_the_caret_of_a_very_long_line_stays_in_a_window() -> None:
    with pytest.raises(SignatureError) as caught:
        read(", ".join(f"field_{n}" for n in range(150)) + ", x: nope -> b")
    shown, caret = str(caught.value).split("\n")[1:]
    assert shown[caret.index("^") :].startswith("nope")
    assert len(shown) < 200


@pytest.mark.parametrize("value", [None, 7, b"a -> b", ["a -> b"]])
def test_only_a_text_is_a_signature(value: Any) -> None:
    with pytest.raises(SignatureError, match=f"not {type(value).__name__}"):
        read(value)


@pytest.mark.parametrize(
    ("types", "part"),
    [
        ({"int": int}, "the name of a type already"),
        ({"dspy.Image": int}, "the name of a type already"),
        ({"a b": int}, "no name for a type"),
        ({"class": int}, "no name for a type"),
        ({3: int}, "are texts, not int"),
        ([int], "not list"),
        ({"X": "int"}, "must be a class, not str"),
        ({"X": int | None}, "must be a class"),
    ],
)
def test_types_are_classes_by_new_names(types: Any, part: str) -> None:
    assert part in problems("a -> b", types=types)[0][2]


def test_instructions_are_a_text() -> None:
    assert problems("a -> b", instructions=3)[0][2] == "instructions are a text, not int"


# --- bounds -----------------------------------------------------------------------------------


def test_length_and_number_of_fields_are_bounded() -> None:
    with pytest.raises(SignatureError, match=f"at most {MAX_CHARS} are read") as caught:
        read(f"{'a' * MAX_CHARS} -> b")
    # So long a text is not kept.
    assert caught.value.text == ""
    assert read("a -> b" + " " * (MAX_CHARS - 6)) == read("a -> b")
    most = ", ".join(f"f{n}" for n in range(MAX_FIELDS - 1))
    assert len(read(f"{most} -> b").inputs) == MAX_FIELDS - 1
    ((line, column, message),) = problems(f"{most}, c, d -> b")
    assert (line, column) == (1, len(most) + 6)
    assert f"not {MAX_FIELDS + 2}" in message


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("list[", "]"), ("dict[str, ", "]"), ("{x: ", "}"), ("Annotated[", ", 'n']"), ("{x: list[", "]}")],
)
def test_types_nest_to_a_bound(opening: str, closing: str) -> None:
    each = 2 if opening == "{x: list[" else 1
    levels = (MAX_DEPTH - 1) // each
    # Notes inside notes are one level.
    assert read(f"a: {opening * levels}int{closing * levels} -> b").inputs[0].type.depth in (levels * each + 1, 2)
    assert "deeper than 20" in problems(f"a: {opening * 21}int{closing * 21} -> b")[0][2]


def test_unions_inside_count_as_levels() -> None:
    text = "a: " + "list[None | " * 12 + "int" + "]" * 12 + " -> b"
    ((line, column, message),) = problems(text)
    assert (line, column) == (1, 4)
    assert "deeper than 20" in message


def test_defaults_nest_to_a_bound() -> None:
    spec = read(f"a: Any = {'[' * 20}1{']' * 20} -> b")
    assert read(str(spec)) == spec
    ((_, column, message),) = problems(f"a: Any = {'[' * 21}1{']' * 21} -> b")
    assert "deeper than 20" in message
    assert column == 31


@pytest.mark.parametrize("digits", ["9" * 1001, "0x" + "f" * 1000, "9" * 5000])
def test_numbers_have_a_bound(digits: str) -> None:
    assert "at most 1000 digits" in problems(f"a: int = {digits} -> b")[0][2]
    assert read(f"a: int = {'9' * 1000} -> b").inputs[0].default == 10**1000 - 1


def test_a_spec_is_what_its_parts_make() -> None:
    spec = read("do it: a: {x: int[0..] = 3}, b: list[Point] -> c: Literal['x'] = 'x'", types=CUSTOMS)
    assert Spec(spec.inputs, spec.outputs, spec.instructions) == spec
