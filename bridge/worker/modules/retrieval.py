"""Modules that look for what is near: KNN, Embeddings, Retrieve."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import dspy  # type: ignore[import-untyped]
from dspy.retrievers.embeddings import Embeddings  # type: ignore[import-untyped]

from bridge.protocol.values import encode_value
from bridge.worker import arguments
from bridge.worker.call import Call
from bridge.worker.plain import to_plain
from bridge.worker.scope import Scope

if TYPE_CHECKING:
    from bridge.worker.embedding import Embedder

T = TypeVar("T")

# A corpus or a training set is embedded once for the calls that bring it again, if it is not too large to keep.
_KEPT_INDEXES: Final = 16
_KEPT_BYTES: Final = 4 * 1024 * 1024
_EXAMPLE: Final = "a mapping of the inputs and what belongs to them"


class _Index(Embeddings):  # type: ignore[misc]
    """`dspy.Embeddings` for many queries at once. Immutable once made.

    DSPy's own has a thread that gathers the queries of its callers, and an index of another library above 20,000
    passages; neither is needed where a call brings all its queries.
    """

    def __init__(self, corpus: list[str], embedder: Any, *, normalize: bool) -> None:
        self.embedder = embedder
        self.corpus = corpus
        self.k = len(corpus)
        self.normalize = normalize
        self.index = None
        vectors = embedder(corpus)
        self.corpus_embeddings = self._normalize(vectors) if normalize else vectors

    def search(self, queries: list[str], k: int) -> list[Any]:
        """Return a prediction of passages, indices and scores for each query."""
        found = self._batch_forward(queries)
        return [
            dspy.Prediction(passages=passages[:k], indices=indices[:k], scores=scores[:k])
            for passages, indices, scores in found
        ]


class Retrieval:
    """The operations that compare texts by their vectors. embedder: None = the built-in one. Thread-safe."""

    def __init__(self, scope: Scope, embedder: Embedder | None = None) -> None:
        self._scope = scope
        self._embedder = embedder
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    def operations(self) -> dict[str, Callable[[Any, Call], Any]]:
        """Return the operations by name."""
        return {"dspy.KNN": self._knn, "dspy.Embeddings": self._embeddings, "dspy.Retrieve": self._retrieve}

    def _knn(self, args: Any, call: Call) -> Any:
        """Operation `dspy.KNN {inputs, options: {k, trainset}}` -> the k rows of the train set with the nearest inputs.

        Nearest first. A row is compared by the fields that the inputs have.
        """
        fields = arguments.read(args, "dspy.KNN", required=("inputs", "options"))
        inputs = arguments.mapping(fields["inputs"], "inputs")
        options = arguments.mapping(fields["options"], "options")
        if problems := arguments.unknown_names(options, ("k", "trainset"), "dspy.KNN", "options."):
            arguments.refuse(problems)
        rows = _trainset(options.get("trainset"), inputs)
        k = arguments.whole(options.get("k", 3), "options.k", least=1)
        with self._scope.enter(call):
            if len(rows) == 1:
                return to_plain(rows)  # DSPy's own cannot sort one score
            knn = self._made("knn", [to_plain(rows), list(inputs)], lambda: dspy.KNN(1, rows, self._vectorizer))
            return to_plain(_nearest(knn, k, inputs))

    def _embeddings(self, args: Any, call: Call) -> Any:
        """Operation `dspy.Embeddings {query | queries, corpus, k, normalize}` -> {passages, indices, scores}.

        A list of them for `queries`. k is 5 if it is not given; scores are cosines, inner products with
        `normalize: false`.
        """
        optional = ("query", "queries", "k", "normalize")
        fields = arguments.read(args, "dspy.Embeddings", required=("corpus",), optional=optional)
        if ("query" in fields) == ("queries" in fields):
            raise arguments.invalid("query", "dspy.Embeddings needs query, a text, or queries, a list of texts")
        one = "query" in fields
        queries = [_text(fields["query"], "query")] if one else _texts(fields["queries"], "queries")
        normalize = fields.get("normalize", True)
        if not isinstance(normalize, bool):
            raise arguments.invalid("normalize", f"normalize must be true or false, got {arguments.shown(normalize)}")
        with self._scope.enter(call):
            found = self._search(fields, queries, arguments.whole(fields.get("k", 5), "k", least=1), normalize)
        return to_plain(found[0] if one else found)

    def _retrieve(self, args: Any, call: Call) -> Any:
        """Operation `dspy.Retrieve {query, corpus, k}` -> {passages}: DSPy's retriever over a corpus; k is 3."""
        fields = arguments.read(args, "dspy.Retrieve", required=("query", "corpus"), optional=("k",))
        query = _text(fields["query"], "query")
        k = arguments.whole(fields.get("k", 3), "k", least=1)

        def retriever(asked: str, k: int) -> list[Any]:
            (found,) = self._search(fields, [asked], k, normalize=True)
            return [dspy.Example(long_text=passage) for passage in found.passages]

        with self._scope.enter(call, rm=retriever):
            return to_plain(dspy.Retrieve(k)(query))

    def _search(self, fields: Mapping[str, Any], queries: list[str], k: int, normalize: bool) -> list[Any]:
        corpus = _texts(fields["corpus"], "corpus")
        if not corpus:
            raise arguments.invalid("corpus", "corpus must have at least one text")
        if not queries:
            return []
        index = self._made("index", [corpus, normalize], lambda: _Index(corpus, self._vectorizer, normalize=normalize))
        return index.search(queries, k)

    @property
    def _vectorizer(self) -> Embedder:
        if self._embedder is None:
            from bridge.worker.embedding.hashing import HashEmbedder

            self._embedder = HashEmbedder(HashEmbedder.DIMENSION)
        return self._embedder

    def _made(self, what: str, data: list[Any], make: Callable[[], T]) -> T:
        """Return what was made of equal data before, else make it."""
        encoded = encode_value(data)
        key = hashlib.sha256(what.encode() + encoded).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]  # type: ignore[no-any-return]
        made = make()
        if len(encoded) <= _KEPT_BYTES:
            with self._lock:
                self._kept[key] = made
                while len(self._kept) > _KEPT_INDEXES:
                    self._kept.popitem(last=False)
        return made


