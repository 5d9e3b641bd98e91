"""Metrics: how good a prediction is, from 0.0 to 1.0.

`exact`, `contains` and `f1` are the measures of question answering as DSPy computes them (from SQuAD and DPR); the
others are the textbook's. Values are what a message can hold: text, numbers, true and false, none, lists, mappings,
bytes, dates; a tuple counts as a list, an Enum as its value, dataclasses and pydantic models as mappings.
`ValueError` is raised for what cannot be measured: too large (1,048,576 characters of text, 1,000 texts, 200,000
values, 50 levels), or of no known type.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import cache
from importlib import import_module
from typing import Any, Final

from signatures.native.values import Budget, key, nfd

MAX_TEXT_CHARS: Final = 1024 * 1024
MAX_TEXTS: Final = 1_000
# Characters looked through by `contains`, all references together.
MAX_SEARCH_CHARS: Final = 256 * 1024 * 1024

_ARTICLES: Final = re.compile(r"\b(?:an?|the)\b")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)


def exact(prediction: Any, reference: Any, frac: float = 1.0) -> float:
    """Return 1.0 if the prediction is the reference, else 0.0.

    Texts are equal when they are after Unicode's NFD, lower case, without ASCII punctuation and the words a, an, the,
    blanks as one: `dspy.evaluate.metrics.EM`. A text is compared with each text of a list, the best counts. `frac`
    below 1: whether the best `f1` reaches it (`answer_exact_match`). All else: equality, where 1 is 1.0 but not True.
    """
    if isinstance(prediction, str) and isinstance(reference, (str, list, tuple)):
        references = [reference] if isinstance(reference, str) else list(reference)
        if not references:
            raise ValueError("the reference is an empty list; give at least one text")
        # What is no text equals no text.
        texts = [one for one in references if isinstance(one, str)]
        if not texts:
            return 0.0
        if frac < 1.0:
            return float(f1(prediction, texts) >= frac)
        _check_size(sum(map(len, texts)))
        plain = _normalized(prediction)
        return float(any(plain == _normalized(one) for one in texts))
    return float(key(prediction) == key(reference))


def contains(prediction: Any, reference: Any) -> float:
    """Return 1.0 if a text (or one of a list of texts) has the reference (or one of a list) in it, else 0.0.

    In it as whole tokens in a row, after what `exact` does to texts: `dspy.evaluate.metrics.answer_passage_match`.
    A reference without tokens, such as "the", is in every text. Only texts have parts: raises ValueError for others.
    """
    passages = [_token_line(text) for text in _texts(prediction, "prediction")]
    answers = {_token_line(text) for text in _texts(reference, "reference")}
    # Put together they are searched in linear time, which short texts are not. No token is a newline.
    whole = "\n".join(passages)
    if len(whole) * len(answers) > MAX_SEARCH_CHARS:
        raise ValueError(
            f"{len(answers):,} references in {len(whole):,} characters are too much to look for; give fewer of either"
        )
    return float(any(answer in whole for answer in answers))


def f1(prediction: str, reference: str | list[str]) -> float:
    """Return the harmonic mean of precision and recall of the words of a text: `dspy.evaluate.metrics.f1_score`.

    Words are those of the text as `exact` compares it. The best over a list of references; 0.0 where either text has
    no words. Raises ValueError for values that are no texts.
    """
    (text,) = _texts([prediction], "prediction")
    found = Counter(_normalized(text).split())
    size = found.total()
    return max(_overlap(found, size, _normalized(one).split()) for one in _texts(reference, "reference"))


def numeric(prediction: Any, reference: Any, rel_tol: float = 1e-9, abs_tol: float = 0.0) -> float:
    """Return 1.0 if two numbers are close, else 0.0: |a - b| <= max(rel_tol * max(|a|, |b|), abs_tol), exactly.

    Numbers are int, float, Decimal, and texts of a decimal number; true and false are none. A prediction that is no
    number scores 0.0; a reference that is none raises ValueError. NaN is close to nothing, an infinity to itself.
    """
    if not (rel_tol >= 0 and abs_tol >= 0):
        raise ValueError("rel_tol and abs_tol must not be negative")
    wanted, found = _number(reference), _number(prediction)
    if wanted is None:
        raise ValueError("the reference must be a number, or the text of one")
    if found is None:
        return 0.0
    if isinstance(wanted, Fraction) and isinstance(found, Fraction):
        if math.inf in (rel_tol, abs_tol):
            return 1.0
        most = max(Fraction(rel_tol) * max(abs(wanted), abs(found)), Fraction(abs_tol))
        return float(abs(wanted - found) <= most)
    return float(wanted == found)


def set_overlap(prediction: Any, reference: Any) -> float:
    """Return the Jaccard index of two collections: the share of their different items that both have; 1.0 if empty."""
    found, wanted = set(_keys(prediction, "prediction")), set(_keys(reference, "reference"))
    return len(found & wanted) / len(found | wanted) if found or wanted else 1.0


def list_overlap(prediction: Any, reference: Any) -> float:
    """Return the F1 of two collections, each item as often as it comes, in any order; 1.0 if both are empty."""
    found, wanted = Counter(_keys(prediction, "prediction")), Counter(_keys(reference, "reference"))
    size = found.total() + wanted.total()
    return 2 * (found & wanted).total() / size if size else 1.0


def json_match(prediction: Any, reference: Any) -> float:
    """Return the share of the reference's fields that the prediction has with an equal value (as `exact` compares).

    Fields are the values at the ends of all paths (`team.name`, `tags[0]`), an empty list or mapping among them; more
    in the prediction is no matter. Texts are read as JSON: a prediction that is none scores 0.0, a reference that
    is none raises ValueError.
    """
    wanted = _read(reference)
    try:
        found = _read(prediction)
    except ValueError:
        return 0.0
    # Both are measured: paths shared by many parents could be many more than the values.
    for value in (wanted, found):
        key(value)
    outcomes = list(_fields(found, wanted))
    return sum(outcomes) / len(outcomes)


METRICS: Final[dict[str, Callable[..., float]]] = {
    one.__name__: one for one in (exact, contains, f1, numeric, set_overlap, list_overlap, json_match)
}


# --- texts ------------------------------------------------------------------------------------------


def _texts(value: Any, what: str) -> list[str]:
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    for one in found:
        if not isinstance(one, str):
            raise ValueError(f"the {what} must be a text or a list of texts, got {type(one).__name__}")
    if not 1 <= len(found) <= MAX_TEXTS:
        raise ValueError(f"the {what} must hold from 1 to {MAX_TEXTS:,} texts, not {len(found):,}")
    _check_size(sum(map(len, found)))
    return found


def _check_size(chars: int) -> None:
    if chars > MAX_TEXT_CHARS:
        raise ValueError(f"the text is longer than {MAX_TEXT_CHARS:,} characters; score a shorter one")


def _normalized(text: str) -> str:
    _check_size(len(text))
    plain = nfd(text).lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def _overlap(found: Counter[str], size: int, wanted: list[str]) -> float:
    # Only the words wanted are looked up: those found can be many, and so can the references.
    common = sum(min(number, found[word]) for word, number in Counter(wanted).items())
    if not common:
        return 0.0
    precision, recall = common / size, common / len(wanted)
    return 2 * precision * recall / (precision + recall)


@cache
def _tokens() -> Any:
    # Letters, digits and marks in a row, else any one character that is neither blank nor control: DPR's tokens.
    regex: Any = import_module("regex")
    return regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]", regex.IGNORECASE)


def _token_line(text: str) -> str:
    """Return a text's tokens between NULs, which no token has: a part of this line is a row of tokens."""
    found = _tokens().findall(nfd(_normalized(text)))
    return "\0".join(["", *(token.lower() for token in found), ""]) if found else ""


