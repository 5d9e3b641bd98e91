"""Templates written to take too long, too much, or to get out: each is refused by what it counts, not by the clock."""

# ruff: noqa: E501 - templates of one line

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections import defaultdict
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from signatures.native.sandbox import meter
from signatures.native.templates import MAX_OUTPUT_CHARS, MAX_TEMPLATE_BYTES, TemplateError, render

pytestmark = pytest.mark.timeout(20)

LAUGHS = "{% set a = ['x', 'x'] %}" + "{% set a = [a, a, a, a] %}" * 30
NESTED = "{% set ns = namespace(l=[]) %}{% for i in range(20000) %}{% set ns.l = [ns.l] %}{% endfor %}"


def tree(depth: int) -> str:
    return "a" if depth == 0 else f"({tree(depth - 1)} and {tree(depth - 1)})"


TOO_MUCH = {
    # loops
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "range": "{% for a in range(100000000) %}{% endfor %}",
    "a filtered loop": "{% for a in range(90000) %}{% for b in range(90000) if false %}{% endfor %}{% endfor %}",
    "a costly test": "{% for a in range(1, 100000) if " + tree(8) + " %}{% endfor %}",
    "a costly body": "{% for a in range(1, 100000) %}{% if " + tree(10) + " %}{% endif %}{% endfor %}",
    "a recursive loop": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a doubling macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "macros that call macros": "{% macro a0() %}x{% endmacro %}"
    + "".join(f"{{% macro a{n} () %}}{f'{{{{ a{n - 1}() }}}}' * 10}{{% endmacro %}}" for n in range(1, 12))
    + "{{ a11() }}",
    "callers": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 18 + "x" + "{% endcall %}" * 18,
    "many items": "{% for a in range(20) %}{% set x = range(100000)|list %}{% endfor %}",
    "map": "{% for a in range(20) %}{% set x = range(100000)|map('string') %}{% endfor %}",
    "select": "{% for a in range(20) %}{% set x = range(100000)|select('odd') %}{% endfor %}",
    "sort": "{% for a in range(20) %}{% set x = range(100000)|sort %}{% endfor %}",
    "absent attributes": "{% set d = {'foo': 1} %}{% for a in range(99999) %}{% for b in 'ab' %}{{ d.fooo|d }}{% endfor %}{% endfor %}",
    # numbers
    "power": "{{ 2 ** 100000000 }}",
    "powers of powers": "{% set a = 3 ** 1000 %}" + "{% set a = a * a %}" * 20 + "{{ a }}",
    "a long number": "{{ 0x" + "f" * 60_000 + " }}",
    "a huge float": "{{ 1e999 }}",
    "rounding": "{{ 5|round(-1000000000) }}",
    "a Decimal as a whole number": "{{ '%d' % big }}",
    # text
    "times": "{{ 'a' * 1000000000 }}",
    "times from the left": "{{ 1000000000 * 'a' }}",
    "doubling": "{% set a = 'a' * 1000 %}" + "{% set a = a + a %}" * 30,
    "doubling with ~": "{% set a = 'a' * 1000 %}" + "{% set a = a ~ a %}" * 30,
    "set blocks": "{% set x = 'a' * 1000000 %}{% set y %}{% for i in range(9000) %}{{ x }}{% endfor %}{% endset %}",
    "constants in set blocks": "{% set y %}{% for i in range(9000) %}" + "x" * 60_000 + "{% endfor %}{% endset %}",
    "filter blocks": "{% filter upper %}{% for i in range(99999) %}" + "x" * 500 + "{% endfor %}{% endfilter %}",
    "macro text": "{% macro m() %}{% for i in range(9000) %}{{ big_text }}{% endfor %}{% endmacro %}{% set x = m()|length %}",
    "output": "{% for i in range(99999) %}{{ 'xxxxxxxxxxxx' }}{% endfor %}",
    "long values": "{% for i in range(9) %}{% set x = big_text|upper %}{% endfor %}",
    "replace": "{{ ('a' * 100000)|replace('a', 'a' * 100000) }}",
    "replace nothing": "{{ ('a' * 100000)|replace('', 'a' * 1000) }}",
    "replace method": "{{ ('a' * 100000).replace('a', 'a' * 100000) }}",
    "join": "{{ range(100000)|join('x' * 100000) }}",
    "join method": "{{ ('x' * 100000).join(range(100000)) }}",
    "indent": "{{ ('a\n' * 100000)|indent(10000) }}",
    "indent width": "{{ 'a\nb'|indent(1000000000) }}",
    "indent text": "{{ ('a\n' * 100000)|indent('x' * 10000) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "center method": "{{ 'a'.center(1000000000) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent precision": "{{ '%.1000000000f' % 1 }}",
    "percent width behind zeros": "{{ '%00000000000000100000000d' % 1 }}",
    "percent precision behind zeros": "{{ '%.000000000100000000d' % 1 }}",
    "format width behind zeros": "{{ '%00000000000000100000000d'|format(1) }}",
    "characters as a list": "{{ ('日' * 990000)|list|length }}",
    "characters in another case": "{% set x = ('ΐ' * 4000000).upper() %}",
    "characters in another case by a filter": "{% set x = ('ΐ' * 4000000)|upper %}",
    "paths of attributes": "{{ chain|map(attribute='" + "me." * 60 + "me')|length }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent of many": "{{ '%1000d' * 60000 % (1,) }}",
    "format width": "{{ '%1000000000d'|format(1) }}",
    "named format": "{{ ('%(a)s' * 10000)|format(a='x' * 10000) }}",
    "json indent": "{{ [1]|tojson(indent=1000000000) }}",
    "split": "{{ ('a,' * 3000000).split(',')|length }}",
    "search": "{% set x = 'a' * 2499 %}{% set y = 'a' * 1200 ~ 'b' %}{% for i in range(9000) %}{% set z = y in x %}{% endfor %}",
    "count": "{% set x = 'a' * 29999 %}{% set y = 'b' ~ 'a' * 98 %}{% for i in range(9000) %}{% set z = x.count(y) %}{% endfor %}",
    "strip": "{{ ('a' * 100000).strip('b' * 90000 ~ 'a') }}",
    "strftime": "{{ day.strftime('%1000000000d') }}",
    # values in values
    "laughs as text": LAUGHS + "{{ a }}",
    "laughs as length": LAUGHS + "{{ a|string|length }}",
    "laughs as JSON": LAUGHS + "{{ a|tojson }}",
    "laughs as JSON, indented": LAUGHS + "{{ a|tojson(indent=2) }}",
    "laughs compared": LAUGHS + LAUGHS.replace(" a ", " b ").replace("a,", "b,").replace("a]", "b]") + "{{ a == b }}",
    "laughs in a list": LAUGHS + LAUGHS.replace(" a ", " b ").replace("a,", "b,").replace("a]", "b]") + "{{ a in [b] }}",
    "laughs joined": LAUGHS + "{{ a|join }}",
    "laughs sorted": LAUGHS + "{{ [a, a]|sort }}",
    "laughs formatted": LAUGHS + "{{ '%s' % (a,) }}",
    "laughs as a key": LAUGHS.replace("[", "(").replace("]", ")") + "{{ {a: 1} }}",
    "laughs looked up": LAUGHS.replace("[", "(").replace("]", ")") + "{{ {}[a] }}",
    "laughs by get": LAUGHS.replace("[", "(").replace("]", ")") + "{{ {}.get(a) }}",
    "laughs, unique": LAUGHS.replace("[", "(").replace("]", ")") + "{{ [a]|unique }}",
    "deep text": NESTED + "{{ ns.l }}",
    "deep comparison": NESTED + "{{ ns.l == [ns.l] }}",
    "deep JSON": NESTED + "{{ ns.l|tojson }}",
    # reading the template
    "parentheses": "{{ " + "(" * 30_000 + "a" + ")" * 30_000 + " }}",
    "not not not": "{{ " + "not " * 15_000 + "a }}",
    "signs": "{{ " + "-" * 60_000 + "1 }}",
    "nested ifs": "{% if a %}" * 3_000 + "{% endif %}" * 3_000,
    "nested loops by the dozen": "{% for a in 'x' %}" * 30 + "{% endfor %}" * 30,
    "long sums": "{{ " + "a + " * 9_000 + "a }}",
    "long chains": "{{ a" + ".b" * 20_000 + " }}",
    "filter chains": "{{ a" + "|upper" * 9_000 + " }}",
    "many expressions": "{{ a }}" * 9_000,
    "many macros": "{% macro a() %}{% endmacro %}" * 2_000,
    "many numbers": "{{ [" + "1," * 30_000 + "] }}",
}  # fmt: skip

CHAIN: dict[str, Any] = {}
CHAIN["me"] = CHAIN

VALUES: dict[str, Any] = {"chain": [CHAIN] * 9_000, "a": "a", "big": Decimal("1e999999999"), "big_text": "x" * 1_000_000, "day": date(2024, 1, 1)}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_refused(name: str) -> None:
    template = TOO_MUCH[name]
    assert len(template) <= MAX_TEMPLATE_BYTES
    with pytest.raises(TemplateError):
        render(template, VALUES)


HEAVY_BUT_ALLOWED = [
    "{% set ns = namespace(l=[]) %}{% for i in range(30000) %}{% set ns.l = [ns.l, i ~ 'xxxxxxxx', {'a': i}] %}{% endfor %}",
    "{% set x = '\U0001f600' * 8000000 %}",
    "{% set x = ('aa ' * 150000).split() %}",
    "{{ a }}" * 3_300,
]


MEMORY_HUNGRY = [
    "many items", "map", "powers of powers", "a long number", "times", "doubling", "set blocks", "output", "replace",
    "join", "indent", "percent width behind zeros", "characters as a list", "characters in another case", "percent of many", "named format", "split", "laughs as text", "laughs as JSON, indented",
    "laughs joined", "deep text", "parentheses", "many expressions", "many macros", "many numbers",
]  # fmt: skip


def memory_of_all() -> int:
    """Return by how many bytes the most memory this process has held grows while all of these are rendered."""
    render("{{ a|upper }}", VALUES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for template in HEAVY_BUT_ALLOWED:
        render(template, VALUES)
    for name in MEMORY_HUNGRY:
        template = TOO_MUCH[name]
        with pytest.raises(TemplateError):
            render(template, VALUES)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_all_of_them_take_little_memory() -> None:
    code = "from tests.unit.native.test_template_attacks import memory_of_all; print(memory_of_all())"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert int(told.stdout) < 90e6


class Secretive:
    """Has data, and things that are none."""

    def __init__(self) -> None:
        self.shown = "shown"
        self._hidden = "hidden"
        self.module = os
        self.kind = Secretive

    def method(self) -> str:
        return "called"


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''['__cla' ~ 'ss__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ [''] |map(attribute='__class__')|list }}",
    "{{ ['']|map(attribute='__class__.__mro__')|list }}",
    "{{ ['']|selectattr('__class__')|list }}",
    "{{ ['']|sort(attribute='__class__') }}",
    "{{ ['']|join(attribute='__class__') }}",
    "{{ ['']|sum(attribute='__class__') }}",
    "{{ ''.__class__|default('x') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__}'.format_map({}) }}",
    "{{ '%s'.format }}",
    "{{ (1).__class__ }}",
    "{{ [].append(1) }}",
    "{{ {}.update(a=1) }}",
    "{{ d.pop('a') }}",
    "{{ d.setdefault('b', 1) }}",
    "{{ l.append(1) }}",
    "{{ l.sort() }}",
    "{{ function() }}",
    "{{ function.__globals__ }}",
    "{{ function }}",
    "{{ module.path }}",
    "{{ module }}",
    "{{ generator.gi_frame }}",
    "{{ generator|list }}",
    "{% for x in generator %}{% endfor %}",
    "{{ one.method() }}",
    "{{ one.method }}",
    "{{ one._hidden }}",
    "{{ one['_hidden'] }}",
    "{{ one.module }}",
    "{{ one.kind }}",
    "{{ one.__init__.__globals__ }}",
    "{{ kind() }}",
    "{{ kind.mro }}",
    "{{ [kind] }}",
    "{{ range.function }}",
    "{{ range.__class__ }}",
    "{{ namespace.function }}",
    "{% set ns = namespace() %}{{ ns.__class__ }}",
    "{% set ns = namespace() %}{{ ns._Namespace__attrs }}",
    "{% set ns = namespace() %}{{ ns }}",
    "{% set one.shown = 2 %}",
    "{% for x in [1] %}{{ loop._recurse }}{% endfor %}",
    "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func }}",
    "{% macro m() %}{% endmacro %}{{ m }}",
    "{% macro m() %}{{ caller._environment }}{% endmacro %}{% call m() %}{% endcall %}",
    "{{ self._TemplateReference__context }}",
    "{{ self }}",
    "{{ lipsum() }}",
    "{{ cycler }}",
    "{{ context }}",
    "{{ environment }}",
    "{{ [1]|map('(tick)') }}",
    "{{ [1]|map('attr', '__class__') }}",
    "{{ [1]|map('__class__') }}",
    "{{ [1]|select('(for)') }}",
    "{{ 1|xmlattr }}",
    "{{ '%r' % (kind,) }}",
    "{% for i in [1] %}{{ range(_loop_vars=1) }}{% endfor %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_nothing_gets_out(template: str) -> None:
    values: dict[str, Any] = {
        "d": {"a": 1}, "l": [2, 1], "function": len, "module": os, "one": Secretive(), "kind": Secretive,
        "generator": (x for x in [1]),
    }  # fmt: skip
    with pytest.raises(TemplateError):
        render(template, values)
    assert values["d"] == {"a": 1}
    assert values["l"] == [2, 1]


def test_reading_adds_nothing_to_a_defaultdict() -> None:
    found: defaultdict[str, int] = defaultdict(int)
    assert render("{{ d.x|default('none') }}{{ d['y']|default('none') }}", {"d": found}) == "nonenone"
    assert dict(found) == {}


def test_data_of_an_object_is_read() -> None:
    assert render("{{ one.shown }}", {"one": Secretive()}) == "shown"


def test_a_list_that_holds_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.extend([ring, ring])
    with pytest.raises(TemplateError):
        render("{{ ring }}", {"ring": ring})


def test_the_loops_may_turn_as_often_as_is_said() -> None:
    turns = "{% for a in range(N) %}{% endfor %}"
    assert render(turns.replace("N", str(meter.MAX_ITERATIONS)), {}) == ""
    twice = turns.replace("N", str(meter.MAX_ITERATIONS // 2)) + turns.replace("N", str(meter.MAX_ITERATIONS // 2 + 1))
    with pytest.raises(TemplateError, match=f"{meter.MAX_ITERATIONS:,} times in all"):
        render(twice, {})


def test_each_render_has_a_budget_of_its_own() -> None:
    template = "{% for a in range(60000) %}{% endfor %}"
    assert [render(template, {}) for _ in range(3)] == ["", "", ""]


def test_the_text_may_be_as_long_as_is_said() -> None:
    assert len(render("{{ x }}", {"x": "x" * MAX_OUTPUT_CHARS})) == MAX_OUTPUT_CHARS
    with pytest.raises(TemplateError, match="longer than 1,048,576 characters"):
        render("{{ x }}y", {"x": "x" * MAX_OUTPUT_CHARS})


def test_the_template_may_be_as_long_as_is_said() -> None:
    assert len(render("x" * MAX_TEMPLATE_BYTES, {})) == MAX_TEMPLATE_BYTES
    for template in ("x" * (MAX_TEMPLATE_BYTES + 1), "é" * (MAX_TEMPLATE_BYTES // 2 + 1)):
        with pytest.raises(TemplateError, match="longer than 65,536 bytes"):
            render(template, {})
