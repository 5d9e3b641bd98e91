"""`dspool events`: what happened to the fleet, and what happens."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.cli.coordinators import session
from orchestrator.cli.failure import command
from orchestrator.cli.listings import AsJson
from orchestrator.cli.plain import plain
from orchestrator.cli.screen import err
from orchestrator.errors import Unavailable

if TYPE_CHECKING:
    from orchestrator.client.client import Client
    from orchestrator.client.events import FleetEvent

# Of this run, unless --after says from where.
_LATEST: Final = 100
_RUN_SHIFT: Final = 32
_LOOK_S: Final = 0.2


@command
def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for what happens, over restarts of the coordinator, too.")
    ] = False,
    after: Annotated[
        int | None, typer.Option("--after", metavar="N", help="Events behind number N; 0: all that are kept.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the event log: workers that came and went, programs deployed, breakers, failed requests.

    Without --after the latest 100 of this run. --json: a line for each event.
    """
    show = _show_json if as_json else _show
    if follow:
        _follow(after, show)
        return
    with session() as client:
        for event in client.events(_start(client) if after is None else after, follow=False):
            show(event)


def _follow(after: int | None, show: Callable[[FleetEvent], None]) -> None:
    """Show events until interrupted. A coordinator that ends is waited for: it, or the next one, has the rest."""
    has_begun = is_told = False
    while True:
        try:
            with session() as client:
                if after is None:
                    after = _start(client)
                has_begun, is_told = True, False
                for event in client.events(after):
                    show(event)
                    after = event.seq
        except Unavailable as exc:
            if not has_begun:
                raise
            if not is_told:
                err().print(f"{exc.message.partition(';')[0]}; waiting for the next one", markup=False)
            is_told = True
            time.sleep(_LOOK_S)


def _start(client: Client) -> int:
    """Return the number behind which the latest events of this run are."""
    last = int(client.execute("dspool.events", {"after": (1 << 63) - 1, "limit": 1})["last"])
    return max(last >> _RUN_SHIFT << _RUN_SHIFT, last - _LATEST)


def _show(event: FleetEvent) -> None:
    at = datetime.fromtimestamp(event.at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    level = "" if event.level == "info" else f"{event.level} "
    _print(f"{event.seq}  {at}  {level}{event.event}  {_fields(event.fields)}".rstrip())


def _fields(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in fields.items() if value is not None)


def _value(value: Any) -> str:
    """Return a field in one line: a text as it is where that is one word, else as JSON."""
    if isinstance(value, str) and value and value.isprintable() and not set(' "=') & set(value):
        return value
    return json.dumps(plain(value), ensure_ascii=False)


def _show_json(event: FleetEvent) -> None:
    told = {"seq": event.seq, "at": event.at, "event": event.event, "level": event.level, "fields": plain(event.fields)}
    _print(json.dumps(told))


def _print(line: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()
