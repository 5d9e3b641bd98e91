"""Validators: tables of good and bad values, and what is said about the bad ones."""

# ruff: noqa: E501 - tables

from __future__ import annotations

import json as stdlib_json
import math
import tracemalloc
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signatures.native import validators
from signatures.native.patterns import MAX_EXPANSION, _compiled
from signatures.native.validators import FORMATS, check_pattern, choice, email, length, matches, url

GOOD_EMAILS = [
    "name@example.org", "first.last@example.co.uk", "user+tag@sub.example.com", "x@y.zz", "1234567890@example.com",
    "a-b_c@ex-ample.com", "!#$%&'*+/=?^_`{|}~-@example.org", "a@123.com", "a@xn--bcher-kva.example", "a@b.c1",
    "a" * 64 + "@example.org", "a@" + "b" * 63 + ".org", "UPPER@EXAMPLE.ORG", "a@1a.b2b",
]  # fmt: skip
BAD_EMAILS = [
    "", "plainaddress", "@example.org", "a@", "a@b", "a@localhost", ".a@example.org", "a.@example.org", "a..b@example.org",
    "a b@example.org", "a@exa mple.org", "a@-example.org", "a@example-.org", "a@example..org", "a@.example.org",
    "a@example.org.", "a@b@example.org", "Joe <a@example.org>", '"quoted"@example.org', "a@[127.0.0.1]", "a@127.0.0.1",
    "ä@example.org", "a@exämple.org", "a@example.org\n", "\na@example.org", "a@example.123", "a@exa_mple.org",
    "a" * 65 + "@example.org", "a@" + "b" * 64 + ".org", "a@" + ".".join(["b" * 60] * 5), "(c)a@example.org", "a,b@example.org",
    "a\x00@example.org", "٣@example.org", "a@example.٣",
]  # fmt: skip

GOOD_URLS = [
    "http://example.com", "https://example.com/", "HTTP://EXAMPLE.COM", "http://foo.com/blah_blah_(wikipedia)_(again)",
    "http://www.example.com/wpstyle/?p=364", "https://www.example.com/foo/?bar=baz&inga=42&quux",
    "http://userid:password@example.com:8080/", "http://userid@example.com", "http://142.42.1.1:8080/",
    "http://foo.com/unicode_%e2%9c%aa", "http://example.com/#&product=browser", "http://j.mp", "http://localhost:3000",
    "http://[::1]/", "http://[2001:db8::7]:80/x", "http://1337.net", "http://a.b-c.de", "http://xn--fiqs8s.xn--fiqz9s",
    "http://-.~_!$&'()*+,;=:%40:80%2f::::::@example.com", "http://example.com?q=1/2?3", "http://example.com:65535",
    "http://223.255.255.254", "http://a.b--c.de/", "http://foo.bar/?q=Test%20URL-encoded%20stuff", "http://a@b.c/d@e",
]  # fmt: skip
BAD_URLS = [
    "", "http://", "http://.", "http://..", "http://../", "http://?", "http://??", "http://#", "http://##", "//", "//a",
    "///a", "///", "http:///a", "foo.com", "rdar://1234", "h://test", "http:// shouldfail.com", ":// should fail",
    "http://foo.bar?q=Spaces should be encoded", "http://foo.bar/foo(bar)baz quux", "ftps://foo.bar/",
    "http://-error-.invalid/", "http://-a.b.co", "http://a.b-.co", "http://3628126748", "http://1.1.1.1.1",
    "http://123.123.123", "http://256.1.1.1", "http://01.2.3.4", "http://.www.foo.bar/", "http://www.foo.bar./",
    "http://example.com:0", "http://example.com:65536", "http://example.com:", "http://example.com:x", "http://[::1",
    "http://[]/", "http://[::g]/", "http://[1.2.3.4]/", "http://example.com/%zz", "http://example.com/%4", "http://✪df.ws/123",
    "http://example.com/ä", "http://example.com\n", " http://example.com", "mailto:a@example.org", "javascript:alert(1)",
    "file:///etc/passwd", "http://foo_bar.com", "http://exa%6dple.com", "http://a@b@c.com", "http://example.com/#a#b",
    "http://example.com\\a", "http://example.com/<>", "http://" + "a" * 64 + ".com", "http://[fe80::1%25eth0]/",
]  # fmt: skip


