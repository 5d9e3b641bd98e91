"""Any text is a signature or a SignatureError: soon, without an import, and what is one reads back equal."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from types import FrameType, ModuleType
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signatures.errors import SignatureError
from signatures.model import Spec
from signatures.text.parser import read
from tests.support.signatures import CUSTOMS, specs

# A bad day of a busy machine, far below what anything but linear time would take.
_PATIENCE_S: Final = 1.0


class Watcher(MetaPathFinder):
    """Notes what somebody tries to import."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        self.asked.append(fullname)


@pytest.fixture(scope="module")
def watcher() -> Iterator[Watcher]:
    # What patterns, formats and classes need is loaded with the first of them.
    read("a: str['x', email] = 'xa@b.example', b: Point = {'x': 1} -> c: Colour = 'red'", types=CUSTOMS)
    read("a: datetime = '2024-01-01T00:00:00', b: Decimal = 1, c: UUID -> c2: timedelta = 'PT1H'")
    watcher = Watcher()
    sys.meta_path.insert(0, watcher)
    yield watcher
    sys.meta_path.remove(watcher)


def attempt(text: str, watcher: Watcher) -> Spec | SignatureError:
    """Read a text; check the time it takes, the imports it asks for, and what is told about it."""
    loaded = set(sys.modules)
    began = time.perf_counter()
    found: Spec | SignatureError
    try:
        found = read(text, types=CUSTOMS)
    except SignatureError as exc:
        found = exc
    assert time.perf_counter() - began < _PATIENCE_S
    assert watcher.asked == []
    assert set(sys.modules) == loaded
    if isinstance(found, SignatureError):
        assert str(found)
        lines = text.split("\n")
        for problem in found.problems[:20]:
            assert 1 <= problem.line <= len(lines)
            assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1
            assert problem.message
    else:
        # The reader has seen all that a spec looks at, and its text means the same.
        assert Spec(found.inputs, found.outputs, found.instructions) == found
        assert len(str(found)) > 20_000 or read(str(found), types=CUSTOMS) == found
    return found


@settings(max_examples=120, derandomize=True, deadline=None)
@given(specs())
def test_a_signature_survives_its_text(spec: Spec) -> None:
    again = read(str(spec), types=CUSTOMS)
    assert again == spec
    assert (str(again), again.sha256, again.instructions) == (str(spec), spec.sha256, spec.instructions)
    for one, other in zip((*again.inputs, *again.outputs), (*spec.inputs, *spec.outputs), strict=True):
        assert repr(one.type) == repr(other.type)
        assert (one.name, one.kind, one.description) == (other.name, other.kind, other.description)
        assert (one.constraints, one.typed) == (other.constraints, other.typed)


_PIECES: Final = (
    "a", "b", "question", "->", "->", ":", ",", "=", "|", "[", "]", "(", ")", "{", "}", " ", "\n", "\\\n", "# x",
    "'", '"',
    "str", "int", "list", "dict", "tuple", "Literal", "Annotated", "Optional", "Field", "ge", "dspy.Image", "dspy.Code",
    "Point", "0", "1", "..", "...", "<", "-1", "1e5", "0x", "'x'", "b'x'", "None", "True", "email", "multiple_of", "*",
    "/", ".", ";", "\u2192", "ä", "🙂", "\0", "\ud800", "\u200b", "'''", "\\", "class", "import os", "__import__('os')",
)  # fmt: skip


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=40).map("".join))
def test_any_pieces_are_read_or_refused(watcher: Watcher, text: str) -> None:
    attempt(text, watcher)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_any_text_is_read_or_refused(watcher: Watcher, text: str) -> None:
    attempt(text, watcher)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([("utf-8", "surrogateescape"), ("latin-1", "strict")]))
def test_any_bytes_are_read_or_refused(watcher: Watcher, data: bytes, codec: tuple[str, str]) -> None:
    attempt(data.decode(*codec), watcher)


_VALID: Final = (
    "math problem: text: str[..80] 'the text', n: int[0..9] = 3 -> kind: Literal['a', \"b\"], score: float[0<..<1]",
    "a: list[dict[str, int | None]] = [{'x': 1}], b: {name: str, age: int 'years' = 3} -> c: dspy.Code['python']",
    "a: Annotated[tuple[int, ...], 'n', Field(max_length=3)] = (1,), b: Optional[Point] -> c: Union[date, str]",
)


def test_a_signature_with_a_few_changes_is_read_or_refused(watcher: Watcher) -> None:
    dice = random.Random(7)
    for _ in range(1_500):
        text = list(dice.choice(_VALID))
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(text))
            match dice.randrange(4):
                case 0:
                    del text[at]
                case 1:
                    text.insert(at, dice.choice(_PIECES))
                case 2:
                    text[at] = dice.choice(_PIECES)
                case _:
                    other = dice.randrange(len(text))
                    text[at], text[other] = text[other], text[at]
        attempt("".join(text), watcher)


# --- work -------------------------------------------------------------------------------------

