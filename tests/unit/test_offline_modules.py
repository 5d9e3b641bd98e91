"""What the offline model makes of prompts that ask for code, for tool calls, and of types in BAML's words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge.worker.lm.agent import is_turn, next_turn
from bridge.worker.lm.baml import read_baml
from bridge.worker.lm.coder import is_code, next_code
from bridge.worker.lm.prompt import Prompt, Task, read_prompt
from bridge.worker.lm.rules import computed
from bridge.worker.lm.schema import read_schema

STRING = {"type": "string"}
TOOLS = (
    "weather, whose description is <desc>Tell the weather of a city.</desc>. It takes arguments "
    "{'city': {'type': 'string'}}.",
    "submit, whose description is <desc>Submit.</desc>. It takes arguments "
    "{'answer': {'type': 'string'}, 'n': {'type': 'integer'}}.",
)
SYSTEM = """Your input fields are:
1. `question` (str):
2. `tools` (list[Tool]):
Your output fields are:
1. `next_thought` (str):
2. `tool_calls` (ToolCalls):
All interactions will be structured in the following way, with the appropriate values filled in.

[[ ## question ## ]]
{question}
In adhering to this structure, your objective is: Do."""


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("string", STRING),
        ("int", {"type": "integer"}),
        ("float or null", {"anyOf": [{"type": "number"}, {"type": "null"}]}),
        ('"a" or "b, or c"', {"enum": ["a", "b, or c"]}),
        ('"a" or 1 or null', {"anyOf": [{"enum": ["a", 1]}, {"type": "null"}]}),
        ("int[][]", {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
        ("dict[string, boolean]", {"type": "object", "additionalProperties": {"type": "boolean"}}),
        ("# Says: a {\n{\n  # why\n  x: int,\n}", {"type": "object", "properties": {"x": {"type": "integer"}}}),
        ("[\n  {\n    x: date,\n  }\n]", {
            "type": "array",
            "items": {"type": "object", "properties": {"x": {"type": "string", "format": "date"}}},
        }),
        ("", STRING),
        ("{ x: ", STRING),
        ("Decimal", STRING),
    ],
)  # fmt: skip
def test_bamls_words_are_read(text: str, schema: Any) -> None:
    assert read_baml(text) == schema


def asked(outputs: list[str], instructions: str, **inputs: str) -> Prompt:
    fields = "\n".join(f"{number}. `{name}` (str):" for number, name in enumerate(outputs, 1))
    names = "\n".join(f"{number}. `{name}` (str):" for number, name in enumerate(inputs, 1))
    system = (
        f"Your input fields are:\n{names}\nYour output fields are:\n{fields}\nAll interactions will be "
        "structured in the following way, with the appropriate values filled in.\n\n[[ ## x ## ]]\n"
        f"your objective is: {instructions}"
    )
    return read_prompt(system, [("user", "\n\n".join(f"[[ ## {name} ## ]]\n{text}" for name, text in inputs.items()))])


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("what is 17 * 23?", "17 * 23"),
        ("compute (2 + 3) * 4.", "(2 + 3) * 4"),
        ("who wrote Hamlet?", "'who wrote Hamlet?'"),
        ("on 2024-01-02", "'on 2024-01-02'"),
    ],
)
def test_code_computes_the_sum_of_a_question(question: str, expression: str) -> None:
    mapping = "You must structure it, with the correct value mapping for the field(s): `total`, `unit`."
    prompt = asked(["reasoning", "generated_code"], mapping, question=question)
    assert is_code(prompt)
    submitted = f"```python\nSUBMIT({{'total': {expression}, 'unit': {expression}}})\n```"
    assert next_code(prompt)["generated_code"] == submitted
    act = next_code(asked(["generated_code", "finished"], "Do.", question=question))
    assert act == {"generated_code": f"```python\nprint({expression})\n```", "finished": True}


def test_a_recursive_model_gets_values_of_its_types() -> None:
    instructions = """Given.
        You are tasked with producing the following outputs given the inputs `text`, `query`:
        - {answer}
        - {n}        # note: the value you produce must be a single int value
        - {sure}        # note: the value you produce must be True or False
        - {tone}        # note: the value you produce must exactly match (no extra characters) one of: good; bad
        You have access to a Python REPL environment."""
    prompt = asked(["reasoning", "code"], instructions, variables_info="`query`: 2 ** 5", repl_history="")
    code = next_code(prompt)["code"]
    assert code == "```python\nSUBMIT(answer=str(query)[:500], n=2 ** 5, sure=True, tone='good')\n```"


@pytest.mark.parametrize(
    ("text", "value"), [('{"output": {"answer": 391}}', "391"), ('"391\\n"', "391"), ("sunny", "sunny"), ("{}", "{}")]
)
def test_what_code_came_to_is_the_innermost_value(text: str, value: str) -> None:
    assert computed(text) == value


def turn(*turns: tuple[str, str], submits: bool = False) -> Any:
    prompt = read_prompt(
        SYSTEM, [*turns[:-1], (turns[-1][0], f"{turns[-1][1]}\n\n[[ ## tools ## ]]\n{json.dumps(TOOLS)}")]
    )
    assert is_turn(prompt)
    (called,) = next_turn(prompt, 0, submits=submits)["tool_calls"]["tool_calls"]
    return called


def test_an_agent_calls_the_nearest_tool_once_then_submits_what_it_said() -> None:
    asks = ("user", "[[ ## question ## ]]\nthe weather of the city Rome?")
    calls = ("assistant", "[[ ## next_thought ## ]]\nx")
    says = ("user", '[[ ## tool_call_results ## ]]\n{"tool_call_results": [{"name": "weather", "value": "7 suns"}]}')
    assert turn(asks) == {"name": "weather", "args": {"city": "Rome"}}
    assert turn(asks, submits=True)["name"] == "submit"
    submitted = {"name": "submit", "args": {"answer": "7 suns", "n": 7}}
    assert turn(asks, calls, says, ("user", "")) == submitted
    # A new question begins anew.
    assert turn(asks, calls, says, calls, asks) == {"name": "weather", "args": {"city": "Rome"}}
    broken = ("user", "[[ ## tool_call_results ## ]]\n{broken}")
    assert turn(asks, calls, broken, ("user", ""))["name"] == "weather"


def test_nothing_is_taken_for_what_it_is_not() -> None:
    plain = Prompt(Task("chat", ("q",), (), "x"), (), {}, "")
    assert not is_turn(plain)
    assert not is_code(plain)
    assert read_schema("Thing") == STRING
