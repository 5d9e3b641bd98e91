"""`dspool deploy`, `undeploy`, `programs`: what is deployed, in which versions, and which of them is meant."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.wallclock import unix_now
from orchestrator.cli.arguments import parse_target, read_args
from orchestrator.cli.coordinators import session
from orchestrator.cli.failure import command
from orchestrator.cli.listings import AsJson
from orchestrator.cli.plain import duration, in_line, plain
from orchestrator.cli.screen import fill, out, print_json, table
from orchestrator.errors import InvalidRequest

app = typer.Typer(
    help="The deployed programs: list them and their versions, compare, move aliases, roll back.",
    invoke_without_command=True,
)
ProgramName = Annotated[str, typer.Argument(metavar="NAME", help="A deployed program.")]
VersionName = Annotated[str, typer.Argument(metavar="VERSION", help="The number of a version, or an alias.")]
_LONG = ("state",)


# --- deploying --------------------------------------------------------------------------------


@command
def deploy(
    name: Annotated[str, typer.Argument(help="The name that the program gets: it is called by it.")],
    target: Annotated[str, typer.Argument(help='pkg.module:Class, file.py:Class, or {"module": …, "signature": …}')],
    pool: Annotated[str, typer.Option("--pool", help="Where the program runs.")] = "general",
    state: Annotated[
        Path | None, typer.Option("--state", help="A JSON file of the program's state, as dspy saves it.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="What its class is made with: JSON, @file, or - for standard input.")
    ] = None,
    alias: Annotated[str, typer.Option("--alias", help="What names the version: it is called as NAME@ALIAS.")] = "live",
    warm: Annotated[bool, typer.Option("--warm", help="Have all workers load it before the alias names it.")] = False,
    note: Annotated[str, typer.Option("--note", help="What is to be remembered of this version.")] = "",
    as_json: AsJson = False,
) -> None:
    """Deploy a program: it is loaded in a worker before this returns."""
    loaded = None if state is None else _mapping(f"@{state}", "state", f"{state} holds no program's state")
    made_with = None if config is None else _mapping(config, "config", "--config is no configuration")
    with session() as client:
        version = client.deploy(
            name, parse_target(target), pool=pool, state=loaded, config=made_with, alias=alias, warm=warm, note=note
        )
    if as_json:
        print_json({key: getattr(version, key) for key in version.__slots__})
        return
    done = "is deployed" if version.created else "was deployed already"
    named = "" if alias == "live" else f" as {name}@{alias}"
    out().print(f"{name} version {version.version} ({version.sha256[:12]}) {done} in {pool}{named}", markup=False)


def _mapping(option: str, path: str, otherwise: str) -> dict[str, Any]:
    value = read_args(option, [])
    if not isinstance(value, dict):
        raise InvalidRequest(f"{otherwise}: a JSON object is needed", path=path)
    return value


@app.command("undeploy")
@command
def undeploy(name: ProgramName, as_json: AsJson = False) -> None:
    """Remove a deployed program, with all its versions."""
    with session() as client:
        client.undeploy(name)
    if as_json:
        print_json({"name": name, "deployed": False})
    else:
        out().print(f"{name} is removed", markup=False)


# --- looking ----------------------------------------------------------------------------------


@app.callback()
@command
def programs(context: typer.Context, as_json: AsJson = False) -> None:
    """List the deployed programs; with a command: their versions, what these differ in, which one is live."""
    if context.invoked_subcommand is None:
        _list(as_json=as_json)


@app.command("ls")
@command
def list_programs(as_json: AsJson = False) -> None:
    """List the deployed programs."""
    _list(as_json=as_json)


def _list(*, as_json: bool) -> None:
    with session() as client:
        rows = plain(client.programs())
    if as_json:
        print_json(rows)
    elif not rows:
        out().print("no program is deployed: dspool deploy NAME TARGET", markup=False)
    else:
        made = table("program", ">version", "aliases", "pool", "inputs", "outputs", "target", "sha256")
        out().print(
            fill(
                made,
                (
                    [
                        row["name"], row["version"], _aliases(row["aliases"]), row["pool"], ", ".join(row["inputs"]),
                        ", ".join(row["outputs"]), _text(row["target"]), row["sha256"][:12],
                    ]
                    for row in rows
                ),
            )
        )  # fmt: skip


def _aliases(aliases: Mapping[str, int]) -> str:
    """Return the aliases beside `live`, of which the row is."""
    return ", ".join(f"{alias}={version}" for alias, version in aliases.items() if alias != "live") or "-"


@app.command("versions")
@command
def versions(name: ProgramName, as_json: AsJson = False) -> None:
    """List the versions of a program, the oldest first."""
    with session() as client:
        rows = plain(client.versions(name))
    if as_json:
        print_json(rows)
        return
    made = table(">version", "aliases", "pool", "target", "by", ">age", "sha256", "note")
    now = unix_now()
    out().print(
        fill(
            made,
            (
                [
                    row["version"], ", ".join(row["aliases"]) or "-", row["pool"], _text(row["target"]),
                    row["deployed_by"], duration(max(0.0, now - row["deployed_at"])), row["sha256"][:12],
                    in_line(row["note"]),
                ]
                for row in rows
            ),
        )
    )  # fmt: skip


@app.command("show")
@command
def show(
    name: ProgramName,
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="A number, or an alias.")] = "live",
    as_json: AsJson = False,
) -> None:
    """Show a version of a program whole, with its state."""
    with session() as client:
        found = plain(client.program_version(name, _version(version)))
    if as_json:
        print_json(found)
        return
    console = out()
    for key, value in found.items():
        if key not in _LONG:
            console.print(f"{key}: {in_line(_line(value))}", markup=False, highlight=False, soft_wrap=True)
    if found["state"] is not None:
        console.print(f"state:\n{json.dumps(found['state'], indent=2, ensure_ascii=False)}", markup=False)


@app.command("diff")
@command
def diff(
    name: ProgramName,
    a: VersionName,
    b: Annotated[str, typer.Argument(metavar="[VERSION]", help="The other one, live unless it is said.")] = "live",
    as_json: AsJson = False,
) -> None:
    """Show what two versions of a program differ in."""
    with session() as client:
        found = plain(client.diff(name, _version(a), _version(b)))
    if as_json:
        print_json(found)
        return
    console = out()
    if found["same"]:
        console.print(f"{name} versions {found['a']} and {found['b']} are the same", markup=False)
    for line in _differences(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _differences(found: Mapping[str, Any]) -> Iterable[str]:
    """Return the lines that tell a difference: `-` what the first has, `+` what the second has."""
    for key, what in found.items():
        if key in ("name", "a", "b", "same"):
            continue
        if key == "source":
            yield "source: the code differs"
        elif key in ("instructions", "fields"):
            for predictor, pair in what.items():
                yield from _pair(f"{key} of {predictor or 'the program'}", pair)
        elif key in ("demos", "predictors"):
            for predictor, change in what.items() if key == "demos" else [("", what)]:
                yield f"{key} of {predictor}:" if predictor else f"{key}:"
                yield from (f"  - {_line(one)}" for one in change["removed"])
                yield from (f"  + {_line(one)}" for one in change["added"])
        else:
            yield from _pair(key, what)


def _pair(head: str, pair: Any) -> Iterable[str]:
    return (f"{head}:", f"  - {_line(pair[0])}", f"  + {_line(pair[1])}")


# --- naming -----------------------------------------------------------------------------------


@app.command("alias")
@command
def alias(
    name: ProgramName,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="A name: the version is called as NAME@ALIAS.")],
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="A number, or another alias.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have an alias name a version, or remove it."""
    if remove == (version is not None):
        raise InvalidRequest("give a VERSION for the alias, or --remove", path="version")
    with session() as client:
        if version is None:
            client.unalias(name, alias)
            found: dict[str, Any] = {"name": name, "alias": alias, "version": None}
        else:
            found = client.alias(name, alias, _version(version))
    _tell_move(found, as_json=as_json)


@app.command("rollback")
@command
def rollback(
    name: ProgramName,
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="The one that was live before, unless it is said.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have an earlier version be live again."""
    with session() as client:
        found = client.rollback(name, None if version is None else _version(version))
    _tell_move(found, as_json=as_json)


def _tell_move(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(plain(found))
    elif found["version"] is None:
        out().print(f"{found['name']}@{found['alias']} is removed", markup=False)
    else:
        before = "" if found["previous"] is None else f" (before: {found['previous']})"
        out().print(f"{found['name']}@{found['alias']} is version {found['version']}{before}", markup=False)


def _version(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _text(target: Any) -> str:
    return target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)


def _line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
