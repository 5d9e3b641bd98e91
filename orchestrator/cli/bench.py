"""`dspool bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator.cli.failure import Exit, command
from orchestrator.cli.screen import err, out, print_json
from orchestrator.errors import InvalidRequest

if TYPE_CHECKING:
    from orchestrator.bench.findings import Findings

_CELL_S: Final = 0.5


@command
def bench(
    pool: Annotated[str, typer.Option("--pool", help="The pool that is measured; it gets two workers.")] = "general",
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            min=0.01,
            show_default="0.5; --dspy: 1; --services: 2; --overload: 30",
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
    services: Annotated[
        bool, typer.Option("--services", help="Instead: an echo beside a services process that is busy.")
    ] = False,
    control: Annotated[
        bool, typer.Option("--control", help="Instead: what programs, versions, sessions and events cost.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON; - for stdout.")] = None,
) -> None:
    """Measure dspool beside other ways to call processes, all in the same run.

    Exits with 1 where --native, --lives, --overload, --embed, --dspy, --services or --control misses a limit.
    """
    others = {
        "native": native, "lives": lives, "overload": overload, "embed": embed is not None, "dspy": dspy,
        "services": services, "control": control,
    }  # fmt: skip
    chosen = [name for name, on in others.items() if on]
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


def _measure(
    chosen: list[str], pool: str, seconds: float | None, *, rounds: int, peers: bool, kills: int, model: str
) -> Findings:
    """Measure what was chosen, else calls; tell of each step on standard error."""
    match chosen:
        case ["control"]:
            from orchestrator.bench.control import run_control

            return run_control(seconds=seconds or _CELL_S, rounds=rounds, say=_say)
        case ["services"]:
            from orchestrator.bench.services import SECONDS, run_services

            return run_services(seconds=seconds or SECONDS, rounds=rounds, say=_say)
        case ["dspy"]:
            from orchestrator.bench.predicting import run_predicting

            return run_predicting(seconds=seconds or 2 * _CELL_S, rounds=rounds, say=_say)
        case ["embed"]:
            from orchestrator.bench.embedding import run_embedding

            return run_embedding(embedder=model, rounds=rounds, say=_say)
        case ["overload"]:
            from orchestrator.bench.overload import SECONDS as OVERLOAD_S
            from orchestrator.bench.overload import run_overload

            return run_overload(seconds=seconds or OVERLOAD_S, say=_say)
        case ["lives"]:
            from orchestrator.bench.lives import run_lives

            return run_lives(starts=rounds, kills=kills, say=_say)
        case ["native"]:
            from orchestrator.bench.native import run_native

            return run_native(pool=pool, seconds=seconds or _CELL_S, rounds=rounds, say=_say)
        case _:
            from orchestrator.bench import run

            return run(pool=pool, seconds=seconds or _CELL_S, rounds=rounds, peers=peers, say=_say)


def _say(line: str) -> None:
    err().print(line, markup=False)