@pytest.mark.parametrize("value", GOOD_EMAILS)
def test_an_email_address(value: str) -> None:
    assert email(value) is None


@pytest.mark.parametrize("value", [*BAD_EMAILS, None, 3, b"a@example.org", "a@" + "b." * 100_000 + "org"])
def test_no_email_address(value: Any) -> None:
    assert email(value) == "must be an email address, like name@example.org"


@pytest.mark.parametrize("value", GOOD_URLS)
def test_a_url(value: str) -> None:
    assert url(value) is None


@pytest.mark.parametrize("value", [*BAD_URLS, None, 3, b"http://a.b", "http://a.b/" + "x" * 8_000])
def test_no_url(value: Any) -> None:
    assert url(value) == "must be a URL, like http://example.org/page"


def test_a_url_has_one_of_the_schemes() -> None:
    assert url("ftp://example.org", ["ftp"]) is None
    assert url("git+ssh://example.org/x", ("GIT+SSH",)) is None
    assert url("http://example.org", ["ftp"]) == "must be a URL, like ftp://example.org/page"


GOOD_JSON = [
    "{}", "[]", "3", '"x"', "null", " [1, 2.5e3, -0] ", '{"a": 1, "a": 2}', '"\\ud800"', "1" * 10_000, "1e999999",
    b'{"a": "\xc3\xa9"}', bytearray(b"[]"), "[" * 100 + "]" * 100, '"' + "[" * 200 + '"', "[" + "[]," * 500 + "[]]",
]  # fmt: skip
BAD_JSON = [
    ("", "line 1, column 1"), ("{", "line 1, column 2"), ("{'a': 1}", "column 2"), ('{"a": 1,}', "must be JSON: "),
    ("[1,\n2,,]", "line 2, column 3"), ("NaN", "use null"), ("[-Infinity]", "use null"), ("01", "Extra data"),
    (b"\xff", "byte 1"), (b"\xff\xfe{\x00}\x00", "UTF-8"), (3, "as text or bytes"), (None, "as text or bytes"),
    ("[" * 101 + "]" * 101, "100 levels"), ("[" * 1_000_000, "100 levels"), ('{"a":' * 300_000, "100 levels"),
    ('"' + "\\" * 100_001, "must be JSON: "), ("tru", "must be JSON: "),
]  # fmt: skip


@pytest.mark.parametrize("value", GOOD_JSON)
def test_json(value: Any) -> None:
    assert validators.json(value) is None


@pytest.mark.parametrize(("value", "said"), BAD_JSON)
def test_no_json(value: Any, said: str) -> None:
    problem = validators.json(value)
    assert problem is not None
    assert said in problem


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.text(st.sampled_from('[]{}",:1 tnul\\'), max_size=12))
def test_json_is_what_parses(text: str) -> None:
    try:
        stdlib_json.loads(text)
    except ValueError:
        assert validators.json(text) is not None
    else:
        assert validators.json(text) is None


# --- patterns ---------------------------------------------------------------------------------------


def test_a_pattern_is_searched() -> None:
    assert validators.regex("abc123", r"\d+") is None
    assert validators.regex("abc", r"\d+") == "must match the pattern '\\\\d+'"
    assert validators.regex("abc1", r"^\d+$") is not None
    assert validators.regex(123, r"\d+") == "must be a text"
    with pytest.raises(ValueError, match="unbalanced"):
        validators.regex("a", ")")


EVIL = [
    (r"(a|aa)+$", "a" * 60 + "b"),
    (r"^(?:a?b?){0,5000}c$", "ab" * 5_000),
    (r"(?:a{0,1000}){0,1000}$", "a" * 2_000 + "b"),
    (r"(x+x+)+y|(a|ab)(c|bcd)*$", "x" * 5_000),
]


