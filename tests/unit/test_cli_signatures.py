"""Where `dspool signatures check` finds signatures in files, and the places that it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli.signature_files import Checked, Unreadable, check_file, check_text

BAD = "a: strng -> b"  # the type, its fourth character, is wrong


def places(checked: Checked) -> list[tuple[int, int]]:
    return [(one.line, one.column) for one in checked.findings]


def python(*lines: str) -> Checked:
    return check_text("x.py", "\n".join(lines), ".py")


# --- Python: texts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "from signatures import parse; parse('{}')",
        "from signatures import parse as read; read('{}')",
        "import signatures; signatures.parse(text='{}')",
        "import signatures as s; s.signature('{}')",
        "import dspy; dspy.Predict('{}')",
        "import dspy; dspy.ChainOfThought(signature='{}')",
        "import dspy; dspy.ReAct('{}', tools=[])",
        "import dspy as d; d.Signature('{}', 'Answer.')",
        "from dspy import Predict; Predict('{}')",
        "client.predict('{}', a=1)",
        "client.module('dspy.Predict', '{}')",
        "client.module('dspy.Predict', signature='{}')",
        "client.execute('dspy.Predict', {{'signature': '{}', 'inputs': {{}}}})",
        "client.deploy('qa', {{'module': 'dspy.Predict', 'signature': '{}'}})",
        "f(é='日本', x={{'signature': '{}'}})",
        "import dspy; dspy.Predict(r'{}')",
        "import dspy; dspy.Predict('''{}''')",
    ],
)
def test_python_texts_are_found_and_placed(line: str) -> None:
    checked = python("", line.format(BAD))
    assert places(checked) == [(2, line.format(BAD).index("strng") + 1)]
    assert checked.findings[0].message == "unknown type 'strng'; did you mean 'str'?"
    assert checked.signatures == 1
    assert places(python(line.format("a: str -> b"))) == []


def test_a_decorator_is_found() -> None:
    checked = python("from signatures import signature", f"@signature('{BAD}')", "def qa(): 'Answer.'")
    assert places(checked) == [(2, 16)]


def test_a_decorated_class_lends_the_classes_in_its_body() -> None:
    lines = ("@signature('a: Kind -> b')", "class Sorted:", "    class Kind: ...")
    assert places(python("from signatures import signature", *lines)) == []
    assert places(python("from signatures import signature", *lines[:2], "    'Sort.'")) == [(2, 16)]


def test_every_mistake_of_a_text_over_several_lines_has_its_place() -> None:
    checked = python("import dspy", "qa = dspy.Predict('''a: strng,", "   c: lst ->", " b''')")
    assert places(checked) == [(2, 25), (3, 7)]


@pytest.mark.parametrize("literal", [r"'a: strng -\x3e b'", "'a: strng ' '-> b'"])
def test_a_text_with_escapes_is_placed_at_its_literal(literal: str) -> None:
    checked = python("import dspy", f"dspy.Predict({literal})")
    assert places(checked) == [(2, 14)]
    assert checked.findings[0].message.endswith("(line 1, column 4 of the text)")


@pytest.mark.parametrize(
    "line",
    [
        "import ast; ast.parse('x = 1')",
        "def parse(text): ...\nparse('no signature')",
        "model.predict('some text')",
        "container.module('web', 'nginx')",
        "{'signature': 'c2lnbmVk'}",
        "import dspy; dspy.Predict(text)",
        "import dspy; dspy.Predict(f'{a} -> b')",
        "import dspy; dspy.LM('openai/gpt')",
        r"pattern = '\d'",
        "import dspy\nclass Ticket: ...\ndspy.Predict('a: Ticket -> b: list[Ticket]')",
        "import dspy\nfrom shop import Ticket\ndspy.Predict('a: Ticket -> b')",
        "import dspy\nfrom shop import *\ndspy.Predict('a: Ticket -> b')",
        "from signatures import parse\nparse('a: Ticket -> b', types={'Ticket': object})",
        "from signatures import parse\nparse('a: Ticket -> b', types=registry)",
    ],
)
def test_what_is_not_certainly_wrong_is_left_alone(line: str) -> None:
    assert places(python(line)) == []


def test_a_type_of_the_module_needs_a_registry_in_the_engine() -> None:
    text = "parse('a: Ticket -> b')"
    assert places(python("from signatures import parse", "class Ticket: ...", text)) == [(3, 11)]
    types = "parse('a: Ticket -> b', types={'Invoice': Invoice})"
    assert places(python("from signatures import parse", types)) == [(2, 11)]


# --- Python: declared classes ---------------------------------------------------------------------

HEAD = ("from typing import ClassVar, Literal, Optional", "from signatures import Signature, Field", "")


@pytest.mark.parametrize(
    ("body", "place", "said"),
    [
        ("    a: strng = Field(input=True)", (5, 8), "unknown type 'strng'; did you mean 'str'?"),
        ("    a: 'strng' = Field(input=True)", (5, 8), "unknown type 'strng'"),
        ("    a: list[Tickt] = Field(input=True)", (5, 13), "unknown type 'Tickt'; did you mean 'Ticket'?"),
        ("    a: str", (5, 5), "neither an input nor an output"),
        ("    a: str = Field()", (5, 14), "either an input or an output"),
        ("    a: str = Field(input=True, output=True)", (5, 14), "either an input or an output"),
        ("    _a: str = Field(input=True)", (5, 5), "starts with an underscore"),
        ("    signature = Field(input=True)", (5, 5), "taken by DSPy"),
        ("    a: str = Field(input=True, ge=0)", (5, 14), "takes no 'ge'"),
        ("    a: int = Field(input=True, ge=3, le=2)", (5, 14), "the range holds nothing"),
        ("    a: int = Field(input=True, default='x')", (5, 14), "does not fit its type"),
    ],
)
def test_a_declared_class_is_judged(body: str, place: tuple[int, int], said: str) -> None:
    rest = ("    b: Optional[int] = Field(output=True)", "class Ticket: ...")
    checked = python(*HEAD, "class Triage(Signature):", body, *rest)
    assert places(checked) == [place]
    assert said in checked.findings[0].message
    assert checked.signatures == 1


def test_a_declared_class_without_outputs() -> None:
    checked = python(*HEAD, "class Triage(Signature):", "    a: str = Field(input=True)")
    assert places(checked) == [(4, 1)]
    assert "no output" in checked.findings[0].message


@pytest.mark.parametrize(
    "lines",
    [
        (
            "class Triage(Signature):",
            "    a: Ticket = Field(input=True)",
            "    b = Field(output=True)",
            "class Ticket: ...",
        ),
        ("class Triage(Signature):", "    kind: ClassVar[str] = 'x'", "    b: str = Field(output=True)"),
        ("class Triage(Signature):", "    b: str = make_field()"),
        (
            "class Base(Signature):",
            "    b: str = Field(output=True)",
            "class More(Base):",
            "    a: str = Field(input=True)",
        ),
        ("class Triage(Signature, Mixin):", "    a: str = Field(input=True)"),
        ("class Other:", "    a: strng"),
        ("Age = int", "class Triage(Signature):", "    a: Age = Field(input=True, ge=0)", "    b = Field(output=True)"),
        (
            "class Triage(Signature):",
            "    a: str | None = Field(input=True, max_length=5)",
            "    b = Field(output=True)",
        ),
        ("class Triage(Signature):", "    a: int = Field(input=True, ge=LEAST)", "    b: str = Field(output=True)"),
        ("class Triage(Signature):", "    a: Literal['x', 'strng'] = Field(input=True)", "    b = Field(output=True)"),
    ],
)
def test_a_declared_class_that_may_be_right_is_left_alone(lines: tuple[str, ...]) -> None:
    assert python(*HEAD, *lines).findings == ()


def test_classes_of_dspy() -> None:
    head = ("import dspy", "class QA(dspy.Signature):", "    a: str = dspy.InputField()")
    assert places(python(*head, "    b: strng = dspy.OutputField()")) == [(4, 8)]
    assert places(python(*head, "    b: str")) == [(4, 5)]
    assert places(python(*head, "    b: str = dspy.OutputField(desc='x', ge=0)")) == []


# --- other files ----------------------------------------------------------------------------------


def test_lines() -> None:
    checked = check_text("x", f"# these\n\na -> b\n  {BAD}\nno arrow\n")
    assert places(checked)[0] == (4, 6)
    assert checked.signatures == 3
    assert {line for line, _ in places(checked)} == {4, 5}


def test_yaml(tmp_path: Path) -> None:
    path = tmp_path / "programs.yaml"
    path.write_text(
        f"programs:\n"
        f"  qa: {{signature: '{BAD}'}}\n"
        f"  plain:\n    signature: {BAD.replace(': ', ':')}\n"
        f"  block:\n    signature: |\n      a,\n      c: strng -> b\n"
        f'  escaped: {{signature: "a: strng \\x2d> b"}}\n'
        f"  right: {{signature: a -> b}}\n"
        f"  other: {{text: no signature}}\n"
        f"---\n- signature: 5\n- &x [{{signature: 'a -> b'}}, *x]\n"
    )
    checked = check_file(path)
    assert places(checked) == [(2, 23), (4, 18), (8, 10), (9, 24)]
    assert checked.signatures == 6


def test_json() -> None:
    document = {"é signature": "x", "programs": [{"signature": BAD, "note": '"signature": "no"'}, {"signature": ["-"]}]}
    text = json.dumps(document, indent=2, ensure_ascii=False)
    line = next(number for number, one in enumerate(text.split("\n"), 1) if BAD in one)
    checked = check_text("x.json", text, ".json")
    assert places(checked) == [(line, text.split("\n")[line - 1].index("strng") + 1)]
    assert checked.signatures == 1
    escaped = check_text("x.json", '{"\\u0073ignature": "a: strng -\\u003e b"}', ".json")
    assert places(escaped) == [(1, 20)]


def test_json_lines() -> None:
    text = f'{{"signature": "a -> b"}}\n\n{{"n": 1, "signature":\t"{BAD}"}}\n'
    checked = check_text("x.jsonl", text, ".jsonl")
    assert places(checked) == [(3, text.split("\n")[2].index("strng") + 1)]
    assert checked.signatures == 2


@pytest.mark.parametrize(
    ("suffix", "content", "said"),
    [
        (".py", b"def (", "no Python"),
        (".py", b"x = '\0'", "no Python"),
        (".json", b"{", "no JSON"),
        (".jsonl", b"{}\n{", "line 2"),
        (".yaml", b"a: [", "no YAML"),
        (".txt", b"\xff", "no UTF-8"),
        (".json", b"[" * 100_000, "nested too deep"),
        (".yaml", b"[" * 20_000, "nested too deep"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, suffix: str, content: bytes, said: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=said) as caught:
        check_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["-" * 100_000 + "1", "(" * 300 + ")" * 300])
def test_python_that_is_nested_too_deep_for_it(text: str) -> None:
    with pytest.raises(Unreadable):
        python(f"x = {text}")
    declared = ("from signatures import Signature, Field", "class A(Signature):")
    assert python(*declared, f"    b: '{text}' = Field(output=True)").signatures == 1


def test_numbers_of_many_digits_are_json() -> None:
    assert places(check_text("x.json", f'{{"n": {"9" * 5000}, "signature": "{BAD}"}}', ".json")) != []


def test_of_a_long_line_the_part_around_the_place_is_shown() -> None:
    text = "[" + ",".join(['{"signature": "a -> b"}'] * 5_000 + [f'{{"signature": "{BAD}"}}']) + "]"
    _, line, caret = check_text("x.json", text, ".json").told()
    assert len(line) < 300
    assert line[caret.index("^") :].startswith("strng")


def test_how_many_more_there_are_is_told_last() -> None:
    findings = check_text("x", "# first\n" + ", ".join(f"a{number}: strng" for number in range(60)) + " -> b").findings
    assert findings[-1].message.startswith("and ")
    assert (findings[-1].line, findings[-1].column) == (findings[-2].line, findings[-2].column)


def test_what_is_told() -> None:
    checked = check_text("x.py", f"import dspy\ndspy.Predict('{BAD}')\t# x", ".py")
    assert list(checked.told()) == [
        "x.py:2:18: unknown type 'strng'; did you mean 'str'?",
        f"  dspy.Predict('{BAD}') # x",
        "                   ^",
    ]
