"""The step of a ReAct agent, offline: call the tool whose words are nearest to the question once, then finish.

A ReActV2 agent finishes by calling `submit` with the outputs; what its tools answered stands in earlier messages.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bridge.worker.lm.knn import words
from bridge.worker.lm.prompt import Prompt, inputs_of
from bridge.worker.lm.rules import THOUGHT, numbers, value

FINISH = "finish"
SUBMIT = "submit"
# How the answers of a ReActV2 agent's tools stand in a message, whatever its adapter.
RESULTS = "tool_call_results"
_STEP = frozenset({"next_thought", "next_tool_name", "next_tool_args"})
_TURN = frozenset({"next_thought", "tool_calls"})
_TOOL = re.compile(
    r"^\s*\(\d+\) (\w+)(?:, whose description is <desc>(.*)</desc>)?\. It takes arguments (\{.*\})\.$", re.MULTILINE
)
_LISTED = re.compile(r"^(\w+)(?:, whose description is <desc>(.*)</desc>)?\. It takes arguments (\{.*\})\.$", re.DOTALL)
_RESULTS = re.compile(rf"(?:\[\[ ## {RESULTS} ## \]\]|<{RESULTS}>)\s*(\{{.*\}})", re.DOTALL)
_CALLED = re.compile(r"(?:\[\[ ## tool_name_\d+ ## \]\]|<tool_name_\d+>)\s*(\w+)")
_QUOTED = re.compile(r"[\"“'`]([^\"”'`]{1,200})[\"”'`]")
_NAME = re.compile(r"(?<!^)(?<![.!?]\s)\b[A-Z][\w-]*(?:\s+[A-Z][\w-]*)*")
# Words are compared by their beginnings: "cities" and "city" differ only after that.
_STEM = 4


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    stems: frozenset[str]
    parameters: Mapping[str, Any]


def is_step(prompt: Prompt) -> bool:
    """Return whether the prompt asks for an agent's next tool call."""
    return prompt.task is not None and {output.name for output in prompt.task.outputs} == _STEP


def next_step(prompt: Prompt, variation: int) -> dict[str, Any]:
    """Return the outputs of the step. variation: 0 the nearest tool, 1 the next nearest …, then finish."""
    assert prompt.task is not None
    trajectory = prompt.inputs.get("trajectory", "")
    asked = {name: text for name, text in prompt.inputs.items() if name != "trajectory"}
    question = "\n".join(asked.values())
    stems = _stems(question)
    tools = [tool for tool in _tools(prompt.task.instructions) if tool.name != FINISH]
    near = sorted((tool for tool in tools if tool.stems & stems), key=lambda tool: -len(tool.stems & stems))
    if not near or _CALLED.search(trajectory) or variation % (len(near) + 1) == len(near):
        return {"next_thought": THOUGHT, "next_tool_name": FINISH, "next_tool_args": {}}
    tool = near[variation % (len(near) + 1)]
    arguments = _arguments(tool.parameters, asked, question)
    return {"next_thought": THOUGHT, "next_tool_name": tool.name, "next_tool_args": arguments}


def is_turn(prompt: Prompt) -> bool:
    """Return whether the prompt asks for a ReActV2 agent's next tool calls."""
    return prompt.task is not None and {output.name for output in prompt.task.outputs} == _TURN


def next_turn(prompt: Prompt, variation: int, *, submits: bool) -> dict[str, Any]:
    """Return the outputs of the turn: one tool call. submits: the program wants no other than `submit` now."""
    asked, listed, results = _episode(prompt)
    question = "\n".join(asked.values())
    stems = _stems(question)
    tools = {tool.name: tool for tool in listed}
    near = sorted(
        (tool for tool in listed if tool.name != SUBMIT and tool.stems & stems),
        key=lambda tool: -len(tool.stems & stems),
    )
    if near and not results and not submits and variation % (len(near) + 1) < len(near):
        tool = near[variation % (len(near) + 1)]
        called, arguments = tool.name, _arguments(tool.parameters, asked, question)
    else:
        source = results[-1] if results else question
        outputs = tools[SUBMIT].parameters if SUBMIT in tools else {}
        called, arguments = SUBMIT, {name: value(schema, source, variation) for name, schema in outputs.items()}
    calls = {"tool_calls": [{"name": called, "args": arguments}]}
    return {"next_thought": THOUGHT, "tool_calls": calls}


def _episode(prompt: Prompt) -> tuple[dict[str, str], list[_Tool], list[str]]:
    """Return the question's inputs, the tools, and what tools have answered since the question was asked."""
    assert prompt.task is not None
    asked: dict[str, str] = {}
    results: list[str] = []
    listed: list[_Tool] = []
    for role, text in prompt.turns:
        if found := _RESULTS.search(text):
            results += _answers(found[1])
        elif role == "user":
            inputs = inputs_of(prompt.task, text)
            listed = _listed(inputs.pop("tools", "")) or listed
            inputs.pop("history", None)
            if inputs:
                asked, results = inputs, []
    return asked, listed, results


def _answers(text: str) -> list[str]:
    try:
        results = json.loads(text)["tool_call_results"]
        return [one["value"] if isinstance(one["value"], str) else json.dumps(one["value"]) for one in results]
    except (ValueError, LookupError, TypeError):
        return []


def _listed(text: str) -> list[_Tool]:
    try:
        lines = json.loads(text)
    except ValueError:
        return []
    found = (_LISTED.match(line) for line in lines if isinstance(line, str))
    return [
        _Tool(match[1], _stems(f"{match[1].replace('_', ' ')} {match[2] or ''}"), _literal(match[3]))
        for match in found
        if match
    ]


@lru_cache(maxsize=64)
def _tools(instructions: str) -> tuple[_Tool, ...]:
    return tuple(
        _Tool(name, _stems(f"{name.replace('_', ' ')} {description}"), _literal(parameters))
        for name, description, parameters in _TOOL.findall(instructions)
    )


def _literal(text: str) -> Mapping[str, Any]:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {}
    return found if isinstance(found, dict) else {}


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:_STEM] for word in words(text))


def _arguments(parameters: Mapping[str, Any], asked: Mapping[str, str], question: str) -> dict[str, Any]:
    """Fill a tool's parameters: from inputs of the same name, else numbers and names of the question in order."""
    figures: Iterator[float] = iter(numbers(question))
    names: Iterator[str] = iter(_QUOTED.findall(question) or _NAME.findall(question))
    arguments: dict[str, Any] = {}
    for name, schema in parameters.items():
        kind = schema.get("type") if isinstance(schema, dict) else None
        if name in asked and kind == "string":
            arguments[name] = asked[name]
        elif kind in ("integer", "number"):
            figure = next(figures, 0.0)
            arguments[name] = int(figure) if kind == "integer" else figure
        elif kind == "string" and "enum" not in schema:
            arguments[name] = next(names, question)
        else:
            arguments[name] = value(schema if isinstance(schema, dict) else {}, question)
    return arguments
