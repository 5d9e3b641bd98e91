"""Embedders: texts in, vectors out, as the configuration's `embedder` says."""

from bridge.worker.embedding.embedder import Embedder, Vectors

__all__ = ["Embedder", "Vectors"]
