"""`dspool top`: pools and workers, live."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.cli.coordinators import require, session
from orchestrator.cli.failure import command
from orchestrator.cli.health import headline
from orchestrator.cli.listings import (
    Pools,
    breaker_text,
    calls_table,
    memory_text,
    pools_table,
    rate_text,
    running_calls,
    size_text,
    troubles,
    workers_table,
)
from orchestrator.cli.plain import duration, milliseconds, plain
from orchestrator.cli.screen import out, print_json

if TYPE_CHECKING:
    from rich.console import Console, Group

    from orchestrator.client.client import Client

_QUIT: Final = b"q"
_DEAD_SHOWN: Final = 5
_CALLS_SHOWN: Final = 10


@command
def top(
    every_s: Annotated[float, typer.Option("--every", min=0.1, max=3600.0, help="Seconds between two looks.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: one look.")] = False,
) -> None:
    """Show pools, workers and the longest calls live; q or Ctrl-C leaves.

    Where output is no terminal: a line per pool and look.
    """
    found = require()
    with session(found) as client:
        if as_json:
            stats, workers = client.stats(), client.workers()
            health = plain(client.health())
            print_json({"endpoint": found.endpoint, **plain(stats), "health": health, "workers": plain(workers)})
            return
        console = out()
        with contextlib.suppress(KeyboardInterrupt):  # how one leaves
            if console.is_terminal:
                _show_screen(client, console, every_s)
            else:
                _write_lines(client, console, every_s)


def _show_screen(client: Client, console: Console, every_s: float) -> None:
    from rich.live import Live

    rates = Rates()
    with keys() as readable, Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            stats, workers, health = client.stats(), client.workers(), client.health()
            live.update(frame(stats, workers, health, rates.of(stats["pools"], time.monotonic())), refresh=True)
            if _asked_to_leave(readable, every_s):
                return


def _write_lines(client: Client, console: Console, every_s: float) -> None:
    rates = Rates()
    while True:
        stats = client.stats()
        for line in lines(stats["pools"], rates.of(stats["pools"], time.monotonic())):
            console.print(f"up {duration(stats['uptime_s'])}: {line}", markup=False)
        time.sleep(every_s)


@contextlib.contextmanager
def keys() -> Iterator[bool]:
    """Have standard input give each key as it is pressed, unseen; say whether it can."""
    if not sys.stdin.isatty():
        yield False
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _asked_to_leave(readable: bool, within_s: float) -> bool:
    """Wait; return whether `q` was pressed meanwhile, or nobody is left to press it."""
    until = time.monotonic() + within_s
    while (left_s := until - time.monotonic()) > 0:
        if not readable:
            time.sleep(left_s)
        elif select.select([sys.stdin], [], [], left_s)[0]:
            pressed = os.read(sys.stdin.fileno(), 64)
            if not pressed or _QUIT in pressed:
                return True
    return False


class Rates:
    """Answered rows per second of each pool, from one look to the next."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._at = 0.0

    def of(self, pools: Pools, now: float) -> dict[str, float | None]:
        """Return the rates since the last look, None for what was not there then."""
        counts = {name: int(row["completed"]) + int(row["failed"]) for name, row in pools.items()}
        before, passed_s = self._before, now - self._at
        self._before, self._at = counts, now
        return {
            name: (count - before[name]) / passed_s if name in before and passed_s > 0 else None
            for name, count in counts.items()
        }


def frame(
    stats: Mapping[str, Any], workers: Sequence[Mapping[str, Any]], health: Mapping[str, Any],
    rates: Mapping[str, float | None],
) -> Group:  # fmt: skip
    """Return the whole screen."""
    from rich.console import Group
    from rich.text import Text

    requests = stats["requests"]
    head = (
        f"coordinator pid {stats['pid']}, up {duration(stats['uptime_s'])}, {stats['wire']['clients']} clients; "
        f"requests: {requests['queued']} queued, {requests['in_flight']} in flight, {requests['settled']:,} settled"
    )
    memory = memory_text(stats["memory"])
    living = [row for row in workers if row["state"] != "exited"]
    dead = [row for row in workers if row["state"] == "exited"]
    parts: list[Any] = [Text(head), Text(memory, style="bold red" if stats["memory"]["paused"] else "")]
    parts += [Text(headline(health), style="" if health["status"] == "ok" else "bold red")]
    parts += [pools_table(stats["pools"], rates), *map(Text, troubles(stats["pools"])), workers_table(living)]
    if calls := running_calls(living)[:_CALLS_SHOWN]:
        parts.append(calls_table(calls, title="the longest calls"))
    parts += [Text(f"{row['id']} leaves: {row['leaving']}") for row in living if row["leaving"]]
    parts += [Text(f"{row['id']} ended after {duration(row['age_s'])}: {_cause(row)}") for row in dead[:_DEAD_SHOWN]]
    return Group(*parts, Text("q leaves", style="dim"))


def _cause(row: Mapping[str, Any]) -> str:
    return str(row["exit"]["cause"]).partition("\n")[0]


def _state(row: Mapping[str, Any]) -> str:
    return "off" if not row["size"] else str(row["state"])


def lines(pools: Pools, rates: Mapping[str, float | None]) -> list[str]:
    """Return a line for each pool."""
    return [
        f"{name}: {_state(row)}, {row['ready']}/{size_text(row)} ready, {row['busy']} busy, {row['queued']} queued, "
        f"{row['in_flight']} in flight, {rate_text(rates.get(name))} per s, p50 {milliseconds(row['p50_ms'])} ms, "
        f"p99 {milliseconds(row['p99_ms'])} ms, {row['restarts']} restarts, {row['resent']} resent, "
        f"{row['shed']} shed, breaker {breaker_text(row)}"
        for name, row in pools.items()
    ]
