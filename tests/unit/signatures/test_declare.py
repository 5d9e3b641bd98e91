"""Signatures as classes: declared, decorated, parsed; their instances, edits, identity and mistakes."""

from __future__ import annotations

import copy
import enum
import gc
import inspect
import pickle
import re
import subprocess
import sys
import textwrap
import types
import weakref
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, ClassVar, Literal

import annotated_types
import pytest

import signatures
from signatures import MISSING, Field, Signature, SignatureError, ValidationError, parse, signature
from signatures.types import Constraints, Custom, Scalar


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@dataclass
class Point:
    x: int
    y: int = 0


class Triage(Signature):
    """Route a support ticket.

    Be brief.
    """

    ticket: str = Field(input=True, max_length=40, description="as it came in")
    product = Field(input=True, default="")
    team: Literal["billing", "tech"] = Field(output=True)
    score: float = Field(output=True, default=0.5, ge=0, le=1)

    limit: ClassVar[int] = 3

    def short(self) -> str:
        return self.ticket[: self.limit]


class Scored(Triage):
    ticket: str = Field(input=True, max_length=80)
    reasons: list[str] = Field(output=True)


@signature("question: str, mood: Mood -> answer: str[..80]", types={"Mood": Mood})
def qa() -> None:
    """Answer briefly."""
    raise AssertionError("the body runs")


PARSED = parse("a, b: int -> c: list[str]", name="Parsed")


# --- declared ---------------------------------------------------------------------------------


def test_the_class_is_its_text() -> None:
    assert str(Triage) == (
        '"Route a support ticket.\\n\\nBe brief.": ticket: str[..40] "as it came in", product = "" '
        '-> team: Literal["billing", "tech"], score: float[0..1] = 0.5'
    )
    assert Triage.instructions == Triage.__doc__ == "Route a support ticket.\n\nBe brief."
    assert [field.name for field in Triage.inputs] == ["ticket", "product"]
    assert [field.name for field in Triage.outputs] == ["team", "score"]
    assert list(Triage.fields) == ["ticket", "product", "team", "score"]
    assert Triage.sha256 == Triage.spec.sha256
    assert Triage.fields["score"].constraints == Constraints(ge=0, le=1)
    assert Triage.fields["team"].default is MISSING
    assert not Triage.fields["product"].typed


def test_the_mapping_of_fields_is_read_only() -> None:
    with pytest.raises(TypeError):
        Triage.fields["more"] = Triage.fields["team"]


def test_a_class_equals_its_own_text() -> None:
    again = parse(str(Triage))
    assert again == Triage
    assert hash(again) == hash(Triage)
    assert len({again, Triage}) == 1
    assert again != Scored
    assert Triage != str(Triage)
    assert Signature != again
    assert repr(PARSED) == "<signature Parsed 'a, b: int -> c: list[str]'>"


def test_values_are_validated_by_the_class() -> None:
    assert Triage.validate_inputs({"ticket": "lost"}) == {"ticket": "lost", "product": ""}
    assert Triage.validate_outputs({"team": "tech", "score": 1}) == {"team": "tech", "score": 1.0}
    with pytest.raises(ValidationError, match="ticket"):
        Triage.validate_inputs({"ticket": "x" * 41})
    schema = Triage.json_schema()
    assert schema["title"] == "Triage"
    assert list(schema["properties"]["inputs"]["properties"]) == ["ticket", "product"]


def test_a_derived_class_adds_fields_and_overrides_in_place() -> None:
    assert list(Scored.fields) == ["ticket", "product", "team", "score", "reasons"]
    assert Scored.fields["ticket"].constraints.max_length == 80
    assert Scored.instructions == Triage.instructions
    assert Scored(ticket="lost", team="tech", reasons=[]).short() == "los"
    assert issubclass(Scored, Triage)


def test_a_derived_class_has_instructions_of_its_own() -> None:
    class Curt(Triage):
        """One word."""

    assert Curt.instructions == "One word."
    assert Curt.spec.inputs == Triage.spec.inputs
    assert Curt != Triage


def test_of_two_bases_the_first_counts() -> None:
    class Other(Signature):
        ticket: int = Field(input=True)
        summary: str = Field(output=True)

    class Both(Triage, Other):
        pass

    assert list(Both.fields) == ["ticket", "product", "summary", "team", "score"]
    assert Both.fields["ticket"] == Triage.fields["ticket"]


