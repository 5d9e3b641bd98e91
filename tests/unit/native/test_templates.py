"""Templates: what they give, what they say when they cannot, and what they keep."""

# ruff: noqa: E501 - templates of one line

from __future__ import annotations

import dataclasses
import subprocess
import sys
from datetime import date, datetime
from decimal import Decimal
from threading import Thread
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signatures.native import templates
from signatures.native.templates import TemplateError, render


@dataclasses.dataclass
class Ticket:
    title: str
    tags: list[str]


VALUES: dict[str, Any] = {
    "name": "ada lovelace",
    "n": 3,
    "price": 2.5,
    "empty": "",
    "nothing": None,
    "tags": ["b", "A", "c"],
    "docs": [{"title": "one", "size": 2}, {"title": "Two", "size": 1, "open": True}],
    "user": {"name": "Bo", "items": "yes", "langs": {"de": "German", "en": "English"}},
    "text": "first line\nsecond line\n\nfourth",
}

# Rendered the same by plain Jinja2.
SAME = [
    "Hello {{ name }}!\n",
    "{{ name|upper }} {{ name|title }} {{ name|capitalize }} {{ '  x '|trim }}|{{ 'xxaxx'|trim('x') }}",
    "{{ name|replace('a', 'A') }} {{ name|replace('a', '', 1) }} {{ name|length }} {{ name|first }}{{ name|last }}",
    "{{ name|truncate(8) }} {{ text|truncate(15, true, '…') }} {{ text|wordcount }} {{ name|center(20) }}|",
    "{{ text|indent }}\n{{ text|indent(2, true, true) }}\n{{ text|indent('> ') }}",
    "{{ tags|join(', ') }} {{ tags|sort|join }} {{ tags|sort(reverse=true)|join }} {{ tags|sort(case_sensitive=true)|join }}",
    "{{ docs|map(attribute='title')|join('/') }} {{ docs|sum(attribute='size') }} {{ docs|join(',', attribute='size') }}",
    "{{ docs|selectattr('open', 'defined')|list|length }} {{ docs|sort(attribute='size')|map(attribute='title')|list }}",
    "{{ [3, 1, 2]|max }} {{ tags|min }} {{ [1, 2, 3, 4]|select('odd')|list }} {{ [1, 2]|reject('eq', 1)|list }}",
    "{{ ['a', 'b', 'A']|unique|list }} {{ tags|reverse|list }} {{ name|reverse }} {{ tags|map('upper')|list }}",
    "{{ nope|default('x') }} {{ empty|default('y', true) }} {{ nope is defined }} {{ nothing is none }} {{ user.nope|d }}",
    "{{ '42'|int }} {{ 'x'|int(7) }} {{ '2.5'|float }} {{ 2.567|round(2) }} {{ 2.1|round(0, 'ceil') }} {{ -3|abs }}",
    "{{ user.langs|dictsort }} {{ user.langs|items|list }} {{ user['items'] }} {{ user.langs.de }} {{ docs[0].title }}",
    "{{ '%s has %d, %.1f' % (name, n, price) }} {{ '%s'|format(n) }} {{ '%(a)s'|format(a=1) }}",
    "{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 10 }} {{ -n }} {{ '-' * 5 }} {{ [1] + [2] }}",
    "{{ name ~ n ~ none ~ true }} {{ name[:3] }} {{ tags[::-1] }} {{ name[-1] }} {{ {'a': 1, 2: [3]} }} {{ (1,) }}",
    "{% for t in tags %}{{ loop.previtem|default('-') }}{% if loop.nextitem is defined %}{{ loop.nextitem }}{% endif %};{% endfor %}",
    "{{ 1 < n <= 3 }} {{ 'a' in tags }} {{ 'ada' in name }} {{ 'de' in user.langs }} {{ n not in [1, 2] }} {{ n == 3.0 }}",
    "{{ 'yes' if n > 2 else 'no' }} {{ n is odd }} {{ n is divisibleby 3 }} {{ name is string }} {{ n is not mapping }}",
    "{% for d in docs %}{{ loop.index }}/{{ loop.length }} {{ d.title }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for d in docs if d.size > 1 %}{{ d.title }}{% else %}none{% endfor %}{% for x in [] %}{% else %}empty{% endfor %}",
    "{% for k, v in user.langs.items() %}{{ k }}={{ v }};{% endfor %}{{ loop is defined }}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is sequence else x }}{{ loop.depth }}{% endfor %}",
    "{% for x in tags %}{{ loop.cycle('odd', 'even') }}{{ loop.changed(n) }}{{ loop.revindex0 }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }} {{ range(2, 9, 3)|list }}",
    "{% macro m(a, b=2) %}[{{ a }}{{ b }}{% if caller is defined %}{{ caller() }}{% endif %}]{% endmacro %}{{ m(1) }}{% call m(3, b=4) %}C{% endcall %}",
    "{% set x %}a{{ n }}{% endset %}{{ x }}{% set y | upper %}b{% endset %}{{ y }}{% filter upper %}c{{ n }}d{% endfilter %}",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{% raw %}{{ raw }}{% endraw %}{# gone #}{{ dict(a=1) }}",
    "{{ name.split() }} {{ 'a,b'.split(',') }} {{ text.splitlines()|length }} {{ name.startswith('ada') }} {{ ' x '.strip() }}",
    "{{ ', '.join(tags) }} {{ name.find('l') }} {{ name.count('a') }} {{ user.get('name') }} {{ user.langs.keys()|list }}",
    "a\n{%- if n %} b {%- endif %}\n  {{- n -}}  c\n",
    "ä {{ 'ö€😀'|upper }} {{ '<&>' }}",
]  # fmt: skip


@pytest.mark.parametrize("template", SAME)
def test_gives_what_jinja2_gives(template: str) -> None:
    plain = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    assert render(template, VALUES) == plain.from_string(template).render(VALUES)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text(max_size=30) | st.integers() | st.lists(st.text(max_size=5))),
    st.lists(st.sampled_from(["{{ a }}", "{{ b|length }}", "{{ c|string|upper }}", "x\n", "{% if a %}1{% endif %}",
                              "{% for x in b %}{{ x }},{% endfor %}", "{{ a ~ c }}", "{{ a == b }}", "{{ c|default(1) }}"])),
)  # fmt: skip
def test_any_values_give_what_jinja2_gives(values: dict[str, Any], pieces: list[str]) -> None:
    template = "".join(pieces)
    plain = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        expected = plain.from_string(template).render(values)
    except (jinja2.TemplateError, TypeError):
        with pytest.raises(TemplateError):
            render(template, values)
    else:
        assert render(template, values) == expected


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("{{ d|tojson }}", {"d": {"b": "<é>", "a": [1, None]}}, '{"b": "<é>", "a": [1, null]}'),
        ("{{ d|tojson(indent=1) }}", {"d": [1]}, "[\n 1\n]"),
        ("{{ t.title }} {{ t.tags[0] }}", {"t": Ticket("x", ["y"])}, "x y"),
        ("{{ d.year }} {{ d.isoformat() }} {{ d.strftime('%d %B %Y') }}", {"d": date(2024, 2, 3)}, "2024 2024-02-03 03 February 2024"),
        ("{{ (b - a).days }}", {"a": datetime(2024, 1, 1), "b": datetime(2024, 1, 3)}, "2"),
        ("{{ p * 2 }} {{ p|round(1) }}", {"p": Decimal("1.25")}, "2.50 1.2"),
        ("{{ [1, 2]|map('string') }}", {}, "['1', '2']"),
        ("{{ x|int(5) }}", {"x": Decimal("1e999999999")}, "5"),
        ("{{ f }}", {"f": frozenset([1])}, "frozenset({1})"),
        ("", {}, ""),
        ("\n", {}, "\n"),
        ("\ud800{{ a }}", {"a": "\udfff"}, "\ud800\udfff"),
    ],
)  # fmt: skip
def test_gives_what_is_its_own(template: str, values: dict[str, Any], text: str) -> None:
    assert render(template, values) == text


