"""`dspool sessions`: what callers left with the fleet between their calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from bridge.wallclock import unix_now
from orchestrator.cli.coordinators import session
from orchestrator.cli.failure import command
from orchestrator.cli.listings import AsJson
from orchestrator.cli.plain import duration, in_line, milliseconds, plain, readable
from orchestrator.cli.screen import fill, out, print_json, table
from orchestrator.errors import NotFound

app = typer.Typer(
    help="Sessions, calls that share a state and a conversation: list, show and end them.", invoke_without_command=True
)
SessionId = Annotated[str, typer.Argument(metavar="ID", help="As `dspool sessions ls` shows it.")]
# Shown apart from the rest.
_LONG: Final = ("state", "history", "metrics")
_SHOWN_CHARS: Final = 70


@app.callback()
@command
def sessions(context: typer.Context, as_json: AsJson = False) -> None:
    """List the sessions of this user; with a command: show one, or end it."""
    if context.invoked_subcommand is None:
        _list(as_json=as_json)


@app.command("ls")
@command
def list_sessions(as_json: AsJson = False) -> None:
    """List the sessions of this user."""
    _list(as_json=as_json)


def _list(*, as_json: bool) -> None:
    with session() as client:
        rows = client.sessions()
    if as_json:
        print_json(plain(rows))
    elif not rows:
        out().print("there is no session", markup=False)
    else:
        out().print(_table(rows))


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    headings = ("id", "worker", ">calls", ">waiting", ">idle", ">ttl", ">state\nbytes", "affinity", "on loss")
    return fill(
        table(*headings, tight=True),
        (
            [
                in_line(row["id"]), "lost" if row["lost"] else row["worker"] or "-", row["calls"], row["waiting"],
                "busy" if row["busy"] else duration(row["idle_s"]), duration(row["ttl_s"]), row["state_bytes"],
                row["affinity"], row["on_loss"],
            ]
            for row in rows
        ),
    )  # fmt: skip


@app.command("show")
@command
def show(name: SessionId, as_json: AsJson = False) -> None:
    """Show a session: where it is, what it remembers, how its calls went, and the last of them."""
    with session() as client:
        found = client.session_info(name)
    if as_json:
        print_json(plain(found))
        return
    console = out()
    for key, value in found.items():
        if key not in _LONG and value is not None:
            text = duration(value) if key.endswith("_s") else in_line(str(value))
            console.print(f"{key}: {text}", markup=False)
    console.print(_metrics(found["metrics"]), markup=False)
    console.print(f"state:\n{readable(found['state'])}", markup=False)
    if found["history"]:
        console.print(_turns(found["history"]))


def _metrics(found: Mapping[str, Any]) -> str:
    if not found["count"]:
        return "metrics: no call yet"
    return (
        f"metrics: {found['count']} calls, {found['success_rate']:.0%} good, mean {milliseconds(found['mean_ms'])} ms, "
        f"p95 {milliseconds(found['p95_ms'])} ms, {found['trend']}"
    )


def _turns(history: Sequence[Mapping[str, Any]]) -> Any:
    made = table("operation", ">ms", ">ago", "inputs", "outcome", title="its last calls", tight=True)
    now = unix_now()
    return fill(
        made,
        (
            [
                turn["operation"], milliseconds(turn["run_ms"]), duration(max(0.0, now - turn["at"])),
                _short(turn["inputs"]), _short(turn["outputs"]) if turn["ok"] else turn["error"],
            ]
            for turn in history
        ),
    )  # fmt: skip


def _short(value: Any) -> str:
    text = " ".join(readable(value).split())
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


@app.command("expire")
@command
def expire(name: SessionId, as_json: AsJson = False) -> None:
    """End a session: after the call that runs in it; what waits in it is refused."""
    with session() as client:
        was_there = client.expire_session(name)
    if not was_there:
        raise NotFound(f"there is no session {name!r}; `dspool sessions ls` lists those there are")
    if as_json:
        print_json({"id": name, "expired": True})
    else:
        out().print(f"session {in_line(name)} has ended", markup=False)