def test_a_field_may_change_its_side() -> None:
    class Swapped(Triage):
        team: str = Field(input=True)

    assert [field.name for field in Swapped.inputs] == ["ticket", "product", "team"]


def test_names_in_annotations_are_found_in_the_body_the_function_and_the_module() -> None:
    class Local(enum.Enum):
        ONE = 1

    class Nested(Signature):
        class Inner(enum.Enum):
            TWO = 2

        where: Point = Field(input=True)
        local: list[Local] = Field(input=True)
        inner: Inner | None = Field(output=True)
        date: date = Field(output=True)
        later: date | None = Field(output=True)

    assert Nested.fields["where"].type == Custom("Point", Point)
    assert str(Nested) == "where: Point, local: list[Local] -> inner: Inner | None, date: datetime.date, " + (
        "later: datetime.date | None"
    )
    assert Nested(where={"x": 1}, local=[1], inner="TWO").where == Point(1)


def test_annotations_that_are_no_texts_work_too() -> None:
    module = run(
        """
        from typing import Annotated
        from signatures import Signature, Field

        class Plain(Signature):
            a: list["Later"] = Field(input=True)
            b: Annotated[int, "years"] = Field(output=True)

            class Later: pass
        """
    )
    assert str(module["Plain"]) == 'a: list[Later] -> b: Annotated[int, "years"]'


def test_constraints_of_the_annotation_and_of_the_field_are_joined() -> None:
    class Joined(Signature):
        age: Annotated[int, annotated_types.Ge(0), annotated_types.doc("in years")] = Field(input=True, le=150)
        name: str | None = Field(output=True, max_length=5)

    assert str(Joined) == 'age: int[0..150] "in years" -> name: str[..5] | None'


def test_a_default_is_kept_as_its_text_says_it() -> None:
    class Defaults(Signature):
        ratio: float = Field(input=True, default=1)
        day: date = Field(input=True, default=date(2020, 1, 2))
        mood: Mood = Field(input=True, default=Mood.GOOD)
        names: list[str] = Field(output=True, default=("a",))

    assert str(Defaults) == (
        'ratio: float = 1.0, day: datetime.date = "2020-01-02", mood: Mood = "good" -> names: list[str] = ["a"]'
    )
    assert parse(str(Defaults), types={"Mood": Mood}) == Defaults
    assert Defaults().as_dict() == {"ratio": 1.0, "day": date(2020, 1, 2), "mood": Mood.GOOD, "names": ["a"]}
    assert Defaults().names is not Defaults().names


def test_private_names_and_methods_are_left_alone() -> None:
    assert Triage.limit == 3
    assert "limit" not in Triage.fields


def test_a_field_may_be_called_like_anything_of_the_class() -> None:
    class Clash(Signature):
        inputs: str = Field(input=True)
        append: str = Field(input=True)
        spec: int = Field(output=True)
        as_dict: str = Field(output=True)

    one = Clash(inputs="a", append="b", spec=1, as_dict="c")
    assert (one.inputs, one.append, one.spec, one.as_dict) == ("a", "b", 1, "c")
    assert [field.name for field in Clash.inputs] == ["inputs", "append"]
    assert list(Clash.append("more", Field(output=True)).fields)[-1] == "more"
    assert parse("keys -> self")(keys="a", self="b").as_dict() == {"keys": "a", "self": "b"}
    assert dict(one) == {"inputs": "a", "append": "b", "spec": 1, "as_dict": "c"}


# --- mistakes ---------------------------------------------------------------------------------


