"""The commands of `dspool`, put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import calls, lifecycle, listings, signatures
from orchestrator.cli.doctor import doctor
from orchestrator.cli.failure import Exit, command
from orchestrator.cli.screen import err, out, print_json
from orchestrator.cli.top import top
from orchestrator.errors import InvalidRequest
from orchestrator.version import package_version

app = typer.Typer(
    help="DSPy programs in supervised pools of Python worker processes.",
    epilog="Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration, 3 no coordinator, "
    "4 overloaded or timed out, 130 interrupted.",
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
def bench(
    pool: Annotated[str, typer.Option("--pool", help="The pool that is measured; it gets two workers.")] = "general",
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Of each cell of each round.")] = 0.5,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How often everything is repeated.")] = 5,
    peers: Annotated[bool, typer.Option("--peers", help="Also loky, Ray, dask and ipyparallel, if installed.")] = False,
    native: Annotated[
        bool, typer.Option("--native", help="Instead: operations in this process beside the same through a worker.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON; - for stdout.")] = None,
) -> None:
    """Measure dspool beside other ways to call processes, all in the same run."""
    from orchestrator.bench import Report, run
    from orchestrator.bench.native import NativeReport, run_native

    if native and peers:
        raise InvalidRequest("--native measures no other ways to call processes: leave out --peers")
    console = err()

    def say(line: str) -> None:
        console.print(line, markup=False)

    report: Report | NativeReport
    if native:
        report = run_native(pool=pool, seconds=seconds, rounds=rounds, say=say)
    else:
        report = run(pool=pool, seconds=seconds, rounds=rounds, peers=peers, say=say)
    if json_file == Path("-"):
        print_json(report.as_json())
    else:
        report.print(out())
        if json_file is not None:
            report.write_json(json_file)
    if not (report.passed if isinstance(report, NativeReport) else report.complete):
        raise typer.Exit(Exit.FAILED)


@command
def demo() -> None:
    """Tell the whole story in under a minute, without a network."""
    from orchestrator.demo import tell

    if not tell(out()):
        raise typer.Exit(Exit.FAILED)


_COMMANDS: tuple[Callable[..., None], ...] = (
    lifecycle.up, lifecycle.down, listings.status, top, calls.call, calls.deploy, calls.undeploy, listings.programs,
    calls.optimize, listings.logs, bench, doctor, demo,
)  # fmt: skip
for _function in _COMMANDS:
    app.command()(_function)
app.add_typer(listings.config, name="config")
app.add_typer(signatures.app, name="signatures")
