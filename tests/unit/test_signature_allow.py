"""The allow-list of signature texts: what passes, what does not, and where the caret points."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signatures import SignatureError
from signatures.allow import check


@pytest.mark.parametrize(
    ("text", "inputs", "outputs"),
    [
        ("question -> answer", ("question",), ("answer",)),
        (" a , b:int->c : str , d ", ("a", "b"), ("c", "d")),
        ("-> joke", (), ("joke",)),
        ("a: list[dict[str, int | None]] -> b: Literal['x', 2, True, None]", ("a",), ("b",)),
        ("a: tuple[int, ...], t: tuple[str, int] -> b: frozenset[str]", ("a", "t"), ("b",)),
        ("a: Optional[str], b: Union[int, str], c: Any -> d: Annotated[int, 'a note']", ("a", "b", "c"), ("d",)),
        ("a: typing.Optional[typing.List[int]] -> b: typing.Any", ("a",), ("b",)),
        ("i: dspy.Image, h: dspy.History -> c: dspy.Code['python'], t: dspy.ToolCalls", ("i", "h"), ("c", "t")),
        ("question,\r\n  context: list[str]\n-> answer", ("question", "context"), ("answer",)),
        ("frage_ä -> antwort", ("frage_ä",), ("antwort",)),
    ],
)
def test_accepts(text: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    assert check(text) == (inputs, outputs)


@pytest.mark.parametrize(
    ("text", "part", "line", "column"),
    [
        ("", "is empty", 1, 1),
        ("question", "needs '->'", 1, 9),
        ("a -> b -> c", "exactly one '->'", 1, 8),
        ("a ->", "at least one output", 1, 3),
        ("a: strr -> b", "did you mean 'str'", 1, 4),
        ("a -> b: Image", "did you mean 'dspy.Image'", 1, 9),
        ("a -> b: dspy.LM", "unknown type 'dspy.LM'", 1, 9),
        ("a: os.system -> b", "unknown type 'os.system'", 1, 4),
        ("a: typing.sys -> b", "unknown type 'typing.sys'", 1, 4),
        ("a: dspy.utils.Image -> b", "unknown type 'dspy.utils.Image'", 1, 4),
        ("a: list[os] -> b", "unknown type 'os'", 1, 9),
        ("a: str | subprocess -> b", "unknown type 'subprocess'", 1, 10),
        ("a: Literal[-1] -> b", "Literal takes", 1, 12),
        ("a: Optional -> b", "needs arguments", 1, 4),
        ("a: dict[str] -> b", "takes 2 arguments", 1, 4),
        ("a: str[int] -> b", "takes no arguments", 1, 4),
        ("a: 'Foo' -> b", "is no type", 1, 4),
        ("a: f() -> b", "is no type", 1, 4),
        ("a: None -> b", "None alone", 1, 4),
        ("a: int = 3 -> b", "no default value", 1, 10),
        ("*a -> b", "name each field", 1, 2),
        ("a, *, b -> c", "not possible", 1, 1),
        ("a, /, b -> c", "not possible", 1, 1),
        ("_a -> b", "underscore", 1, 1),
        ("a, a -> b", "named twice", 1, 4),
        ("a -> a", "names must differ", 1, 6),
        ("a -> instructions", "taken by DSPy", 1, 6),
        ("lm -> b", "taken by DSPy", 1, 1),
        ("class -> b", "cannot be read here", 1, 1),
        ("a b -> c", "cannot be read here", 1, 3),
        ("ä: lst[int] -> b", "did you mean 'list'", 1, 4),
        ("a,\nü: lst[int] -> b", "did you mean 'list'", 2, 4),
        ("a): pass\nimport os\ndef g(b -> c", "lists fields only", 1, 1),
        ("a: " + "list[" * 60 + "str" + "]" * 60 + " -> b", "nested deeper", 1, 109),
    ],
)
def test_refuses_and_points_at_the_place(text: str, part: str, line: int, column: int) -> None:
    with pytest.raises(SignatureError) as caught:
        check(text)
    assert part in caught.value.message
    assert (caught.value.line, caught.value.column) == (line, column)
    assert caught.value.text == text


def test_the_caret_stands_below_the_fault() -> None:
    with pytest.raises(SignatureError) as caught:
        check("question: strr -> answer")
    shown, caret = str(caught.value).split("\n")[1:]
    assert shown[caret.index("^") :].startswith("strr")


def test_the_caret_of_a_very_long_line_stays_in_a_window() -> None:
    with pytest.raises(SignatureError) as caught:
        check(", ".join(f"field_{n}" for n in range(500)) + ", x: nope -> b")
    shown, caret = str(caught.value).split("\n")[1:]
    assert shown[caret.index("^") :].startswith("nope")
    assert len(shown) < 200


@pytest.mark.parametrize("value", [None, 7, b"a -> b", ["a -> b"]])
def test_only_a_text_is_a_signature(value: object) -> None:
    with pytest.raises(SignatureError, match="a signature is a text"):
        check(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["a" * 30_000, "a: " + "(" * 9_000 + " -> b", "a\0 -> b", "a\ud800 -> b", "a -> b #"])
def test_hostile_texts_are_refused_not_raised(text: str) -> None:
    with pytest.raises(SignatureError):
        check(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab_:,->[]|.'\"() \n\r*=\\#Literalstrdspy1ä", max_size=60))
def test_any_text_is_accepted_or_refused(text: str) -> None:
    fault: SignatureError | None = None
    fields: tuple[str, ...] = ()
    try:
        fields = sum(check(text), ())
    except SignatureError as exc:
        fault = exc
    assert len(set(fields)) == len(fields)
    assert fault is None or (fault.line >= 1 and fault.column >= 1 and str(fault))


def test_reading_a_signature_imports_nothing() -> None:
    code = (
        "import sys; from signatures.allow import check; before = set(sys.modules)\n"
        "try: check('a: antigravity -> b')\nexcept ValueError: pass\n"
        "assert set(sys.modules) == before; assert 'dspy' not in sys.modules and 'bridge' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