@pytest.mark.parametrize(
    ("template", "line", "message"),
    [
        ("Dear {{ nmae }}", 1, "'nmae' has no value; did you mean 'name'?"),
        ("a\n\n{{ zzz }}", 3, "'zzz' has no value; pass it"),
        ("a\n{% if user.nmae %}x{% endif %}", 2, "a mapping has no 'nmae'; did you mean 'name'?"),
        ("{{ docs[0]\n.titel }}", 2, "did you mean 'title'?"),
        ("{% set n %}{{ n }}{% endset %}", 1, "'n' has no value yet"),
        ("{{ docs[9] }}", 1, "a list has no '9'"),
        ("\n{{ name|uper }}", 2, "unknown filter 'uper'; did you mean 'upper'?"),
        ("{{ name is strin }}", 1, "unknown test 'strin'; did you mean 'string'?"),
        ("{{ name|zzzzz }}", 1, "use one of: abs, "),
        ("{% include 'x' %}", 1, "'include' is not taken"),
        ("{% import 'x' as y %}", 1, "'import' is not taken"),
        ("{% extends 'x' %}", 1, "'extends' is not taken"),
        ("\n{% block x %}{% endblock %}", 2, "'block' is not taken"),
        ("{% autoescape true %}{% endautoescape %}", 1, "'autoescape' is not taken"),
        ("x\n{{ a b }}", 2, "expected token"),
        ("{% nope %}", 1, "unknown tag 'nope'"),
        ("{% for x in tags %}", 1, "endfor"),
        ("{{ user.items }}", 1, "'items' is a method; call it"),
        ("{{ name|upper(1) }}", 1, "upper() takes"),
        ("{{ name + n }}", 1, "'+' does not take text and a number; to put texts together use '~'"),
        ("{{ n|sum }}", 1, "'sum' takes a list, a mapping or text, got a number"),
        ("{{ 1 / 0 }}", 1, "division by zero"),
        ("{{ f(*tags) }}", 1, "write the arguments out"),
        ("{{ self }}", 1, "rename the value"),
        ("{{ tags|tojson(indent=99) }}", 1, "from 0 to 16"),
    ],
)
def test_says_what_is_wrong_where_and_how_to_fix_it(template: str, line: int, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(template, VALUES)
    assert message in caught.value.message
    assert caught.value.line == line
    assert f"line {line}" in str(caught.value)


@pytest.mark.parametrize("template", [3, None, b"x"])
def test_a_template_must_be_text(template: Any) -> None:
    with pytest.raises(TemplateError, match="must be text"):
        render(template, {})


def test_a_strangers_error_is_a_template_error() -> None:
    class Broken:
        def __str__(self) -> str:
            raise OSError("no disk")

    with pytest.raises(TemplateError, match="no disk"):
        render("{{ x }}", {"x": Broken()})


def test_an_error_without_a_text_is_a_template_error() -> None:
    class Speechless(Exception):
        def __str__(self) -> str:
            raise KeyError("no text")

    class Sour:
        def __str__(self) -> str:
            raise Speechless

    with pytest.raises(TemplateError, match="Speechless"):
        render("{{ x }}", {"x": Sour()})


def test_rendering_does_not_change_the_values() -> None:
    values = {"a": [1], "d": {"x": [2]}}
    render("{% set a = a + [2] %}{% set b = 3 %}{{ a }}{{ d.get('y') }}", values)
    assert values == {"a": [1], "d": {"x": [2]}}


# --- the cache --------------------------------------------------------------------------------------


def test_a_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from signatures.native.sandbox import program

    compiled: list[str] = []
    real = program.Program.__init__

    def counting(self: program.Program, source: str) -> None:
        compiled.append(source)
        real(self, source)

    monkeypatch.setattr(program.Program, "__init__", counting)
    for n in range(5):
        assert render("once {{ n }}", {"n": n}) == f"once {n}"
    assert compiled == ["once {{ n }}"]


def test_the_cache_is_bounded_by_number() -> None:
    for n in range(templates.CACHED_TEMPLATES + 50):
        render(f"number {n}", {})
    assert len(templates._cache) == templates.CACHED_TEMPLATES
    assert templates._cache.get("number 0") is None
    assert templates._cache.get(f"number {templates.CACHED_TEMPLATES + 49}") is not None


def test_the_cache_is_bounded_by_length() -> None:
    for n in range(20):
        render(f"{n}" + "x" * 60_000, {})
    assert templates._cache.chars <= templates.CACHED_CHARS
    assert len(templates._cache) < 20


def test_a_bad_template_is_not_kept() -> None:
    with pytest.raises(TemplateError):
        render("{{ bad", {})
    assert templates._cache.get("{{ bad") is None


def test_threads_share_the_cache() -> None:
    wrong: list[str] = []

    def work(me: int) -> None:
        for n in range(150):
            text = render(f"{{{{ me }}}} {n % 40} {{% for i in range(3) %}}{{{{ i }}}}{{% endfor %}}", {"me": me})
            if text != f"{me} {n % 40} 012":
                wrong.append(text)

    threads = [Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_importing_the_operations_imports_no_jinja2() -> None:
    code = (
        "import sys, signatures.native.operations as o; assert o.is_native('template') and not o.is_native('x');"
        "assert not {'jinja2', 'regex', 'dspy', 'pydantic'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
