"""Nearest neighbours among texts: cosine of TF-IDF vectors over words and parts of words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
_COMMON_TEXT = """
a about after again all also am an and any are as at be because been before being but by can could did do does doing
don't for from get got had has have having he her here him his how i i'm i've if in into is it it's its just me more
most my no not now of off on once one only or our out over own please she should so some still such than that the
their them then there these they this those through to too under until up very was we were what when where which while
who why will with would you your
"""
# Words of the language, not of the subject: two texts are not alike because both say "the".
_COMMON = frozenset(_COMMON_TEXT.split())
_GRAM = 4
_CACHED_CHARS = 20_000


def words(text: str) -> list[str]:
    """Return the words of the subject, in lower case and order."""
    return [word for word in _WORD.findall(text.lower()) if word not in _COMMON]


def features(text: str) -> Mapping[str, float]:
    """Return the weight of each feature of a text: its words, pairs of them, and pieces of four letters."""
    return _remembered_features(text) if len(text) <= _CACHED_CHARS else _features(text)


def _features(text: str) -> Mapping[str, float]:
    found = words(text)
    counts: Counter[str] = Counter(found)
    counts.update(f"{left} {right}" for left, right in pairwise(found))
    for word in found:
        counts.update(f"~{word[i : i + _GRAM]}" for i in range(len(word) - _GRAM + 1))
    return {feature: 1.0 + math.log(count) for feature, count in counts.items()}


_remembered_features = lru_cache(maxsize=4096)(_features)


class Neighbours:
    """Texts that can be ranked by how much they are like another one. Immutable."""

    def __init__(self, texts: Iterable[str]) -> None:
        vectors = [features(text) for text in texts]
        seen = Counter(feature for vector in vectors for feature in vector)
        self._idf = {feature: math.log((1 + len(vectors)) / (1 + count)) + 1.0 for feature, count in seen.items()}
        self._vectors = [self._weighted(vector) for vector in vectors]

    def ranked(self, text: str) -> list[tuple[int, float]]:
        """Return (index, similarity 0..1) of every text, the nearest first; equal ones in their own order."""
        query = self._weighted(features(text))
        scores = [sum(weight * vector.get(name, 0.0) for name, weight in query.items()) for vector in self._vectors]
        return sorted(enumerate(scores), key=lambda item: (-item[1], item[0]))

    def _weighted(self, vector: Mapping[str, float]) -> dict[str, float]:
        # A feature that none of the texts has would scale every score alike, so it is left out.
        weighted = {feature: weight * self._idf[feature] for feature, weight in vector.items() if feature in self._idf}
        length = math.sqrt(sum(weight * weight for weight in weighted.values())) or 1.0
        return {feature: weight / length for feature, weight in weighted.items()}


def neighbours(texts: tuple[str, ...]) -> Neighbours:
    """Return the Neighbours of these texts; an optimizer asks for the same ones again and again."""
    return _remembered_neighbours(texts) if sum(map(len, texts)) <= 5 * _CACHED_CHARS else Neighbours(texts)


_remembered_neighbours = lru_cache(maxsize=64)(Neighbours)