def _nearest(knn: Any, k: int, inputs: Mapping[str, Any]) -> list[Any]:
    """Return a KNN's rows for inputs. It is shared, so its own k is not touched."""
    asked = dspy.KNN.__new__(dspy.KNN)
    asked.__dict__.update(vars(knn), k=k)
    return asked(**inputs)  # type: ignore[no-any-return]


def _trainset(rows: Any, inputs: Mapping[str, Any]) -> list[Any]:
    path = "options.trainset"
    if not isinstance(rows, list | tuple) or not rows:
        text = f"{path} must be a list of rows that is not empty, each {_EXAMPLE}; got {arguments.shown(rows)}"
        raise arguments.invalid(path, text)
    if not inputs:
        raise arguments.invalid("inputs", "dspy.KNN needs at least one input to compare by")
    examples = []
    for index, row in enumerate(rows):
        where = f"{path}[{index}]"
        if not isinstance(row, Mapping | dspy.Example):
            raise arguments.invalid(where, f"{where} must be {_EXAMPLE}, got {arguments.shown(row)}")
        fields = dict(row.items())
        if missing := [name for name in inputs if name not in fields]:
            raise arguments.invalid(f"{where}.{missing[0]}", f"{where}.{missing[0]} is missing: inputs has it")
        examples.append(dspy.Example(**fields).with_inputs(*inputs))
    return examples


def _text(value: Any, path: str) -> str:
    return arguments.text(value, path)


def _texts(value: Any, path: str) -> list[str]:
    if not isinstance(value, list | tuple):
        raise arguments.invalid(path, f"{path} must be a list of texts, got {arguments.shown(value)}")
    for index, one in enumerate(value):
        if not isinstance(one, str):
            raise arguments.invalid(f"{path}[{index}]", f"{path}[{index}] must be a text, got {arguments.shown(one)}")
    return list(value)