# Texts of about n characters that would make a careless reader slow, or deep.
HOSTILE: Final[dict[str, Callable[[int], str]]] = {
    "unknown types": lambda n: ", ".join(f"u{i}: t{i}" for i in range(n // 11)) + " -> b",
    "unknown types on lines": lambda n: "\n".join(f"u{i}: t{i}," for i in range(n // 11)) + " -> b",
    "long names": lambda n: ", ".join("x" * 60 + str(i) for i in range(n // 66)) + " -> b",
    "one name again": lambda n: "a," * (n // 2) + " -> b",
    "members again": lambda n: "a: {" + "x," * (n // 2) + "} -> b",
    "words": lambda n: "w " * (n // 2) + "-> b",
    "words on lines": lambda n: "w\n" * (n // 2) + "-> b",
    "a long prefix": lambda n: "w " * (n // 2) + ": a -> b",
    "a long prefix with commas": lambda n: "w," * (n // 2) + " x y: a -> b",
    "one prefix that is none": lambda n: "w," * (n // 2),
    "brackets": lambda n: "a: " + "[" * n,
    "lists": lambda n: "a: " + "list[" * (n // 5) + " -> b",
    "unions of literals": lambda n: "a: " + " | ".join(f"Literal[{i}]" for i in range(n // 13)) + " -> b",
    "one union member again": lambda n: "a: " + " | ".join(["list[int]"] * (n // 12)) + " -> b",
    "choices": lambda n: "a: Literal[" + ", ".join(map(str, range(n // 6))) + "] -> b",
    "optionals": lambda n: "a: " + "Optional[" * (n // 9) + "int" + "]" * (n // 9) + " -> b",
    "records": lambda n: "a: " + "{x: " * (n // 4) + " -> b",
    "braces": lambda n: "a: " + "{x: {" * (n // 6) + "int" + "}" * (n // 6) + " -> b",
    "members": lambda n: "a: {" + ", ".join(f"m{i}: int" for i in range(n // 12)) + "} -> b",
    "notes": lambda n: "a: Annotated[str" + ", 'x'" * (n // 5) + "] -> b",
    "arguments": lambda n: "a: Annotated[int" + ", Field(ge=0)" * (n // 13) + "] -> b",
    "patterns": lambda n: "a: str[" + "'x', " * (n // 5) + "] -> b",
    "an evil pattern": lambda n: "a: str['" + "(" * n + "'] -> b",
    "descriptions": lambda n: "a " + '"" ' * (n // 3) + "-> b",
    "strings in a row": lambda n: "a = " + "'x' " * (n // 4) + "-> b",
    "defaults": lambda n: "a: int " + "= 3 " * (n // 4) + "-> b",
    "dots": lambda n: "a: " + "x." * (n // 2) + "x -> b",
    "ellipses": lambda n: "a: tuple[" + "..., " * (n // 5) + "] -> b",
    "glue": lambda n: "a-" * (n // 2) + "a -> b",
    "digits": lambda n: "a: int = " + "9" * n + " -> b",
    "signs": lambda n: "a: int = " + "-" * n + "1 -> b",
    "parentheses": lambda n: "a: int = " + "(" * (n // 2) + "1" + ")" * (n // 2) + " -> b",
    "sums": lambda n: "a: complex = " + "1+1j" * (n // 4) + " -> b",
    "dicts": lambda n: "a: dict = {" + ", ".join(f"{i}: [{i}]" for i in range(n // 14)) + "} -> b",
    "escapes": lambda n: "a = '" + "\\x41" * (n // 4) + "' -> b",
    "semicolons": lambda n: "a;" * (n // 2) + " -> b",
    "arrows": lambda n: "->" * (n // 2),
    "dashes": lambda n: "-" * n,
    "open quotes": lambda n: "a'" * (n // 2),
    "open long quotes": lambda n: "'''\\" * (n // 4),
    "backslashes": lambda n: "\\" * n,
    "blanks": lambda n: "a -> b" + " " * n,
    "blanks before": lambda n: "-" + " " * n,
    "comments": lambda n: "#\n" * (n // 2) + "a -> b",
    "controls": lambda n: "\0" * n,
}  # fmt: skip


def _calls(text: str) -> int:
    """Return how many functions are called for a text: a count of work that no other process changes."""
    count = 0

    def noted(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    previous = sys.getprofile()
    sys.setprofile(noted)
    try:
        read(text)
    except SignatureError as exc:
        str(exc)
    finally:
        sys.setprofile(previous)
    return count


@pytest.mark.parametrize("name", HOSTILE)
def test_work_grows_with_the_length_alone(name: str, watcher: Watcher) -> None:
    text = HOSTILE[name]
    attempt(text(4_000), watcher)
    attempt(text(19_900)[:20_000], watcher)
    small, large = _calls(text(1_000)), _calls(text(2_000))
    # Close names are searched for a few mistakes, whatever the length: hence the constant.
    assert large < 2.3 * small + 3_000
    assert large < 40 * 2_000 + 60_000


@pytest.mark.parametrize("opening", ["[", "(", "{", "list[", "{x: ", "a: {", "Literal[", "Annotated[", "Optional["])
@pytest.mark.parametrize("head", ["", "a: ", "a -> b: ", "a = ", "a: int["])
def test_depth_never_becomes_a_recursion(opening: str, head: str, watcher: Watcher) -> None:
    limit = sys.getrecursionlimit()
    depth = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + 250)
    try:
        attempt(head + opening * (19_000 // len(opening)), watcher)
    finally:
        sys.setrecursionlimit(limit)


def test_reading_imports_neither_what_is_named_nor_the_heavy_ones() -> None:
    code = (
        "import sys\n"
        "from signatures.text.parser import read\n"
        "before = set(sys.modules)\n"
        "for text in ('a: antigravity -> b', 'a: list[int] = [1] -> b: Literal[\"x\"]', 'x y: a: this.that -> b'):\n"
        "    try: read(text)\n"
        "    except ValueError: pass\n"
        "assert set(sys.modules) == before, set(sys.modules) - before\n"
        "for name in ('dspy', 'pydantic', 'jinja2', 'regex', 'bridge', 'pools', 'orchestrator'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
