"""Numbers on a command line: what is none of those that make sense is refused there, with a text."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """Read a whole number from 1 on."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return number


def positive(text: str) -> float:
    """Read a number above 0 that has an end."""
    number = _number(text)
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return number


def percent(text: str) -> float:
    """Read a number from 0 to 100."""
    number = _number(text)
    if not 0.0 <= number <= 100.0:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 100, got {text}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