# --- values -----------------------------------------------------------------------------------------


def _number(value: Any) -> Fraction | float | None:
    """Return a number exactly, a float for NaN and infinities, None for no number."""
    if isinstance(value, str):
        stripped = value.strip() if len(value) <= 1_000 else ""
        return Fraction(stripped) if _NUMBER.fullmatch(stripped) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    if isinstance(value, int):
        return Fraction(value)
    if not math.isfinite(value):
        return float(value)
    if isinstance(value, Decimal) and value and abs(value.adjusted()) > 10_000:
        raise ValueError("a Decimal's exponent is beyond 10,000")
    return Fraction(value)


def _keys(value: Any, what: str) -> Iterator[str]:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError(f"the {what} must be a list or a set, got {type(value).__name__}")
    budget = Budget()
    return (key(item, budget) for item in value)


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    _check_size(len(value))
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the reference must be JSON: {error}") from None


def _fields(found: Any, wanted: Any) -> Iterator[bool]:
    """Yield for each field of `wanted` whether `found` has it."""
    if isinstance(wanted, Mapping) and wanted:
        for name, value in wanted.items():
            yield from _fields(found.get(name, _ABSENT) if isinstance(found, Mapping) else _ABSENT, value)
    elif isinstance(wanted, (list, tuple)) and wanted:
        for index, value in enumerate(wanted):
            is_there = isinstance(found, (list, tuple)) and index < len(found)
            yield from _fields(found[index] if is_there else _ABSENT, value)
    else:
        yield found is not _ABSENT and key(found) == key(wanted)


_ABSENT: Final = object()
