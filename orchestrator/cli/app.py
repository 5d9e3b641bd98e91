"""The commands of `dspool`, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from orchestrator.cli import calls, dead_letters, lifecycle, listings, programs, service, sessions, signatures, store
from orchestrator.cli.bench import bench
from orchestrator.cli.doctor import doctor
from orchestrator.cli.events import events
from orchestrator.cli.failure import Exit, command
from orchestrator.cli.screen import out
from orchestrator.cli.top import top
from orchestrator.version import package_version

app = typer.Typer(
    help="DSPy programs in supervised pools of Python worker processes.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration, 3 no coordinator, "
    "4 overloaded, circuit open or timed out, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dspool {package_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """DSPy programs in supervised pools of Python worker processes."""


@command
def demo() -> None:
    """Tell the whole story in under a minute, without a network."""
    from orchestrator.demo import tell

    if not tell(out()):
        raise typer.Exit(Exit.FAILED)


_COMMANDS: tuple[Callable[..., None], ...] = (
    lifecycle.up, lifecycle.down, listings.status, top, service.resize, service.drain, service.restart, calls.call,
    programs.deploy, programs.undeploy, calls.optimize, listings.logs, events, bench, doctor, demo,
)  # fmt: skip
for _function in _COMMANDS:
    app.command()(_function)
app.add_typer(listings.config, name="config")
app.add_typer(signatures.app, name="signatures")
app.add_typer(dead_letters.app, name="dead-letter")
app.add_typer(programs.app, name="programs")
app.add_typer(store.app, name="store")
app.add_typer(sessions.app, name="sessions")
