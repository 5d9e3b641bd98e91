"""Signature texts: what a program takes and gives. Imports no project code and no DSPy."""

from __future__ import annotations

from signatures.errors import SignatureError

__all__ = ["SignatureError"]
