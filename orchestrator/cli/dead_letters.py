"""`dspool dead-letter`: requests that workers died of, kept until somebody decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

import typer

from orchestrator.cli.coordinators import session
from orchestrator.cli.failure import command
from orchestrator.cli.listings import AsJson
from orchestrator.cli.plain import duration, plain, readable
from orchestrator.cli.screen import fill, out, print_json, table
from orchestrator.errors import InvalidRequest, NotFound

app = typer.Typer(help="Requests in quarantine: workers died of them.", no_args_is_help=True)
LetterId = Annotated[str, typer.Argument(metavar="ID", help="As `dspool dead-letter ls` shows it.")]
_ARGS: Final = "args"


@app.command("ls")
@command
def list_letters(as_json: AsJson = False) -> None:
    """List the requests in quarantine. They, and all that equal them, are refused."""
    with session() as client:
        rows = client.dead_letters()
    if as_json:
        print_json(plain(rows))
    elif not rows:
        out().print("no request is in quarantine", markup=False)
    else:
        out().print(_table(rows))
        out().print("their arguments: dspool dead-letter show ID", markup=False)


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    headings = ("id", "operation", "pool", "principal", ">re-\nquests", ">last\ndeath", "causes of\nthe deaths")
    made = table(*headings, tight=True)
    made.columns[1].no_wrap = True  # of all that may be long, the causes are to give way
    return fill(
        made,
        (
            [
                row["id"], row["operation"], row["pool"], row["principal"], row["requests"],
                duration(row["last_s_ago"]), counted(row["causes"]),
            ]
            for row in rows
        ),
    )  # fmt: skip


def counted(causes: Sequence[str]) -> str:
    """Return causes in a line, each once, with how often it was one: `2x exit code 1; killed by signal 9`."""
    times = Counter(causes)
    return "; ".join(cause if count == 1 else f"{count}x {cause}" for cause, count in times.items())


@app.command("show")
@command
def show(letter: LetterId, as_json: AsJson = False) -> None:
    """Show a request in quarantine: what it asked for, and how the workers died."""
    with session() as client:
        found = client.dead_letter(letter)
    if as_json:
        print_json(plain(found))
        return
    console = out()
    for key, value in found.items():
        if key != _ARGS and value is not None:
            console.print(_line(key, value), markup=False)
    if _ARGS in found:
        console.print(f"{_ARGS}:\n{readable(found[_ARGS])}", markup=False)


def _line(key: str, value: Any) -> str:
    if key.endswith("_s_ago"):
        return f"{key.removesuffix('_s_ago')} death: {duration(value)} ago"
    return f"{key}: {'; '.join(map(str, value)) if isinstance(value, list) else value}"


@app.command("requeue")
@command
def requeue(
    letter: LetterId,
    deadline_s: Annotated[float | None, typer.Option("--deadline", help="Seconds that it may take.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a request out of quarantine and run it once more; print its value.

    Do so when what killed the workers is mended. Those who sent it have had their answer.
    """
    with session() as client:
        value = client.requeue_dead_letter(letter, deadline_s=deadline_s)
    if as_json:
        print_json({"id": letter, "value": plain(value)})
    else:
        typer.echo(readable(value))


@app.command("drop")
@command
def drop(
    letter: Annotated[str | None, typer.Argument(metavar="[ID]", help="As `dspool dead-letter ls` shows it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are in quarantine now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget a request in quarantine: its equals are accepted again."""
    if (letter is None) is not everything:
        raise InvalidRequest("name one request, or say --all")
    dropped = []
    with session() as client:
        if letter is not None:
            client.drop_dead_letter(letter)
            dropped.append(letter)
        else:
            for row in client.dead_letters():
                with suppress(NotFound):  # somebody else was faster
                    client.drop_dead_letter(row["id"])
                    dropped.append(row["id"])
    if as_json:
        print_json({"dropped": plain(dropped)})
    else:
        out().print(f"dropped: {', '.join(map(str, dropped)) or 'nothing is in quarantine'}", markup=False)
