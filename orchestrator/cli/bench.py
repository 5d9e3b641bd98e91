"""`dspool bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.failure import Exit, command
from orchestrator.cli.screen import err, out, print_json
from orchestrator.errors import InvalidRequest

if TYPE_CHECKING:
    from orchestrator.bench import Report
    from orchestrator.bench.lives import LivesReport
    from orchestrator.bench.native import NativeReport


@command
def bench(
    pool: Annotated[str, typer.Option("--pool", help="The pool that is measured; it gets two workers.")] = "general",
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Of each cell of each round.")] = 0.5,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="How often all of it (--lives: the starts) is repeated.")
    ] = 5,
    peers: Annotated[bool, typer.Option("--peers", help="Also loky, Ray, dask and ipyparallel, if installed.")] = False,
    native: Annotated[
        bool, typer.Option("--native", help="Instead: operations in this process beside the same through a worker.")
    ] = False,
    lives: Annotated[
        bool, typer.Option("--lives", help="Instead: starts, memory, and how long a killed worker is missed.")
    ] = False,
    kills: Annotated[int, typer.Option("--kills", min=1, help="With --lives: how many workers are killed.")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON; - for stdout.")] = None,
) -> None:
    """Measure dspool beside other ways to call processes, all in the same run.

    Exits with 1 where --native or --lives misses a limit.
    """
    if native and lives:
        raise InvalidRequest("--native and --lives are two measurements: ask for one")
    if peers and (native or lives):
        raise InvalidRequest(
            f"--{'native' if native else 'lives'} measures no other ways to call processes: leave out --peers"
        )
    if lives and pool != "general":
        raise InvalidRequest("--lives measures the general pool: leave out --pool")
    console = err()

    def say(line: str) -> None:
        console.print(line, markup=False)

    report: Report | NativeReport | LivesReport
    if lives:
        from orchestrator.bench.lives import run_lives

        report = run_lives(starts=rounds, kills=kills, say=say)
    elif native:
        from orchestrator.bench.native import run_native

        report = run_native(pool=pool, seconds=seconds, rounds=rounds, say=say)
    else:
        from orchestrator.bench import run

        report = run(pool=pool, seconds=seconds, rounds=rounds, peers=peers, say=say)
    if json_file == Path("-"):
        print_json(report.as_json())
    else:
        report.print(out())
        if json_file is not None:
            report.write_json(json_file)
    if not report.passed:
        raise typer.Exit(Exit.FAILED)
