"""A program whose input is called `signature` and is none."""

from __future__ import annotations

from typing import Any

import dspy


class ValidateMine(dspy.Module):
    """Returns its input with an exclamation mark."""

    def forward(self, signature: str) -> Any:
        return dspy.Prediction(signature=f"{signature}!")
