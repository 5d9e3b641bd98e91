"""`dspool call`, `optimize`: commands that make workers work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.arguments import parse_pairs, read_args
from orchestrator.cli.coordinators import session
from orchestrator.cli.failure import command, error_document, exit_code
from orchestrator.cli.listings import AsJson
from orchestrator.cli.plain import duration, plain, readable
from orchestrator.cli.progress import follow
from orchestrator.cli.screen import err, fill, out, print_json, table
from orchestrator.cli.streaming import as_lines, as_text
from orchestrator.errors import DspoolError, InvalidRequest

PoolName = Annotated[str | None, typer.Option("--pool", help="The pool; else the operation's own.")]


@command
def call(
    operation: Annotated[str, typer.Argument(help="A built-in operation, dspy.MODULE, or a deployed program.")],
    pairs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Arguments. A value is JSON where it parses as JSON, else text."),
    ] = None,
    args: Annotated[
        str | None, typer.Option("--args", help="All arguments as JSON, as @file, or - for standard input.")
    ] = None,
    pool: PoolName = None,
    lm: Annotated[str | None, typer.Option("--lm", help="A language model by its configured name.")] = None,
    deadline_s: Annotated[float | None, typer.Option("--deadline", help="Seconds this call may take.")] = None,
    priority: Annotated[str, typer.Option("--priority", help="high, normal or low: who goes first.")] = "normal",
    idempotent: Annotated[
        bool, typer.Option("--idempotent", help="It may run again if its worker dies, up to twice.")
    ] = False,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Calls of one key are run once and have one outcome.")
    ] = None,
    named: Annotated[
        str | None, typer.Option("--session", help="The session that it is a call of; begun where there is none.")
    ] = None,
    streamed: Annotated[
        bool, typer.Option("--stream", help="Show the answer as it is written; with --json a line per piece.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Execute one operation and print its value.

    With --json: {"value": …, "meta": …}. Example: dspool call dspy.Predict signature='question -> answer'
    inputs='{"question": "What is a pool?"}'
    """
    value = read_args(args, pairs or [])
    if streamed:
        if key is not None:
            raise InvalidRequest("--stream and --idempotency-key exclude each other: a repeated call streams nothing")
        options = {"pool": pool, "lm": lm, "deadline_s": deadline_s, "priority": priority, "idempotent": idempotent}
        options["session"] = named
        _stream(operation, value, options, as_json=as_json)
        return
    with session() as client:
        future = client.submit(
            operation, value, pool=pool, lm=lm, deadline_s=deadline_s, priority=priority, idempotent=idempotent,
            idempotency_key=key, session=named,
        )  # fmt: skip
        try:
            result = future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise
    if as_json:
        print_json({"value": plain(result), "meta": _meta(future.meta)})
    else:
        typer.echo(readable(result))
        _tell_how(future.meta)


def _stream(operation: str, args: Any, options: dict[str, Any], *, as_json: bool) -> None:
    with session() as client, client.stream(operation, args, **options) as stream:
        if not as_json:
            console = err()
            _tell_how(as_text(stream, lambda line: console.print(line, markup=False, style="dim")))
            return
        try:
            as_lines(stream, _meta)
        except DspoolError as error:
            typer.echo(json.dumps({"type": "error", **error_document(error)}))
            raise typer.Exit(exit_code(error)) from None


def _tell_how(meta: Any) -> None:
    """Tell who watches how a call was executed."""
    console = err()
    if console.is_terminal and meta is not None:
        used = f", {meta.lm_calls} LM calls, {meta.tokens} tokens" if meta.lm_calls else ""
        instead = f", the fallback: pool {meta.pool}" if meta.fallback_used else ""
        again = f", attempt {meta.attempt}" if meta.attempt > 1 else ""
        console.print(f"[dim]{meta.worker or meta.executed_on}, {meta.total_ms:.1f} ms{used}{again}{instead}[/]")


def _meta(meta: Any) -> Any:
    if meta is None:
        return None
    return {name: plain(getattr(meta, name)) for name in meta.__slots__}


@command
def optimize(
    name: Annotated[str, typer.Argument(help="A deployed program.")],
    data: Annotated[Path, typer.Option("--data", help="Training rows: .jsonl, .json or .csv.")],
    metric: Annotated[str, typer.Option("--metric", help="exact:FIELD (contains, f1 …), pkg.module:f or file.py:f.")],
    optimizer: Annotated[str, typer.Option("--optimizer", help="The optimizer's name.")] = "BootstrapFewShot",
    valset: Annotated[
        Path | None, typer.Option("--valset", help="Validation rows; else a fifth of the training rows.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal results.")] = 0,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the optimizer; repeatable.")
    ] = None,
    deploy: Annotated[bool, typer.Option("--deploy", help="Deploy the optimized program under its name.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write the optimized program as YAML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Optimize a program in the optimizer pool."""
    with session() as client:
        job = client.optimize(
            name,
            optimizer=optimizer,
            trainset=str(data),
            valset=None if valset is None else str(valset),
            metric=metric,
            params=parse_pairs(param or []),
            seed=seed,
        )
        try:
            follow(job, err())
            result = job.result()
        except KeyboardInterrupt:
            job.cancel()
            raise
        version = result.deploy() if deploy else None
        if output is not None:
            result.to_yaml(output)
    if as_json:
        document = {
            "program": result.program, "score": result.score, "baseline_score": result.baseline_score,
            "candidates": result.candidates, "usage": result.usage,
        }  # fmt: skip
        deployed = None if version is None else {"name": version.name, "version": version.version}
        print_json({**plain(document), "deployed": deployed})
        return
    _print_result(result, name)
    if version is not None:
        out().print(f"{version.name} version {version.version} is deployed", markup=False)
    elif output is None:
        out().print("not kept: use --deploy or --output FILE", markup=False)


def _print_result(result: Any, name: str) -> None:
    console = out()
    console.print(f"{name}: validation score {result.baseline_score:g} → {result.score:g}", markup=False)
    made = table("candidate", ">score")
    console.print(fill(made, ([one["name"], f"{one['score']:g}"] for one in result.candidates)))
    usage, seconds = result.usage, result.details.get("seconds")
    cost = "" if usage.get("cost_usd") is None else f", {usage['cost_usd']:.4f} USD"
    took = "" if seconds is None else f", {duration(seconds)}"
    console.print(f"{usage['lm_calls']} LM calls, {usage['tokens']} tokens{cost}{took}", markup=False)
