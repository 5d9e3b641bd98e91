"""A prompt of DSPy's adapters, read back: the task, its demonstrations and the question.

ChatAdapter, JSONAdapter, XMLAdapter and BAMLAdapter write prompts of one shape: a system text that lists the fields,
then a user and an assistant message for each demonstration, then the user message to answer. `read_prompt` takes them
apart again and `Prompt.render` writes an answer the way the adapter reads it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from bridge.worker.lm.baml import read_baml
from bridge.worker.lm.schema import Schema, read_schema

Style = Literal["chat", "json", "xml"]

_FIELD = re.compile(r"^\d+\. `(\w+)` \((.+?)\):(.*)$", re.MULTILINE)
_HEADER = re.compile(r"^\[\[ ## (\w+) ## \]\]", re.MULTILINE)
_NOTE = re.compile(r"^\{(\w+)\} {8}# note: the value you produce (.+)$", re.MULTILINE)
_JSON_STRUCTURE = "Outputs will be a JSON object with the following fields."
_BAML_FIELD = re.compile(r"^Output field `(\w+)` should be of type: (.*?)(?=\n\n\[\[ ## |\Z)", re.MULTILINE | re.DOTALL)
_TEXT: Schema = {"type": "string"}
_OBJECTIVE = "your objective is:"
_REQUESTS = (
    "\n\nRespond with the corresponding output fields",
    "\n\nRespond with a JSON object in the following order of fields",
)
_NOT_SUPPLIED = "Not supplied for this particular example."
# Longer messages are read anew each time: a cache of them would be a leak.
_CACHED_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class Output:
    """An output field. schema: the JSON schema of its value."""

    name: str
    schema: Schema


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a system text asks for: the names of the inputs, the outputs, and the signature's instructions."""

    style: Style
    inputs: tuple[str, ...]
    outputs: tuple[Output, ...]
    instructions: str


@dataclass(frozen=True, slots=True)
class Demo:
    """A demonstration. `outputs` holds what was supplied: texts, or JSON values where the adapter writes JSON."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request. `task` is None if no adapter wrote it; `text` is the whole text of the question.

    turns: (role, text) of all messages, in order.
    """

    task: Task | None
    demos: tuple[Demo, ...]
    inputs: Mapping[str, str]
    text: str
    turns: tuple[tuple[str, str], ...] = ()

    def render(self, answer: Mapping[str, Any]) -> str:
        """Return the answer's text, its fields in the task's order. A prompt without a task takes the field `text`."""
        if self.task is None:
            return str(answer["text"])
        values = [(output.name, answer[output.name]) for output in self.task.outputs]
        if self.task.style == "json":
            return json.dumps(dict(values), ensure_ascii=False)
        if self.task.style == "xml":
            return "\n\n".join(f"<{name}>\n{_xml(value)}\n</{name}>" for name, value in values)
        sections = [f"[[ ## {name} ## ]]\n{_text(value)}" for name, value in values]
        return "\n\n".join([*sections, "[[ ## completed ## ]]"])


def read_prompt(system: str, turns: Iterable[tuple[str, str]]) -> Prompt:
    """Read a prompt. turns: (role, text) of the messages in order; the last user message is the question."""
    task = _read_task(system) if system else None
    turns = list(turns)
    question = next((text for role, text in reversed(turns) if role == "user"), "")
    if task is None:
        return Prompt(None, (), {"text": question}, question)
    demos = [
        _cached(_read_demo, task, user, assistant)
        for (role, user), (next_role, assistant) in pairwise(turns)
        if role == "user" and next_role == "assistant"
    ]
    inputs = _read_inputs(task, _without_request(question))
    text = "\n".join(inputs.values())
    return Prompt(task, tuple(demo for demo in demos if demo.outputs), inputs, text, tuple(turns))


def inputs_of(task: Task, text: str) -> dict[str, str]:
    """Return the inputs in a user message, without the request at its end."""
    return _read_inputs(task, _without_request(text))


