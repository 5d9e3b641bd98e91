"""The built-in embedder `offline/hash`: feature hashing of words, word pairs and character n-grams.

No model and no network: texts that share words or parts of words are close, and nothing more is claimed. The vectors
are the same in every process and on every machine.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from bridge.worker.call import Call
from bridge.worker.embedding.embedder import HASH_MODEL, Embedder, Vectors

# Texts are embedded in groups: cancellation is looked at between them, and the memory of one group is bounded.
_GROUP_TEXTS: Final = 256
_GROUP_CHARS: Final = 200_000
_WORD: Final = re.compile(r"\w+")
_WORD_WEIGHT: Final = 1.0
_PAIR_WEIGHT: Final = 0.5
_NGRAM_WEIGHT: Final = 0.25
_NGRAM_BYTES: Final = (3, 4)
_MIX: Final = np.uint32(0x9E3779B1)


class HashEmbedder(Embedder):
    """Vectors of `dim` numbers, their length 1, or 0 for a text without words."""

    DIMENSION: Final = 256
    model = HASH_MODEL

    def __init__(self, dim: int = DIMENSION) -> None:
        self._dim = dim

    def dimension(self) -> int:
        """Return the length of its vectors."""
        return self._dim

    def embed(self, texts: Sequence[str], call: Call | None = None) -> Vectors:
        """Return one vector per text. Raises CallStopped between groups of texts when the call is to stop."""
        vectors = np.zeros((len(texts), self._dim), dtype=np.float32)
        start = 0
        while start < len(texts):
            if call is not None:
                call.step()
            end = _group_end(texts, start)
            # Only a group of one text can be longer than the bound: it is taken piece by piece.
            for piece in range(0, max(map(len, texts[start:end])) or 1, _GROUP_CHARS):
                group = [one[piece : piece + _GROUP_CHARS].casefold() for one in texts[start:end]]
                _embed_group(group, vectors[start:end])
            start = end
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        np.divide(vectors, lengths, out=vectors, where=lengths > 0)
        return vectors


def _group_end(texts: Sequence[str], start: int) -> int:
    chars = 0
    end = start
    while end < len(texts) and end - start < _GROUP_TEXTS:
        chars += len(texts[end])
        if chars > _GROUP_CHARS and end > start:
            break
        end += 1
    return end


def _embed_group(texts: list[str], vectors: Vectors) -> None:
    """Add the features of each text to its row."""
    rows: list[int] = []
    hashes: list[int] = []
    weights: list[float] = []
    joined: list[bytes] = []
    for row, one in enumerate(texts):
        words = [word.encode("utf-8", "surrogatepass") for word in _WORD.findall(one)]
        features = [zlib.crc32(word) for word in words]
        # A pair is hashed from the hashes of its words: no text is joined for it.
        pairs = [(31 * first + second) & 0xFFFFFFFF for first, second in pairwise(features)]
        hashes += features
        hashes += pairs
        rows += [row] * (len(features) + len(pairs))
        weights += [_WORD_WEIGHT] * len(features)
        weights += [_PAIR_WEIGHT] * len(pairs)
        joined.append(b" " + b" ".join(words) + b" ")
    _add(vectors, np.array(rows, np.int64), np.array(hashes, np.uint32), np.array(weights, np.float32))
    _add_ngrams(joined, vectors)


def _add_ngrams(joined: list[bytes], vectors: Vectors) -> None:
    """Add the character n-grams of all texts at once: one array of all bytes, one of the rows they belong to."""
    data = np.frombuffer(b"".join(joined), dtype=np.uint8).astype(np.uint32)
    owner = np.repeat(np.arange(len(joined)), [len(one) for one in joined])
    for size in _NGRAM_BYTES:
        count = len(data) - size + 1
        if count <= 0:
            continue
        hashes = np.full(count, size, dtype=np.uint32)
        for offset in range(size):
            hashes = hashes * np.uint32(257) + data[offset : offset + count]
        inside = owner[:count] == owner[size - 1 :]
        rows = owner[:count][inside]
        _add(vectors, rows, hashes[inside], np.full(len(rows), _NGRAM_WEIGHT, dtype=np.float32))


def _add(
    vectors: Vectors, rows: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint32], weights: npt.NDArray[np.float32]
) -> None:
    """Add each feature to a column of its row, with a sign, both taken from its hash."""
    mixed = hashes * _MIX
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x85EBCA77)
    mixed ^= mixed >> np.uint32(13)
    dim = vectors.shape[1]
    columns = (mixed >> np.uint32(1)) % np.uint32(dim)
    signs = np.where(mixed & np.uint32(1), 1.0, -1.0)
    flat = np.bincount(rows * dim + columns, weights=signs * weights, minlength=vectors.size)
    vectors += flat.reshape(vectors.shape).astype(np.float32)