@pytest.mark.parametrize(("pattern", "text"), EVIL)
def test_an_evil_pattern_ends(pattern: str, text: str) -> None:
    assert check_pattern(pattern) is None
    problem = validators.regex(text, pattern)
    assert problem is None or problem.startswith(
        ("must match the pattern", "could not be checked: the pattern was not")
    )


def test_at_least_one_search_runs_out_of_time() -> None:
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        matches(*EVIL[0])


def test_a_text_too_long_is_not_searched() -> None:
    assert matches("a$", "a" * (1 << 20))
    with pytest.raises(TimeoutError, match="1,048,576"):
        matches("a$", "a" * (1 << 20) + "a")


@pytest.mark.parametrize(
    "pattern",
    [
        "", "a", r"^[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}$", r"(?i)^[\w.-]+@[\w-]+$", r"[\[\]]", r"[]a]", r"[^]a]+", r"\[",
        r"(?P<year>\d{4})-(?P=year)", r"(?<!a)b(?=c)(?!d)", r"\{3\}", "a{,5}", "x" * 1_000, r"\p{Lu}\N{DIGIT ONE}",
        "(?:a{99}){99}", r"(?>a+)b*?c??", "(" * 49 + ")" * 49, r"[a\]{9999}]", r"\\\(", "(?-i:a)",
    ],
)  # fmt: skip
def test_a_usable_pattern(pattern: str) -> None:
    assert check_pattern(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(", "missing )"), (")", "unbalanced"), ("[", "unterminated"), ("a**", "multiple repeat"), ("\\", "bad escape"),
        ("(?<n>a)(?<n", "cannot be read"), (r"\p{Nope}", "cannot be read"), (r"\L<x>", "cannot be read"),
        ("x" * 1_001, "at most 1,000"), ("(?x)a b", "verbose"), ("(?ix:a)", "verbose"), ("a(?#b)", "comments"),
        ("(?R)?a", "call itself"), (r"(a(?1)?b)*$", "call itself"), ("(?P<q>a(?&q))", "call itself"),
        ("[[:alpha:]]", "must be escaped"), ("(?V1)[a--[b]]", "must be escaped"), ("(" * 60 + ")" * 60, "50 deep"),
        ("a{100000}", "unfold"), ("(?:a{1000}){1000}", "unfold"), ("(?:a{1000}){1000}" * 50, "unfold"),
        ("(?:" * 30 + "a+" + ")+" * 30, "unfold"), ("(?:" * 30 + "a{3}" + "){3}" * 30, "unfold"),
        ("(?<=a{1000000})" * 60, "unfold"), ("(?:a{99}[)(]){99}" * 2, "unfold"), ("a{999999999999}", "unfold"),
        ("(?:a{0,1}b{1,}){5001}", "unfold"), (r"(?:a{200}[(\]]){200}", "unfold"),
    ],
)  # fmt: skip
def test_an_unusable_pattern(pattern: str, said: str) -> None:
    problem = check_pattern(pattern)
    assert problem is not None
    assert said in problem
    with pytest.raises(ValueError, match=r"."):
        matches(pattern, "a")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.text(st.sampled_from("ab()[]{}?*+|^$\\,0129:P<>=!#xi-"), max_size=40))
def test_any_pattern_is_taken_or_refused(pattern: str) -> None:
    problem = check_pattern(pattern)
    if problem is None:
        told = validators.regex("ab012" * 20, pattern)
        assert told is None or told.startswith(("must match the pattern", "could not be checked: the pattern"))


def test_compiled_patterns_are_bounded() -> None:
    for n in range(400):
        matches(f"a{n}", "a1")
    assert _compiled.cache_info().currsize == 256
    assert MAX_EXPANSION == 10_000


