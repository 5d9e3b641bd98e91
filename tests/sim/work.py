"""What requests do once they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Work:
    """What a request does once it runs: for how long, and how it ends.

    ending: ok | error | hang (until asked to stop) | deaf (whatever it is asked) | late (ok, whatever it is asked) |
    crash (the process dies without a word) | last words (it replies and dies at once) | twice (it replies two times).
    children: what it asks for itself, an `Ask` and a `Work` each. waits: for their answers, its slot lent out.
    """

    run_s: float = 0.001
    ending: str = "ok"
    inline: bool = False
    events: bool = False
    children: tuple[tuple[Any, Work], ...] = ()
    waits: bool = True

    def __str__(self) -> str:
        said = [f"{self.run_s:g} s", self.ending]
        said += ["inline"] if self.inline else []
        said += ["with events"] if self.events else []
        if self.children:
            asked = "; ".join(f"{ask}, {work}" for ask, work in self.children)
            said.append(f"{'waits for' if self.waits else 'begins'} ({asked})")
        return " ".join(said)
