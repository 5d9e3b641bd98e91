"""`dspool store`: the store on its own, whether or not a coordinator runs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.coordinators import find
from orchestrator.cli.failure import Exit, command
from orchestrator.cli.listings import AsJson, ConfigFile
from orchestrator.cli.screen import out, print_json
from orchestrator.errors import InvalidRequest, NotFound
from orchestrator.rundir import STORE_FILE

if TYPE_CHECKING:
    from orchestrator.services.store import Store

app = typer.Typer(help="The store: programs, durable sessions, events.", no_args_is_help=True)
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Its data directory, instead of the configured one.")
]


@app.command("info")
@command
def info(data_dir: DataDir = None, file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Tell where the store is, how large, of which schema, and how much of what it holds."""
    with closing(_open(data_dir, file)) as store:
        told = store.info()
    if as_json:
        print_json(told)
    else:
        for key, value in told.items():
            typer.echo(f"{key}: {value}")


@app.command("check")
@command
def check(data_dir: DataDir = None, file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Look through the whole store, changing nothing; fail if anything is damaged."""
    with closing(_open(data_dir, file)) as store:
        where, damage = store.where, store.check()
    if as_json:
        print_json({"where": where, "good": not damage, "damage": damage})
    else:
        for line in damage or ["nothing is damaged"]:
            out().print(f"{where}: {line}", markup=False)
    if damage:
        raise typer.Exit(Exit.FAILED)


@app.command("backup")
@command
def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new file. It is a store, as it was at one moment.")],
    data_dir: DataDir = None,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Write a copy of the store, also while a coordinator uses it."""
    with closing(_open(data_dir, file)) as store:
        where, size = store.where, store.backup(target)
    if as_json:
        print_json({"where": where, "file": str(target.absolute()), "bytes": size})
    else:
        out().print(f"{where} is now also in {target.absolute()} ({size:,} bytes)", markup=False)


def _open(data_dir: Path | None, file: Path | None) -> Store:
    """Open what is meant: of a named folder, of the running coordinator, else of the configuration."""
    from orchestrator.services.store import Store

    where = _where(data_dir, file)
    if "://" not in where and not Path(where).exists():
        raise NotFound(f"there is no store {where}: it is made when the first program is deployed")
    return Store.open(where, readonly=True)


def _where(data_dir: Path | None, file: Path | None) -> str:
    from orchestrator.config import load

    if data_dir is not None:
        if file is not None:
            raise InvalidRequest("--data-dir and --config both say which store is meant: give one of them")
        return str(data_dir.absolute() / STORE_FILE)
    settings = load(file)
    found = find() if file is None and settings.store.url is None else None
    if found is not None and found.info is not None:
        return str(Path(found.info.data_dir) / STORE_FILE)
    return settings.store.where(settings.data_dir)