def run(source: str, file: str = "sample.py") -> dict[str, Any]:
    """Return the names of a module made from a text; its first line is line 1."""
    module = types.ModuleType("sample")
    exec(compile(textwrap.dedent(source).strip(), file, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


DECLARED = "from signatures import Signature, Field\nfrom typing import *\n\nclass Bad(Signature):\n"


@pytest.mark.parametrize("future", [False, True])
@pytest.mark.parametrize(
    ("body", "line", "told"),
    [
        ("a: str\n    b: str = Field(output=True)", 5, "'a' has a type and no Field: write = Field(input=True)"),
        ("a: int = 5\n    b: str = Field(output=True)", 5, "write = Field(input=True, default=5)"),
        ("a: str = Field()\n    b: str = Field(output=True)", 5, "either an input or an output"),
        ("a: str = Field(input=True, output=True)", 5, "write Field(input=True) or Field(output=True)"),
        ("a: str = Field(input=True)", 4, "a signature needs at least one output"),
        ("pass", 4, "a signature needs at least one output"),
        ("a: str = Field(\n        output=True,\n        ge=3)", 5, "'str' takes no 'ge'; that is for int, float and"),
        (
            "b: str = Field(output=True)\n    a: int = Field(input=True, default='x')",
            6,
            "the default of 'a' does not fit",
        ),
        ("a: Callable[[], int] = Field(output=True)", 5, "the type of 'a': 'Callable[[], int]' is no data"),
        ("a: None = Field(output=True)", 5, "None alone is no type for 'a'; write for example 'str | None'"),
        ("a: str = Field(output=True)\n    a: int = Field(output=True)", 6, "the field 'a' is named twice; rename one"),
        ("instructions: str = Field(output=True)", 5, "the field name 'instructions' is taken by DSPy itself"),
        ("_a: str = Field(output=True)", 5, "the field name '_a' starts with an underscore"),
        ("a: str = Field(output=True, description=3)", 5, "the description of 'a' must be a text, not int"),
        ("a: int = Field(output=True, ge='x')", 5, "'ge' must be a number, not 'x'"),
        ("a: str = Field(output=True, pattern='(')", 5, "pattern"),
        (
            "a: Annotated[int, Field(output=True)] = Field(output=True)\n    b: type = Field(output=True)\n    c: int",
            7,
            "c",
        ),
    ],
)
def test_a_mistake_is_told_with_its_file_and_line(body: str, line: int, told: str, future: bool) -> None:
    first = "from __future__ import annotations\n" if future else ""
    with pytest.raises(SignatureError) as caught:
        run(f"{first}{DECLARED}    {body}\n")
    line += future
    assert caught.value.file == f"sample.py:{line}"
    assert caught.value.problems[0].line == caught.value.line == line
    assert told in caught.value.message
    assert str(caught.value).startswith(f"sample.py:{line}: ")


def test_every_mistake_is_told_in_the_order_of_the_lines() -> None:
    with pytest.raises(SignatureError) as caught:
        run(
            """
            from __future__ import annotations
            from signatures import Signature, Field

            class Base(Signature):
                kept: str = Field(input=True)
                out: str = Field(output=True)

            class Bad(Base):
                a: Unknown = Field(input=True, default=3, ge=4)
                b: "list[" = Field(input=True)
                c: int = Field(output=True, default=2.5)
                d: int
                kept = 3
                e: int = Field(output=True, ge=3, gt=3)
            """
        )
    told = str(caught.value).splitlines()
    assert told[0] == (
        "sample.py:9: the type of 'a': the name 'Unknown' is not known here; import or define it before the class, and "
        "not only for type checkers"
    )
    assert told[1].startswith("sample.py:10: the type of 'b'")
    assert told[2:] == [
        "sample.py:11: the default of 'c' does not fit its type: the default must be an integer, got float (2.5)",
        "sample.py:12: 'd' has a type and no Field: write = Field(input=True) or Field(output=True); "
        "for an attribute of the class write ClassVar[…]",
        "sample.py:13: 'kept' is a field of a base class; write = Field(…) or use another name",
        "sample.py:14: the type of 'e': a range has one lower and one upper end; write for example [0..1] or [0<..<1]",
    ]
    assert [problem.line for problem in caught.value.problems] == list(range(9, 15))


def test_two_classes_of_one_name_are_told_at_the_class() -> None:
    with pytest.raises(SignatureError, match=r"^sample.py:6: two different classes are called 'Same'; rename one$"):
        run(
            """
            from signatures import Signature, Field
            class Same: pass
            First = Same
            class Same: pass

            class Bad(Signature):
                a: First = Field(input=True)
                b: Same = Field(output=True)
            """
        )


def test_a_class_made_by_a_call_is_checked_too() -> None:
    made = type(Signature)("Made", (Signature,), {"a": Field(output=True), "__annotations__": {"a": int}})
    assert str(made) == "-> a: int"
    with pytest.raises(SignatureError) as caught:
        type(Signature)("Made", (Signature,), {"a": Field(), "b": 3, "__annotations__": {"b": int}})
    assert caught.value.file == f"{__file__}:{inspect.currentframe().f_lineno - 1}"
    assert len(caught.value.problems) == 2


def test_a_mistake_survives_pickle() -> None:
    with pytest.raises(SignatureError) as caught:
        run(f"{DECLARED}    a: str\n")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.file == "sample.py:4"


def test_a_text_with_a_mistake_shows_the_caller_and_a_caret() -> None:
    with pytest.raises(SignatureError) as caught:
        parse("question: strng -> answer")
    line = inspect.currentframe().f_lineno - 1
    assert caught.value.file == f"{__file__}:{line}"
    assert (caught.value.line, caught.value.column) == (1, 11)
    assert str(caught.value).splitlines()[1:] == ["  question: strng -> answer", "            ^"]


def test_what_is_no_text_is_told_at_the_call() -> None:
    nothing: Any = None
    for wrong in ("", nothing):
        line = inspect.currentframe().f_lineno + 2
        with pytest.raises(SignatureError) as caught:
            parse(wrong)
        assert str(caught.value).startswith(f"{__file__}:{line}: ")


# --- decorated --------------------------------------------------------------------------------


def test_a_function_lends_its_name_and_its_docstring() -> None:
    assert (qa.__name__, qa.__module__, qa.__qualname__) == ("qa", __name__, "qa")
    assert str(qa) == "Answer briefly.: question: str, mood: Mood -> answer: str[..80]"
    assert qa.validate_inputs({"question": "a", "mood": "good"}) == {"question": "a", "mood": Mood.GOOD}


def test_instructions_stand_in_one_place() -> None:
    with pytest.raises(SignatureError, match="the docstring and the text both give instructions; leave one") as caught:

        @signature("Be brief: question -> answer")
        def both() -> None:
            """Answer."""

    assert caught.value.file.startswith(f"{__file__}:")

    @signature("Be brief: question -> answer")
    def text_only() -> None:
        pass

    assert text_only.instructions == "Be brief"


def test_a_class_lends_its_attributes_and_the_classes_in_its_body() -> None:
    @signature("text: str -> kind: Kind, size: int")
    class Sorted:
        """Sort a text."""

        class Kind(enum.Enum):
            NEWS = "news"

        def big(self) -> bool:
            return self.size > 10

    assert Sorted.instructions == "Sort a text."
    one: Any = Sorted(text="a", kind="news", size=11)
    assert one.big()
    assert one.kind is Sorted.Kind.NEWS


def test_only_a_text_decorates_and_only_functions_and_classes_are_decorated() -> None:
    bare: Any = signature
    line = inspect.currentframe().f_lineno + 2
    with pytest.raises(SignatureError) as caught:
        bare(qa)
    assert str(caught.value) == f"{__file__}:{line}: write the text first, as in @signature('question -> answer')"
    wrong: Any = 5
    with pytest.raises(SignatureError, match="stands before a function or a class, not int"):
        signature("a -> b")(wrong)


def test_a_decorated_class_has_neither_bases_nor_fields() -> None:
    with pytest.raises(SignatureError, match="has bases or a Field"):
        signature("a -> b")(type("Derived", (Point,), {}))
    with pytest.raises(SignatureError, match="has bases or a Field"):
        signature("a -> b")(type("Fielded", (), {"a": Field(input=True)}))
    line = inspect.currentframe().f_lineno + 2
    with pytest.raises(SignatureError, match=rf"^{re.escape(__file__)}:{line}: the class 'Derived' under"):
        signature("a -> b")(type("Derived", (Point,), {}))


# --- parsed -----------------------------------------------------------------------------------


def test_a_parsed_signature_is_a_class_too() -> None:
    assert issubclass(PARSED, Signature)
    assert (PARSED.__name__, PARSED.__module__) == ("Parsed", __name__)
    assert parse("a -> b").__name__ == "Signature"
    assert parse("a -> b", instructions="Do it.").instructions == "Do it."
    assert parse("m: Mood -> b", types={"Mood": Mood}).fields["m"].type == Custom("Mood", Mood)
    with pytest.raises(SignatureError, match="unknown type 'Mood'"):
        parse("m: Mood -> b")


# --- instances --------------------------------------------------------------------------------


def test_an_instance_is_a_validated_example() -> None:
    one = Triage(ticket="lost", team="tech", score=1)
    assert (one.ticket, one.product, one.team, one.score) == ("lost", "", "tech", 1.0)
    assert isinstance(one.score, float)
    assert one.as_dict() == dict(one) == {"ticket": "lost", "product": "", "team": "tech", "score": 1.0}
    assert repr(one) == "Triage(ticket='lost', product='', team='tech', score=1.0)"
    assert one.short() == "los"


def test_outputs_may_be_left_out() -> None:
    one = Triage(ticket="lost")
    assert one.as_dict() == {"ticket": "lost", "product": "", "score": 0.5}
    with pytest.raises(AttributeError, match=r"^this Triage has no 'team': it was made without that output$"):
        _ = one.team
    with pytest.raises(AttributeError, match=r"^'Triage' has no field 'tiket'; it has ticket, product, team, score$"):
        _ = one.tiket


def test_every_wrong_value_is_told() -> None:
    with pytest.raises(ValidationError) as caught:
        Triage(tema="tech", team="law", score=2)
    assert [problem.path for problem in caught.value.problems] == ["tema", "ticket", "team", "score"]
    assert caught.value.message.startswith("tema is unknown; did you mean 'team'?\n")
    with pytest.raises(ValidationError, match="and more"):
        PARSED(**{f"unknown{number}": 1 for number in range(300)})


def test_instances_are_frozen_values() -> None:
    one, same, other = (Triage(ticket=text, team="tech") for text in ("a", "a", "b"))
    assert one == same != other
    assert hash(one) == hash(same)
    assert one != dict(one)
    assert copy.deepcopy(one) == one == copy.copy(one)
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(AttributeError, match="frozen"):
        one.ticket = "b"
    with pytest.raises(AttributeError, match="frozen"):
        del one.ticket
    with pytest.raises(TypeError, match="unhashable"):
        hash(parse("a: list -> b")(a=[]))
    assert parse("a -> b")(a="x") == parse("a -> b")(a="x") != parse("a -> c")(a="x")


def test_instances_are_made_from_keywords_alone() -> None:
    with pytest.raises(TypeError):
        Triage("lost")
    with pytest.raises(AttributeError, match="'Signature' has no fields"):
        Signature()


# --- identity ---------------------------------------------------------------------------------


def test_classes_are_frozen() -> None:
    for change in (lambda: setattr(Triage, "limit", 4), lambda: delattr(Triage, "limit")):
        with pytest.raises(AttributeError, match="signatures are frozen"):
            change()
    assert Triage.limit == 3


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_can_be_imported_travels_by_reference_and_the_rest_by_value(protocol: int) -> None:
    assert pickle.loads(pickle.dumps(Triage, protocol)) is Triage
    assert pickle.loads(pickle.dumps(qa, protocol)) is qa
    for made in (
        PARSED,
        parse("m: Mood -> b", types={"Mood": Mood}),
        Triage.delete("score"),
        Triage.append("x", OUTPUT),
    ):
        again = pickle.loads(pickle.dumps(made, protocol))
        assert again == made
        assert (again.__name__, again.__module__) == (made.__name__, made.__module__)


OUTPUT: Any = Field(output=True)


def test_a_local_class_travels_only_if_nothing_is_lost() -> None:
    class Fields(Signature):
        answer: str = Field(output=True)

    class Methods(Fields):
        def more(self) -> int:
            return 1

    assert pickle.loads(pickle.dumps(Fields)) == Fields
    with pytest.raises(TypeError, match="is more than fields"):
        pickle.dumps(Methods)


def test_a_parsed_signature_reaches_another_process() -> None:
    code = "import pickle, sys; found = pickle.load(sys.stdin.buffer); print(found, found.__name__, found.sha256)"
    ran = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(PARSED), capture_output=True, check=True)
    assert ran.stdout.decode().strip() == f"{PARSED} Parsed {PARSED.sha256}"


def test_copies_of_a_class_are_the_class() -> None:
    assert copy.copy(PARSED) is PARSED
    assert copy.deepcopy([Triage, PARSED]) == [Triage, PARSED]
    assert copy.deepcopy(PARSED) is PARSED


def test_classes_are_collected() -> None:
    made = [weakref.ref(parse(f"a{number}, b: int[0..{number}] -> c")) for number in range(300)]
    derived = [weakref.ref(PARSED.append(f"x{number}", OUTPUT)) for number in range(100)]
    gc.collect()
    assert [one for one in (*made, *derived) if one() is not None] == []


# --- edits ------------------------------------------------------------------------------------


def test_edits_return_new_classes() -> None:
    before = str(PARSED)
    assert str(PARSED.append("d", Field(output=True))) == "a, b: int -> c: list[str], d"
    assert str(PARSED.append("d", Field(input=True))) == "a, b: int, d -> c: list[str]"
    assert str(PARSED.prepend("d", Field(output=True, ge=0), int)) == "a, b: int -> d: int[0..], c: list[str]"
    assert str(PARSED.prepend("d", Field(input=True, max_length=3), "list[str]")) == (
        "d: list[str][..3], a, b: int -> c: list[str]"
    )
    assert str(PARSED.delete("a")) == "b: int -> c: list[str]"
    assert str(PARSED.with_instructions("Do it.")) == f"Do it.: {before}"
    assert str(PARSED) == before
    assert PARSED.append("d", OUTPUT).__name__ == "Parsed"


def test_one_field_is_changed_in_its_place() -> None:
    assert str(PARSED.with_updated_field("b", default=3)) == "a, b: int = 3 -> c: list[str]"
    assert str(PARSED.with_updated_field("b", ge=0, le=9).with_updated_field("b", ge=None)) == (
        "a, b: int[..9] -> c: list[str]"
    )
    assert str(PARSED.with_updated_field("a", type="float[0..1]", description="how sure")) == (
        'a: float[0..1] "how sure", b: int -> c: list[str]'
    )
    optional = PARSED.with_updated_field("b", type=int | None, le=9)
    assert str(optional.with_updated_field("b", ge=0)) == "a, b: int[0..9] | None -> c: list[str]"
    assert str(PARSED.with_updated_field("a", description="what")) == 'a "what", b: int -> c: list[str]'
    limited = PARSED.with_updated_field("b", ge=0, default=1)
    assert str(limited.with_updated_field("b", type=str, default=MISSING)) == "a, b: str -> c: list[str]"
    assert PARSED.with_updated_field("b", type=Mood).fields["b"].type == Custom("Mood", Mood)
    held = parse("m: Mood -> b", types={"Mood": Mood})
    assert str(held.with_updated_field("b", type="list[Mood]")) == "m: Mood -> b: list[Mood]"
    assert held.with_updated_field("m", type=int).fields["m"].type == Scalar("int")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda: PARSED.append("a", OUTPUT), "the field 'a' is an input and an output; rename one"),
        (lambda: PARSED.append("class", OUTPUT), "'class' is a Python keyword"),
        (lambda: PARSED.append("d", 3), "give 'd' a Field"),
        (lambda: PARSED.append("d", Field()), "give 'd' a Field"),
        (lambda: PARSED.append("d", OUTPUT, "strng"), "unknown type 'strng'"),
        (lambda: PARSED.append("d", OUTPUT, "int, e: int"), "is more than a type"),
        (lambda: PARSED.append("d", OUTPUT, "int = 3"), "is more than a type"),
        (lambda: PARSED.append("d", OUTPUT, "int 'how many'"), "is more than a type"),
        (lambda: PARSED.append("c d", OUTPUT, "int"), "'c d' is no name for a field"),
        (lambda: PARSED.append("d", OUTPUT.replace(kind="member"), "int"), "give 'd' a Field"),
        (lambda: PARSED.with_instructions(5), "instructions are a text, not int"),
        (lambda: PARSED.append("d", OUTPUT, lambda: 3), "the type of 'd': "),
        (lambda: PARSED.delete("c"), "at least one output"),
        (lambda: PARSED.with_updated_field("b", pattern="x"), "the type of 'b': 'int' takes no 'pattern'"),
        (lambda: PARSED.with_updated_field("b", low=1), "'low' is no constraint; constraints are ge, gt"),
        (lambda: PARSED.with_updated_field("b", default="x"), "the default of 'b' does not fit"),
    ],
)
def test_an_edit_that_makes_no_signature_is_refused(edit: Any, told: str) -> None:
    with pytest.raises(SignatureError) as caught:
        edit()
    assert told in caught.value.message


def test_an_unknown_field_is_a_key_error() -> None:
    for edit in (PARSED.delete, PARSED.with_updated_field):
        with pytest.raises(KeyError, match="has no field 'z'; it has a, b, c"):
            edit("z")


# --- the package ------------------------------------------------------------------------------


def test_the_facade_has_what_it_says() -> None:
    assert set(signatures.__all__) <= set(dir(signatures))
    for name in signatures.__all__:
        assert getattr(signatures, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = signatures.nothing


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys; import signatures; assert 'signatures.declare' not in sys.modules\n"
        "from signatures import Signature, Field, parse, signature\n"
        "str(parse('a: int[0..3] -> b: list[str] = []'))\n"
        "print(sorted({'pydantic', 'dspy', 'jinja2', 'regex', 'yaml', 'numpy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
