"""What clients saw, as they wrote it down, and whether it may be.

A history is a file of JSON lines: one when a request is sent and one when it is settled, each a single write before
anything else happens, so that what a killed client has asked for is known. Times are of the monotonic clock, which all
processes of a machine share.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

OK: Final = "OK"
# A caller is told this much after its deadline at the latest.
LATE_S: Final = 1.0
# Of a request that may run again: itself and two resends.
MOST_RUNS: Final = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. code: OK, or that of its error. executed: what a WorkerLost says. answer: of an OK."""

    code: str
    at_s: float
    executed: str = ""
    answer: Any = None


@dataclass(slots=True)
class Call:
    """One request of one client. token: what it writes when it runs, and what it answers.

    Calls that share an idempotency key share its token. deadline_s: from `sent_at_s` on. has_effect: it writes.
    """

    call_id: str
    client: str
    token: str
    sent_at_s: float
    deadline_s: float
    idempotent: bool = False
    has_effect: bool = True
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pause:
    """A client's process was stopped: what it should have seen meanwhile it saw later."""

    client: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Violation:
    """What must not be. rule: which promise is broken."""

    rule: str
    call_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.call_id}: {self.text}"


# --- written down, read -----------------------------------------------------------------------------


class Recorder:
    """Writes one client's history. Thread-safe: each line is one write."""

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def sent(self, call: Call) -> None:
        """Note a request; called before it is sent."""
        self._write(
            ["sent", call.call_id, call.client, call.token, call.sent_at_s, call.deadline_s, call.idempotent,
             call.has_effect]
        )  # fmt: skip

    def settled(self, call_id: str, outcome: Outcome) -> None:
        """Note how it ended."""
        self._write(["settled", call_id, outcome.code, outcome.at_s, outcome.executed, outcome.answer])

    def close(self) -> None:
        """Write no more."""
        os.close(self._fd)

    def _write(self, fields: list[Any]) -> None:
        os.write(self._fd, json.dumps(fields, default=repr).encode() + b"\n")


def read(files: Iterable[Path]) -> tuple[dict[str, Call], list[Violation]]:
    """Return the calls by id; an outcome of a call that nobody sent, or a call sent twice, is a violation."""
    calls: dict[str, Call] = {}
    found: list[Violation] = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            kind, call_id, *fields = json.loads(line)
            if kind == "sent":
                if call_id in calls:
                    found.append(Violation("one id each", call_id, "sent twice"))
                calls[call_id] = Call(call_id, *fields)
            elif call_id in calls:
                calls[call_id].outcomes.append(Outcome(*fields))
            else:
                found.append(Violation("one outcome", call_id, "an outcome of what was never sent"))
    return calls, found


def read_effects(file: Path) -> Counter[str]:
    """Return how often each token was written."""
    return Counter(file.read_text(encoding="utf-8").splitlines()) if file.exists() else Counter()


# --- judged -----------------------------------------------------------------------------------------


def violations(
    calls: Mapping[str, Call], effects: Mapping[str, int], *, vanished: Iterable[str] = (), pauses: Sequence[Pause] = ()
) -> list[Violation]:
    """Return every broken promise. vanished: clients that were killed; nobody tells them anything."""
    gone = frozenset(vanished)
    paused: defaultdict[str, list[Pause]] = defaultdict(list)
    for pause in pauses:
        paused[pause.client].append(pause)
    by_token: defaultdict[str, list[Call]] = defaultdict(list)
    found: list[Violation] = []
    for call in calls.values():
        by_token[call.token].append(call)
        found += _of_outcomes(call, gone)
        found += _of_time(call, paused[call.client])
    for token, sharing in by_token.items():
        found += _of_effects(sharing, effects.get(token, 0))
    found += [
        Violation("known work", token, f"ran {times} times and was asked for by nobody")
        for token, times in effects.items()
        if token not in by_token
    ]
    return found


def _of_outcomes(call: Call, gone: frozenset[str]) -> Iterable[Violation]:
    count = len(call.outcomes)
    if count > 1 or (count == 0 and call.client not in gone):
        yield Violation("one outcome", call.call_id, f"has {count}: {[each.code for each in call.outcomes]}")
    for outcome in call.outcomes:
        if outcome.code == OK and outcome.answer != call.token:
            text = f"asked with {call.token!r}, answered {outcome.answer!r}"
            yield Violation("its own answer", call.call_id, text)


def _of_time(call: Call, pauses: Sequence[Pause]) -> Iterable[Violation]:
    for outcome in call.outcomes:
        stood_s = sum(_overlap(pause, call.sent_at_s, outcome.at_s) for pause in pauses)
        late_s = outcome.at_s - call.sent_at_s - call.deadline_s - stood_s
        if late_s > LATE_S:
            yield Violation("told in time", call.call_id, f"{outcome.code} {late_s:.3f} s after its deadline")


def _overlap(pause: Pause, from_s: float, to_s: float) -> float:
    return max(0.0, min(pause.to_s, to_s) - max(pause.from_s, from_s))


def _of_effects(sharing: Sequence[Call], runs: int) -> Iterable[Violation]:
    """Judge how often a token was written by those that share it (one, or all of an idempotency key)."""
    first = sharing[0]
    if not first.has_effect:
        return
    outcomes = [outcome for call in sharing for outcome in call.outcomes]
    # What a key's first call came to is the answer of the others; where it failed, another may have tried again.
    failed = sum(outcome.code != OK for outcome in outcomes) + len(sharing) - len(outcomes)
    most = MOST_RUNS * min(len(sharing), 1 + failed) if first.idempotent else 1
    if runs > most:
        yield Violation("at most so often", first.call_id, f"ran {runs} times, {most} at most")
    if runs == 0 and any(outcome.code == OK for outcome in outcomes):
        yield Violation("an answer was worked for", first.call_id, "is OK and never ran")
    if runs and len(outcomes) == len(sharing) and all(outcome.executed == "no" for outcome in outcomes):
        yield Violation("no means no", first.call_id, f"executed=no, and it ran {runs} times")


def worst_late_s(calls: Iterable[Call]) -> float:
    """Return how long after its deadline the latest outcome came, in seconds; 0 where all came before."""
    late = (each.at_s - call.sent_at_s - call.deadline_s for call in calls for each in call.outcomes)
    return max(0.0, max(late, default=0.0))
