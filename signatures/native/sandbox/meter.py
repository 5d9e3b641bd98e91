"""How much one render may do: a budget that every operation of a template is charged to before it is done."""

from __future__ import annotations

from typing import Final

# Together they keep the worst template near one second and 50 MB, on one ordinary core.
MAX_ITERATIONS: Final = 100_000
MAX_WORK: Final = 1_000_000
MAX_CHARS: Final = 8 * 1024 * 1024
MAX_CALL_DEPTH: Final = 50
_CALL_WORK: Final = 20


class Refused(ValueError):
    """What a template may not do. The message says what, and what to write instead."""


class Meter:
    """What is left of one render's budget.

    iterations: turns of all loops together. work: expressions evaluated and items looked at. chars: characters of text
    made or read on the way, whether they are shown or not. Macros and recursive loops nest `MAX_CALL_DEPTH` deep.
    """

    __slots__ = ("chars", "depth", "iterations", "work")

    def __init__(self) -> None:
        self.iterations = MAX_ITERATIONS
        self.work = MAX_WORK
        self.chars = MAX_CHARS
        self.depth = 0

    def turn(self, work: int) -> None:
        """Charge one turn of a loop, or one call of a macro, whose body holds this much work."""
        self.iterations -= 1
        if self.iterations < 0:
            raise Refused(f"the loops of a template may turn {MAX_ITERATIONS:,} times in all; give it fewer items")
        self.spend(work)

    def spend(self, work: int) -> None:
        """Charge work."""
        self.work -= work
        if self.work < 0:
            raise Refused(f"the template does more than {MAX_WORK:,} steps; give it fewer items or simplify its loops")

    def write(self, chars: int) -> None:
        """Charge text."""
        self.chars -= chars
        if self.chars < 0:
            raise Refused(f"the template handles more than {MAX_CHARS:,} characters of text; give it shorter values")

    def enter(self) -> None:
        """Go one macro or recursive loop deeper, which costs as much as some plain steps; `leave` comes back."""
        self.spend(_CALL_WORK)
        self.depth += 1
        if self.depth > MAX_CALL_DEPTH:
            raise Refused(f"macros and recursive loops may call each other {MAX_CALL_DEPTH} deep; end the recursion")

    def leave(self) -> None:
        """Come back from what `enter` went into."""
        self.depth -= 1
