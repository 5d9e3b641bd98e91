"""Answers without demonstrations: simple rules over the words of the question.

Nothing here understands anything. The rules give every field a value of its type, the same one for the same
prompt, so that programs run to their end without a network and examples have something to improve on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.worker.lm.knn import words
from bridge.worker.lm.prompt import Output, Prompt
from bridge.worker.lm.schema import Schema

THOUGHTS = frozenset({"reasoning", "rationale", "next_thought"})
THOUGHT = "Offline: found by comparing words, not by reasoning."

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_LIST_BREAK = re.compile(r"\s*(?:[,;\n]|\band\b)\s*")
_NEGATION = re.compile(r"\b(?:no|not|never|none|without|cannot)\b|n't\b", re.IGNORECASE)
_PREDICTION = re.compile(r"my prediction is (.*)»\s*$", re.DOTALL)
_OBSERVATION = re.compile(
    r"(?:\[\[ ## (?:observation|code_output)_\d+ ## \]\]|<(?:observation|code_output)_\d+>)\s*(.*?)\s*"
    r"(?=\n\[\[ ## |</(?:observation|code_output)_|\Z)",
    re.DOTALL,
)
_FORMATS = {"date": "1970-01-01", "date-time": "1970-01-01T00:00:00Z", "time": "00:00:00", "duration": "PT0S"}
_SENTENCE_WORDS = 25
_MAX_DEPTH = 5


def answer_by_rules(prompt: Prompt, variation: int) -> dict[str, Any]:
    """Return a value for every output. variation: 0, 1, …: another value of a field that has more than one."""
    if prompt.task is None:
        return {"text": _string(prompt.text, {}, variation)}
    return {output.name: field_by_rules(prompt, output, variation) for output in prompt.task.outputs}


def field_by_rules(prompt: Prompt, output: Output, variation: int) -> Any:
    """Return a value for one output of a prompt that has a task."""
    if output.name in THOUGHTS:
        return THOUGHT
    assert prompt.task is not None
    source = prompt.text
    if output.name == prompt.task.outputs[-1].name:
        source = _majority(prompt.inputs) or source
    source = last_observation(prompt.inputs) or computed(prompt.inputs.get("code_output", "")) or source
    return value(output.schema, source, variation)


def value(schema: Schema, text: str, variation: int = 0) -> Any:
    """Return a value that fits the schema, taken from the text where it can be."""
    return _value(schema, text, variation, schema.get("$defs", {}), 0)


def numbers(text: str) -> list[float]:
    """Return the numbers in a text, in order."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def last_observation(inputs: Mapping[str, str]) -> str:
    """Return what the last tool of an agent's trajectory answered, "" without one."""
    found = [text for text in _OBSERVATION.findall(inputs.get("trajectory", "")) if text and text != "Completed."]
    return computed(found[-1]) if found else ""


def computed(text: str) -> str:
    """Return what a program that was run came to: the innermost value of JSON, else the text as it is."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    while isinstance(found, dict) and len(found) == 1:
        (found,) = found.values()
    return found.strip() if isinstance(found, str) else text if isinstance(found, dict) else str(found)


def _majority(inputs: Mapping[str, str]) -> str:
    """Return the prediction that most of the attempts to be compared make, the first of equals."""
    attempts = (text for name, text in inputs.items() if name.startswith("reasoning_attempt_"))
    predictions = [match[1].strip() for text in attempts if (match := _PREDICTION.search(text))]
    return Counter(predictions).most_common(1)[0][0] if predictions else ""


def _value(schema: Schema, text: str, variation: int, defs: Mapping[str, Any], depth: int) -> Any:
    if "$ref" in schema:
        schema = defs.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return _pick(_ranked(schema["enum"], text), variation)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        real = [option for option in options if option.get("type") != "null"]
        nothing_needed = depth > 0 and len(real) < len(options)
        return None if nothing_needed or not real else _value(real[0], text, variation, defs, depth)
    match schema.get("type"):
        case "integer" | "number" as kind:
            return _number(schema, text, variation, whole=kind == "integer")
        case "boolean":
            return bool(_NEGATION.search(text) is None) ^ bool(variation % 2)
        case "array":
            return _array(schema, text, variation, defs, depth)
        case "object":
            inner = schema.get("properties", {}) if depth < _MAX_DEPTH else {}
            return {name: _value(item, text, variation, defs, depth + 1) for name, item in inner.items()}
        case "null":
            return None
        case _:
            return _string(text, schema, variation)


def _ranked(choices: Sequence[Any], text: str) -> list[Any]:
    said = set(re.findall(r"\w+", text.lower()))
    plain = text.strip().lower()

    def rank(choice: Any) -> tuple[bool, int]:
        name = str(choice).lower()
        return name != plain, -sum(word in said for word in re.findall(r"[^\W_]+", name))

    return sorted(choices, key=rank)


def _number(schema: Schema, text: str, variation: int, *, whole: bool) -> float | int:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    ends = [end for end in (low, high) if end is not None]
    others = [0.0, *ends, *(end + step for end in ends for step in (1, -1)), sum(ends) / max(len(ends), 1)]
    found = [number for number in numbers(text) if _within(schema, number)]
    number = _pick(found or [other for other in others if _within(schema, other)] or [0.0], variation)
    return int(number) if whole else number


def _within(schema: Schema, number: float) -> bool:
    return (
        number >= schema.get("minimum", number)
        and number <= schema.get("maximum", number)
        and ("exclusiveMinimum" not in schema or number > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or number < schema["exclusiveMaximum"])
    )


def _array(schema: Schema, text: str, variation: int, defs: Mapping[str, Any], depth: int) -> list[Any]:
    if "prefixItems" in schema:
        return [_value(item, text, variation, defs, depth + 1) for item in schema["prefixItems"]]
    item = schema.get("items", {"type": "string"})
    item = defs.get(str(item["$ref"]).rsplit("/", 1)[-1], {}) if "$ref" in item else item
    if "enum" in item:
        said = set(re.findall(r"\w+", text.lower()))
        named = [choice for choice in item["enum"] if str(choice).lower() in said]
        return named or [_pick(_ranked(item["enum"], text), variation)]
    match item.get("type"):
        case "integer":
            return [int(number) for number in numbers(text)]
        case "number":
            return numbers(text)
        case "string":
            return [part for part in _LIST_BREAK.split(text.strip()) if part]
        case _:
            return [_value(item, text, variation, defs, depth + 1)] if depth < _MAX_DEPTH else []


def _string(text: str, schema: Schema, variation: int) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    sentences = [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]
    subject = " ".join(dict.fromkeys(words(text)))
    options = list(dict.fromkeys([*sentences, subject] if subject else sentences)) or ["Nothing was asked."]
    chosen = " ".join(_pick(options, variation).split()[:_SENTENCE_WORDS])
    return chosen[: schema.get("maxLength", len(chosen))]


def _pick(options: Sequence[Any], variation: int) -> Any:
    return options[variation % len(options)]
