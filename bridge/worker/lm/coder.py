"""Code for those modules that run it, offline: a sum that stands in the question, else what the question says.

ProgramOfThought and RLM end with `SUBMIT`, CodeAct prints. The code asks for nothing but Python itself.
"""

from __future__ import annotations

import re
from typing import Any

from bridge.worker.lm.prompt import Prompt
from bridge.worker.lm.rules import THOUGHT, answer_by_rules, value
from bridge.worker.lm.schema import read_schema

_FIELDS = frozenset({"generated_code", "code"})
_SUM = re.compile(r"(?<![\w.])\(*-?\d+(?:\.\d+)?(?:\s*\)*\s*(?:\*\*|//|[-+*/%])\s*\(*\s*-?\d+(?:\.\d+)?)+\)*")
_MAPPING = re.compile(r"correct value mapping for the field\(s\): (.+)\.$", re.MULTILINE)
_NAME = re.compile(r"`(\w+)`")
_OUTPUT = re.compile(r"^\s*- \{(\w+)\}(?: {8}# note: the value you produce (.+))?$", re.MULTILINE)
_SHOWN_CHARS = 500
_OWN = frozenset({"trajectory", "previous_code", "error", "variables_info", "repl_history", "iteration"})


def is_code(prompt: Prompt) -> bool:
    """Return whether the prompt asks for code that is then run."""
    return prompt.task is not None and not _FIELDS.isdisjoint(output.name for output in prompt.task.outputs)


def next_code(prompt: Prompt) -> dict[str, Any]:
    """Return the outputs of the prompt, code among them."""
    assert prompt.task is not None
    outputs = {output.name for output in prompt.task.outputs}
    if "code" in outputs and "repl_history" in prompt.task.inputs:
        return {"reasoning": THOUGHT, "code": _fenced(_submission(prompt, prompt.task.instructions))}
    if "generated_code" not in outputs:
        return answer_by_rules(prompt, 0)
    question = "\n".join(text for name, text in prompt.inputs.items() if name not in _OWN)
    found = _expression(question)
    answer = found or repr(question)
    if "finished" in outputs:
        return {"generated_code": _fenced(f"print({answer})"), "finished": True}
    names = _NAME.findall("".join(_MAPPING.findall(prompt.task.instructions))) or ["answer"]
    mapping = ", ".join(f"{name!r}: {answer}" for name in names)
    return {"reasoning": THOUGHT, "generated_code": _fenced(f"SUBMIT({{{mapping}}})")}


def _submission(prompt: Prompt, instructions: str) -> str:
    """Return code that submits a value of its type for every output of an RLM: for texts, what its last input says."""
    head = instructions.partition("You have access to a Python REPL")[0]
    found = _expression(prompt.inputs.get("variables_info", "")) or "0"
    said = f"str({_input(head)})[:{_SHOWN_CHARS}]"
    given = (f"{name}={_literal(note, found) if note else said}" for name, note in _OUTPUT.findall(head))
    return f"SUBMIT({', '.join(given)})"


def _literal(note: str, number: str) -> str:
    """Return Python for a value that a note asks for."""
    if "single" in note:
        return number
    if "True or False" in note:
        return "True"
    _, exactly, choices = note.partition("(no extra characters) one of: ")
    return repr(choices.split("; ")[0] if exactly else value(read_schema("", note), ""))


def _input(head: str) -> str:
    found = re.search(r"given the inputs (.+):$", head, re.MULTILINE)
    names = _NAME.findall(found[1]) if found else []
    return names[-1] if names else "''"


def _expression(question: str) -> str:
    """Return the first sum of numbers in a text that Python can read, "" without one."""
    for found in _SUM.finditer(question):
        try:
            compile(found[0], "<question>", "eval")
        except SyntaxError:
            continue
        return found[0]
    return ""


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"