# --- sizes, choices, numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "least", "most", "problem"),
    [
        ("abc", 3, 3, None),
        ("", None, None, None),
        ("ab", 3, None, "must have at least 3 characters, has 2"),
        ("abcd", None, 3, "must have at most 3 characters, has 4"),
        ([1, 2], None, 1, "must have at most 1 items, has 2"),
        ({"a": 1}, 1, 1, None),
        (b"ab", 3, None, "must have at least 3 bytes, has 2"),
        (3, 1, None, "must be a text or a list: something with a length"),
        (None, None, None, "must be a text or a list: something with a length"),
    ],
)
def test_length(value: Any, least: int | None, most: int | None, problem: str | None) -> None:
    assert length(value, least, most) == problem


@pytest.mark.parametrize(
    ("value", "options", "fine"),
    [
        ("a", ["a", "b"], True), ("A", ["a", "b"], False), (1, [1.0], True), (True, [1], False), (1, [True], False),
        (True, [True], True), (None, [None], True), ([1], [[1]], True), ("a", [], False), (0, [False, "0"], False),
    ],
)  # fmt: skip
def test_choice(value: Any, options: list[Any], fine: bool) -> None:
    assert (choice(value, options) is None) is fine


def test_choice_says_what_there_is() -> None:
    assert choice("x", ["a", 2]) == "must be one of 'a', 2"
    assert str(choice("x", list(range(12)))).endswith("8, 9 or 2 others")


def test_choices_that_share_their_parts_are_compared_and_told_in_no_time() -> None:
    def laughs() -> list[Any]:
        found: list[Any] = ["ha"]
        for _ in range(40):
            found = [found, found]
        return found

    with pytest.raises(ValueError, match="too large"):
        choice(laughs(), [laughs()])
    assert choice(1, [laughs()]) == "must be one of [[…], […]]"


@pytest.mark.parametrize("nan", [math.nan, Decimal("nan"), Decimal("snan")])
def test_nan_is_no_choice(nan: Any) -> None:
    assert choice(nan, [nan, 1]) is not None
    assert choice(1, [nan, 1]) is None


def test_an_end_of_a_range_is_a_number() -> None:
    for ends in ((math.nan, None), (None, math.nan)):
        with pytest.raises(ValueError, match="not NaN"):
            validators.range(5, *ends)
    assert str(validators.range(5, 10**5_000)).startswith("must be at least")


STRINGS_OF_JSON = [
    '["' + "[" * 200 + "a" * 8_000_000 + '"]',
    '["' + "[" * 200 + r"\\" * 4_000_000 + '"]',
    '"' + "[" * 200 + r"\"" * 4_000_000,
]


@pytest.mark.parametrize("text", STRINGS_OF_JSON, ids=["plain", "escapes", "unclosed"])
def test_long_strings_of_json_take_little_memory(text: str) -> None:
    tracemalloc.start()
    try:
        validators.json(text)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(text)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("value", "ends", "problem"),
    [
        (5, (1, 5), None),
        (1, (1, 5), None),
        (5.01, (1, 5), "must be at most 5"),
        (0, (1, None), "must be at least 1"),
        (1, (1, 5, True), "must be more than 1"),
        (5, (1, 5, False, True), "must be less than 5"),
        (Decimal("2.5"), (2.5, 2.5), None),
        (10**400, (0, None), None),
        (math.inf, (0, None), None),
        (math.nan, (), "must be a number, not NaN"),
        (Decimal("nan"), (), "must be a number, not NaN"),
        (True, (0, 2), "must be a number"),
        ("3", (0, 5), "must be a number"),
        (None, (), "must be a number"),
        (3, (), None),
    ],
)
def test_range(value: Any, ends: tuple[Any, ...], problem: str | None) -> None:
    assert validators.range(value, *ends) == problem


def test_the_formats_of_signatures() -> None:
    assert {name: check("x") is None for name, check in FORMATS.items()} == {
        "email": False,
        "url": False,
        "json": False,
    }
    assert FORMATS["json"]("1") is None
