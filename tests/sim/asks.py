"""What clients ask for: one request in a client's words, and how it is drawn."""

from __future__ import annotations

from random import Random
from typing import Final, NamedTuple

from bridge.protocol import messages as wire
from pools.config import FleetConfig
from tests.sim.noise import pick
from tests.sim.work import Work

PROGRAM: Final = "qa"
# Payloads that several requests share; the last one ends every process that runs it.
SHARED: Final = (b"a", b"a", b"b")
POISON: Final = b"poison"
_ENDINGS: Final = ("ok",) * 12 + ("error", "hang", "hang", "deaf", "crash", "crash", "last words", "twice")
_RUNS_S: Final = (0.0001, 0.0001, 0.002, 0.008, 0.03, 0.03, 0.2, 1.5)
_DEADLINES_MS: Final = (None, None, None, None, 8.0, 40.0, 40.0, 300.0, 2000.0)
_ROWS: Final = (1, 1, 1, 1, 1, 2, 5)
_PRIORITIES: Final = (wire.PRIORITY_NORMAL,) * 4 + (wire.PRIORITY_HIGH, wire.PRIORITY_LOW)
_CLASSES: Final = ("high", "normal", "low")
KEYS: Final = ("k", "k", "l")
_KEYED: Final = 0.08
_POISONED: Final = 0.05
_SHARING: Final = 0.1
_IDEMPOTENT: Final = 0.2
_ODD: Final = 0.03


class Ask(NamedTuple):
    """One request. payload: empty = like no other's.

    meant: which session of that name: any | opened (the one that was, last) | elsewhere (what nobody may say).
    """

    operation: str
    pool: str = ""
    rows: int = 1
    deadline_ms: float | None = None
    priority: int = wire.PRIORITY_NORMAL
    idempotent: bool = False
    key: str = ""
    payload: bytes = b""
    session: str = ""
    meant: str = "any"

    def __str__(self) -> str:
        said = [self.operation]
        said += [f"pool={self.pool!r}"] if self.pool else []
        said += [f"rows={self.rows}"] if self.rows != 1 else []
        said += [f"deadline_ms={self.deadline_ms}"] if self.deadline_ms is not None else []
        said += [_CLASSES[self.priority]] if self.priority != wire.PRIORITY_NORMAL else []
        said += ["idempotent"] if self.idempotent else []
        said += [f"key={self.key}"] if self.key else []
        said += [f"payload={self.payload.decode()}"] if self.payload else []
        said += [f"session={self.session!r} ({self.meant})"] if self.session else []
        return " ".join(said)


def draw_ask(random: Random, config: FleetConfig) -> tuple[Ask, Work]:
    """Draw a request and what it does once it runs."""
    operation = pick(random, ("fast", "fast", "fast", "slow", "slow", "slow", PROGRAM, "echo", "dspool.stats"))
    inline = operation == "echo"
    ending = pick(random, _ENDINGS)
    run_s = pick(random, _RUNS_S)
    ask = Ask(operation, pick(random, ("", "", "", config.pools[-1].name)), pick(random, _ROWS))
    ask = ask._replace(deadline_ms=pick(random, _DEADLINES_MS), priority=pick(random, _PRIORITIES))
    kind = random.random()
    if kind < _KEYED:
        rows = 2 if random.random() < _ODD else 1
        ask = ask._replace(key=pick(random, KEYS), payload=pick(random, SHARED), rows=rows)
    elif kind < _KEYED + _POISONED:
        ask, ending = ask._replace(payload=POISON), "crash"
    elif kind < _KEYED + _POISONED + _SHARING:
        ask = ask._replace(payload=pick(random, SHARED))
    if random.random() < _IDEMPOTENT:
        ask = ask._replace(idempotent=True)
    if random.random() < _ODD:
        ask = ask._replace(
            pool=pick(random, ("nowhere", "")), rows=pick(random, (0, 1, 5000)),
            deadline_ms=pick(random, (-1.0, float("nan"), 50.0)),
        )  # fmt: skip
    short = operation == "fast" and ending == "ok"
    return ask, Work(0.0001 if short else run_s, "ok" if inline else ending, inline, events=random.random() < 0.1)
