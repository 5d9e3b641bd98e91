"""Language models inside a worker: `dspy.LM` objects by name, on engines of our own."""

from __future__ import annotations

from bridge.worker.lm.errors import translate
from bridge.worker.lm.models import LanguageModels

__all__ = ["LanguageModels", "translate"]