@lru_cache(maxsize=128)
def _read_task(system: str) -> Task | None:
    head, _, rest = system.partition("Your output fields are:\n")
    fields, _, structure = rest.partition("All interactions will be structured in the following way")
    structure, _, instructions = structure.partition(_OBJECTIVE)
    inputs = tuple(match[1] for match in _FIELD.finditer(head))
    if not fields or not structure:
        return None
    types = dict(_BAML_FIELD.findall(structure))
    is_json = types or _JSON_STRUCTURE in structure
    style: Style = "json" if is_json else "chat" if "[[ ## " in structure else "xml"
    notes = _json_notes(structure) if _JSON_STRUCTURE in structure else dict(_NOTE.findall(structure))
    found = list(_FIELD.finditer(fields))
    ends = [match.start() for match in found[1:]] + [len(fields)]
    outputs = tuple(
        Output(match[1], _schema(match[2], notes.get(match[1], ""), fields[match.end() : end], types.get(match[1])))
        for match, end in zip(found, ends, strict=True)
    )
    return Task(style, inputs, outputs, instructions.strip()) if outputs else None


def _schema(annotation: str, note: str, constraints: str, told: str | None) -> Schema:
    """Return a field's schema. told: its type in the words of BAMLAdapter, which has none for tuples and their like."""
    schema = read_schema(annotation, note, constraints)
    by_baml = _TEXT if told is None else read_baml(told)
    return schema if by_baml == _TEXT else {**schema, **by_baml}


def _json_notes(structure: str) -> dict[str, str]:
    text = structure[structure.index(_JSON_STRUCTURE) + len(_JSON_STRUCTURE) :].lstrip()
    try:
        fields, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return {}
    return {name: str(value) for name, value in fields.items()}


def _cached(read: Callable[[Task, str, str], Demo], task: Task, user: str, assistant: str) -> Demo:
    if len(user) + len(assistant) > _CACHED_CHARS:
        return read(task, user, assistant)
    return _remembered_demo(task, user, assistant)


def _read_demo(task: Task, user: str, assistant: str) -> Demo:
    names = [output.name for output in task.outputs]
    outputs: Mapping[str, Any]
    if task.style == "json":
        outputs = _read_json(assistant)
    elif task.style == "xml":
        outputs = {name: _unescaped(text) for name, text in _elements(assistant, names).items()}
    else:
        outputs = _sections(assistant, [*names, "completed"])
    inputs = _read_inputs(task, user)
    supplied = {
        name: outputs[name] for name in names if name in outputs and not str(outputs[name]).startswith(_NOT_SUPPLIED)
    }
    return Demo(inputs, supplied, "\n".join(inputs.values()))


_remembered_demo = lru_cache(maxsize=1024)(_read_demo)


def _read_inputs(task: Task, text: str) -> dict[str, str]:
    return _elements(text, task.inputs) if task.style == "xml" else _sections(text, task.inputs)


def _without_request(question: str) -> str:
    ends = [end for request in _REQUESTS if (end := question.rfind(request)) >= 0]
    return question[: max(ends)] if ends else question


def _read_json(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _sections(text: str, names: Iterable[str]) -> dict[str, str]:
    """Return the text under each header. Headers of other names belong to the text they stand in."""
    wanted = set(names)
    found = []
    for match in _HEADER.finditer(text):
        if match[1] in wanted:
            wanted.discard(match[1])
            found.append(match)
    ends = [*(match.start() for match in found[1:]), len(text)] if found else []
    return {match[1]: text[match.end() : end].strip() for match, end in zip(found, ends, strict=True)}


def _elements(text: str, names: Iterable[str]) -> dict[str, str]:
    found = ((name, re.search(rf"<{name}>(.*)</{name}>", text, re.DOTALL)) for name in names)
    return {name: match[1].strip() for name, match in found if match}


class _Markup(str):
    """A nested XML value of a demonstration, copied as it stands."""

    __slots__ = ()


def _unescaped(text: str) -> str:
    return _Markup(text) if "<" in text else html.unescape(text)


def _xml(value: Any) -> str:
    return value if isinstance(value, _Markup) else html.escape(_text(value), quote=False)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return str(value)
    return json.dumps(value, ensure_ascii=False)
