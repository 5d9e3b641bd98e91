"""Rows of a client as DSPy examples, split where no validation set is given."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import dspy  # type: ignore[import-untyped]

from bridge.worker import arguments

VALIDATION_SHARE = 0.2


class Dataset(NamedTuple):
    """Examples for an optimizer, in the order that the seed gives."""

    train: list[Any]
    validation: list[Any]


def read(
    trainset: Any, valset: Any, *, inputs: Sequence[str], required: Sequence[str], seed: int
) -> Dataset:  # fmt: skip
    """Return the examples of `trainset` and `valset`, each a list of mappings or of `dspy.Example`.

    inputs: the fields that the program takes; all others are labels. An Example that says what its inputs are is
    taken at its word. required: fields that every row must have.
    A `valset` of None takes 20 % of the train set, chosen by the seed. The train set is shuffled by the seed.
    Raises one INVALID_REQUEST that lists every row at fault with its number, counted from 0.
    """
    problems: list[tuple[str, str]] = []
    train = _examples(trainset, "trainset", inputs, required, problems)
    validation = None if valset is None else _examples(valset, "valset", inputs, required, problems)
    if problems:
        arguments.refuse(problems)
    random.Random(seed).shuffle(train)
    if validation is None:
        if len(train) < 2:
            text = f"trainset has {len(train)} rows: give at least 2, or a valset, to have some to validate with"
            raise arguments.invalid("trainset", text)
        count = max(1, round(len(train) * VALIDATION_SHARE))
        validation, train = train[:count], train[count:]
    return Dataset(train, validation)


def _examples(
    rows: Any, path: str, inputs: Sequence[str], required: Sequence[str], problems: list[tuple[str, str]]
) -> list[Any]:
    if not isinstance(rows, list | tuple) or not rows:
        problems.append((path, f"{path} must be a list of mappings that is not empty, got {arguments.shown(rows)}"))
        return []
    examples = []
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        keys = getattr(row, "_input_keys", None) if isinstance(row, dspy.Example) else None
        if isinstance(row, dspy.Example | Mapping):
            row = dict(row.items())
        if not isinstance(row, dict) or not all(isinstance(name, str) for name in row):
            problems.append((where, f"{where} must be a mapping with text keys, got {arguments.shown(row)}"))
            continue
        missing = [name for name in required if name not in row]
        problems += [(f"{where}.{name}", f"{where}.{name} is missing") for name in missing]
        keys = inputs if keys is None else keys
        examples.append(dspy.Example(row).with_inputs(*(name for name in keys if name in row)))
    return examples
