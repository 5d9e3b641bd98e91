"""What programs and sessions cost: those who do not use them, and those who do."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from orchestrator.bench import crowd, lasting
from orchestrator.bench.bare_fleet import BareFleet
from orchestrator.bench.figures import Figure, FiguresReport
from orchestrator.bench.machine import describe_machine
from orchestrator.bench.subject import Dspool

SESSIONS: Final = 10_000
PROGRAMS: Final = 1_000
_ECHOES_EACH_S: Final = 20_000
# Of each round: in short turns what the machine does meanwhile falls on all alike.
_TURNS: Final = 5

Say = Callable[[str], None]


def run_control(
    *, seconds: float = 0.5, rounds: int = 5, sessions: int = SESSIONS, programs: int = PROGRAMS,
    folder: Path | None = None, say: Say = lambda text: None,
) -> FiguresReport:  # fmt: skip
    """Measure and return what was found.

    seconds: of each quantity in each round. sessions, programs: of the coordinator that is compared with an empty one;
    one at least of each. folder: stores are in a folder made there, for so long; None = the home, which is on a disk.
    say: told what is going on, a line at a time.
    """
    figures = [
        *_decisions(sessions, programs, seconds, rounds, say),
        *_coordinators(folder or Path.home(), sessions, programs, seconds, rounds, say),
    ]
    settings = {"seconds": seconds, "rounds": rounds, "sessions": sessions, "programs": programs}
    return FiguresReport(describe_machine(), settings, figures)


def _coordinators(where: Path, sessions: int, programs: int, seconds: float, rounds: int, say: Say) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(dir=where, prefix=".dspool-bench-") as name, ExitStack() as stack:
        home = Path(name)
        empty = Dspool(data_dir=home / "empty", sessions={"durable": True, "max": lasting.MOST_OPEN})
        stack.callback(empty.stop)
        empty.start()
        with ExitStack() as crowded:
            full = Dspool(data_dir=home / "full", sessions={"max": sessions + 1})
            crowded.callback(full.stop)
            full.start()
            yield from crowd.fill(full, sessions, programs, say)
            yield from crowd.compare(empty, full, seconds, rounds, say)
        yield from lasting.answers(empty.client, home, seconds, rounds, say)
        yield from lasting.commits(home, seconds, rounds, say)


def _decisions(sessions: int, programs: int, seconds: float, rounds: int, say: Say) -> Iterator[Figure]:
    say("the fleet by itself")
    empty, full = BareFleet(), BareFleet(sessions, programs)
    each: dict[str, Callable[[int], float]] = {
        "an echo, empty": empty.echoes, "an echo, full": full.echoes, "a call in a session, full": full.calls,
    }  # fmt: skip
    count = math.ceil(seconds * _ECHOES_EACH_S / _TURNS)
    for measured in each.values():
        measured(count)
    spent_us: dict[str, list[float]] = {name: [] for name in each}
    for number in range(rounds):
        sums = dict.fromkeys(each, 0.0)
        for turn in range(_TURNS):
            for name, measured in list(each.items())[:: 1 if (turn + number) % 2 == 0 else -1]:
                sums[name] += measured(count)
        for name, total in sums.items():
            spent_us[name].append(total / _TURNS)
    for name, spent in spent_us.items():
        yield Figure(f"the fleet's decisions: {name}", "µs", None, spent)
    plain = spent_us["an echo, full"]
    dearer = [full / empty for empty, full in zip(spent_us["an echo, empty"], plain, strict=True)]
    yield Figure("the fleet's decisions: an echo, full / empty", "", crowd.MOST_DEARER, dearer)
    calls = [call / echo for echo, call in zip(plain, spent_us["a call in a session, full"], strict=True)]
    yield Figure("the fleet's decisions: a call in a session / an echo", "", None, calls)
