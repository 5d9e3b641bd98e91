"""Models that run in the worker itself, through sentence-transformers (extra `neural`)."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge.protocol.errors import INVALID_REQUEST, REMOTE_ERROR, BridgeError
from bridge.worker.call import Call
from bridge.worker.embedding.embedder import LOCAL_PREFIX, Embedder, Vectors, checked
from bridge.worker.raised import remote_error

# What every model of sentence-transformers has in its folder.
_MARK = "modules.json"


class LocalModel(Embedder):
    """A model of sentence-transformers, loaded when it is first needed, on the GPU that the worker sees if any.

    model: `sentence-transformers/WHERE`; where: a folder, an installed package that holds a model, or a name that
    sentence-transformers itself knows. dim: vectors are cut to it. params: what its `encode` takes.
    """

    def __init__(self, model: str, dim: int | None, most_texts: int | None, params: dict[str, Any]) -> None:
        self.model = model
        self.most_texts = most_texts
        self._dim = dim
        self._params = params
        self._lock = threading.Lock()
        self._loaded: Any = None

    def dimension(self) -> int:
        """Return the length of its vectors."""
        if self._dim is not None:
            return self._dim
        return len(self.embed(["dimension"])[0])

    def embed(self, texts: Sequence[str], call: Call | None = None) -> Vectors:
        """Return one vector per text. Raises BridgeError(INVALID_REQUEST) where the model cannot be had."""
        if call is not None:
            call.step()
        model = self._load()
        found = model.encode(list(texts), batch_size=len(texts), show_progress_bar=False, **self._params)
        return checked(found, len(texts), self._dim, self.model)

    def _load(self) -> Any:
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    self._loaded = _load(self.model, self._dim)
        return self._loaded


def _load(model: str, dim: int | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as exc:
        text = (
            f"the embedder {model} needs sentence-transformers ({exc}): pip install 'dspool[neural]' "
            "where the workers of this pool run"
        )
        raise BridgeError(INVALID_REQUEST, text, details={"path": "embedder.model"}) from exc
    where = folder_of(model.removeprefix(LOCAL_PREFIX))
    try:
        return SentenceTransformer(where, truncate_dim=dim)
    except Exception as exc:
        text = f"the embedder {model} could not be loaded: {type(exc).__name__}: {exc}"
        raise BridgeError(REMOTE_ERROR, text, details=remote_error(exc).details) from exc


def folder_of(where: str) -> str:
    """Return the folder of a model: of a path itself, of a package the one that it holds; else the name as it is."""
    path = Path(where).expanduser()
    if path.is_dir():
        return str(path)
    name = where.replace("-", "_")
    if not name.isidentifier() or (found := importlib.util.find_spec(name)) is None:
        return where
    for root in map(Path, found.submodule_search_locations or ()):
        marks = sorted(root.rglob(_MARK), key=lambda mark: len(mark.parts))
        if marks:
            return str(marks[0].parent)
    return where
