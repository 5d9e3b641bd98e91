"""`dspool bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator.cli.failure import Exit, command
from orchestrator.cli.screen import err, out, print_json
from orchestrator.errors import InvalidRequest

if TYPE_CHECKING:
    from orchestrator.bench import Report
    from orchestrator.bench.embedding import EmbeddingReport
    from orchestrator.bench.lives import LivesReport
    from orchestrator.bench.native import NativeReport
    from orchestrator.bench.overload import OverloadReport
    from orchestrator.bench.predicting import PredictingReport

_CELL_S: Final = 0.5


@command
def bench(
    pool: Annotated[str, typer.Option("--pool", help="The pool that is measured; it gets two workers.")] = "general",
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            min=0.01,
            show_default="0.5; --dspy: 1; --overload: 30",
            help="Of each cell of each round; of an overload.",
        ),
    ] = None,
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
    overload: Annotated[
        bool, typer.Option("--overload", help="Instead: ten times more than can be done, poison, and retries.")
    ] = False,
    embed: Annotated[
        str | None,
        typer.Option("--embed", metavar="MODEL", help="Instead: texts of many callers in batches, and one by one."),
    ] = None,
    dspy: Annotated[
        bool, typer.Option("--dspy", help="Instead: dspy.Predict, also on one thread and behind FastAPI.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON; - for stdout.")] = None,
) -> None:
    """Measure dspool beside other ways to call processes, all in the same run.

    Exits with 1 where --native, --lives, --overload, --embed or --dspy misses a limit.
    """
    chosen = [name for name, on in _others(native, lives, overload, embed is not None, dspy) if on]
    if len(chosen) > 1:
        raise InvalidRequest(f"--{chosen[0]} and --{chosen[1]} are two measurements: ask for one")
    if peers and chosen:
        raise InvalidRequest(f"--{chosen[0]} measures no other ways to call processes: leave out --peers")
    if chosen and not native and pool != "general":
        measured = "neural" if embed else "general"
        raise InvalidRequest(f"--{chosen[0]} measures the {measured} pool: leave out --pool")
    report = _measure(chosen, pool, seconds, rounds=rounds, peers=peers, kills=kills, model=embed or "")
    if json_file == Path("-"):
        print_json(report.as_json())
    else:
        report.print(out())
        if json_file is not None:
            report.write_json(json_file)
    if not report.passed:
        raise typer.Exit(Exit.FAILED)


def _others(native: bool, lives: bool, overload: bool, embed: bool, dspy: bool) -> tuple[tuple[str, bool], ...]:
    """Return what else there is to measure, and whether it was asked for."""
    return ("native", native), ("lives", lives), ("overload", overload), ("embed", embed), ("dspy", dspy)


def _measure(
    chosen: list[str], pool: str, seconds: float | None, *, rounds: int, peers: bool, kills: int, model: str
) -> Report | NativeReport | LivesReport | OverloadReport | EmbeddingReport | PredictingReport:
    """Measure what was chosen, else calls; tell of each step on standard error."""
    console = err()

    def say(line: str) -> None:
        console.print(line, markup=False)

    match chosen:
        case ["dspy"]:
            from orchestrator.bench.predicting import run_predicting

            return run_predicting(seconds=seconds or 2 * _CELL_S, rounds=rounds, say=say)
        case ["embed"]:
            from orchestrator.bench.embedding import run_embedding

            return run_embedding(embedder=model, rounds=rounds, say=say)
        case ["overload"]:
            from orchestrator.bench.overload import SECONDS, run_overload

            return run_overload(seconds=seconds or SECONDS, say=say)
        case ["lives"]:
            from orchestrator.bench.lives import run_lives

            return run_lives(starts=rounds, kills=kills, say=say)
        case ["native"]:
            from orchestrator.bench.native import run_native

            return run_native(pool=pool, seconds=seconds or _CELL_S, rounds=rounds, say=say)
        case _:
            from orchestrator.bench import run

            return run(pool=pool, seconds=seconds or _CELL_S, rounds=rounds, peers=peers, say=say)
