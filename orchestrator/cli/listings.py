"""`dspool status`, `logs`, `config`: commands that look."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.coordinators import find, require, session
from orchestrator.cli.failure import NoCoordinator, command
from orchestrator.cli.health import lines as health_lines
from orchestrator.cli.plain import duration, mebibytes, milliseconds, plain
from orchestrator.cli.screen import err, fill, out, print_json, table
from orchestrator.discovery import LOG_FILE, user_run_dir
from orchestrator.errors import InvalidRequest, Unavailable
from orchestrator.rundir import CoordinatorInfo

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Pools = Mapping[str, Mapping[str, Any]]
_FOLLOW_S = 0.25
_LONG_S = 1.0
_MAX_LINES = 1000


# --- status -----------------------------------------------------------------------------------


@command
def status(as_json: AsJson = False) -> None:
    """Show pools, what is wrong, workers, long calls, memory, requests, and who ended in the last hour.

    What a worker wrote, and of a dead one how it ended and its threads' stacks: dspool logs WORKER.
    """
    found = require()
    with session(found) as client:
        stats, workers, health = client.stats(), client.workers(), client.health()
    if as_json:
        print_json({"endpoint": found.endpoint, **plain(stats), "health": plain(health), "workers": plain(workers)})
        return
    console = out()
    head = f"coordinator pid {stats['pid']}, version {stats['version']}, up {duration(stats['uptime_s'])}"
    console.print(f"{head}\n{found.endpoint}", markup=False)
    console.print(pools_table(stats["pools"], narrow=console.is_terminal))
    for line in (*troubles(stats["pools"]), *health_lines(health)):
        console.print(line, markup=False)
    console.print(workers_table([row for row in workers if row["state"] != "exited"]))
    if calls := running_calls(workers, beyond_s=_LONG_S):
        console.print(calls_table(calls, title=f"running for more than {_LONG_S:g} s"))
    if dead := [row for row in workers if row["state"] == "exited"]:
        console.print(_dead_table(dead))
        console.print("their last lines and their stacks: dspool logs WORKER", markup=False)
    console.print(memory_text(stats["memory"]), markup=False)
    console.print(services_text(stats["services"]), markup=False)
    for name in ("requests", "wire"):
        console.print(f"{name}: " + ", ".join(f"{value} {key}" for key, value in stats[name].items()))


def pools_table(pools: Pools, rates: Mapping[str, float | None] | None = None, *, narrow: bool = True) -> Any:
    """Return the table of pools, from `stats()["pools"]`. rates: answered rows per second, a column of its own.

    narrow: eighty columns are enough; else each heading is one line, for those who search in it.
    """
    per_s = [] if rates is None else [">per\ns"]
    headings = ("pool", ">ready/\nsize", ">busy", ">queued", ">in\nflight", *per_s, ">p50\nms", ">p99\nms")
    headings = (*headings, ">re-\nstarts", ">re-\nsent", ">shed", "break-\ner")
    if not narrow:
        headings = tuple(one.replace("-\n", "").replace("/\n", "/").replace("\n", " ") for one in headings)
    return fill(
        table(*headings, tight=narrow),
        (
            [
                name, f"{row['ready']}/{size_text(row)}", row["busy"], row["queued"], row["in_flight"],
                *([] if rates is None else [rate_text(rates.get(name))]),
                milliseconds(row["p50_ms"]), milliseconds(row["p99_ms"]), row["restarts"], row["resent"], row["shed"],
                breaker_text(row),
            ]
            for name, row in pools.items()
        ),
    )  # fmt: skip


def breaker_text(row: Mapping[str, Any]) -> str:
    """Return the worst state among a pool's breakers."""
    return str(row["breaker"]).replace("_", " ")


def rate_text(rate: float | None) -> str:
    """Return answered rows per second, `-` where they are not known."""
    return "-" if rate is None else f"{rate:,.0f}"


def troubles(pools: Pools) -> list[str]:
    """Return a line for each pool that is not served as it should be: why."""
    return [f"{name} is {row['state']}: {row['why']}" for name, row in pools.items() if row["state"] != "ok"]


def size_text(row: Mapping[str, Any]) -> str:
    """Return how many workers a pool is to have: a number, or the least and the most."""
    return str(row["size"]) if row["max_size"] is None else f"{row['min_size']}–{row['max_size']}"  # noqa: RUF001


def memory_text(memory: Mapping[str, Any]) -> str:
    """Return how much memory is in use, from `stats()["memory"]`, and whether that keeps requests out."""
    used = "-" if memory["used"] is None else f"{memory['used'] * 100:.0f} % used"
    return f"memory: {used}" + ("; admission is paused: new requests are refused" if memory["paused"] else "")


def services_text(services: Mapping[str, Any]) -> str:
    """Return how the services process is, from `stats()["services"]`, and where its store is."""
    if services["state"] == "off":
        return "services: off, nothing has needed them"
    process = f" ({services['worker']}, pid {services['pid']})" if services["pid"] else ""
    restarts = f", restarted {services['restarts']} times" if services["restarts"] else ""
    store = f", store {services['store']['where']}" if services["store"] else ""
    problem = f"; {services['problem']}" if services["problem"] else ""
    return f"services: {services['state']}{process}{restarts}{store}{problem}"


def running_calls(workers: Sequence[Mapping[str, Any]], *, beyond_s: float = 0.0) -> list[dict[str, Any]]:
    """Return what workers run for longer than so many seconds, with the worker's id, longest first."""
    calls = [
        {"worker": row["id"], **call}
        for row in workers
        for call in row.get("running") or ()
        if call["running_s"] > beyond_s
    ]
    return sorted(calls, key=lambda call: -float(call["running_s"]))


def calls_table(calls: Sequence[Mapping[str, Any]], *, title: str) -> Any:
    """Return the table of running calls. quiet: for how long one has not done what can be seen."""
    made = table("worker", "operation", ">running for", ">rows done", ">LM calls", ">quiet for", title=title)
    return fill(
        made,
        (
            [
                call["worker"], call["operation"], duration(call["running_s"]), f"{call['rows_done']}/{call['rows']}",
                call["lm_calls"], duration(call["quiet_s"]),
            ]
            for call in calls
        ),
    )  # fmt: skip


def workers_table(workers: Sequence[Mapping[str, Any]]) -> Any:
    """Return the table of living workers, from `workers()`."""
    made = table("worker", ">pid", "state", ">RSS MiB", ">age", ">requests", ">in flight", ">boot ms")
    return fill(
        made,
        (
            [
                row["id"], row["pid"] or "-", row["state"], mebibytes(row["rss_bytes"]), duration(row["age_s"]),
                row["requests"], row["in_flight"], milliseconds(row["boot_ms"] or None),
            ]
            for row in workers
        ),
    )  # fmt: skip


def _dead_table(workers: Sequence[Mapping[str, Any]]) -> Any:
    headings = ("worker", ">pid", ">lived", ">requests", ">peak RSS MiB", "ended by", ">stack lines", "cause")
    made = table(*headings, title="ended in the last hour")
    return fill(
        made,
        (
            [
                row["id"], row["pid"] or "-", duration(row["age_s"]), row["requests"],
                mebibytes(row["exit"]["peak_rss_bytes"]), _ended_by(row["exit"]), len(row["exit"]["stacks"]) or "-",
                row["exit"]["cause"],
            ]
            for row in workers
        ),
    )  # fmt: skip


def _ended_by(end: Mapping[str, Any]) -> str:
    """Return what the system said of an end; its cause is why it came to that."""
    if end["signal"] is not None:
        return f"signal {end['signal']}"
    return f"exit code {end['code']}" if end["code"] is not None else str(end["kind"]).replace("_", " ")


# --- logs -------------------------------------------------------------------------------------


@command
def logs(
    worker: Annotated[
        str | None, typer.Argument(help="A worker's id, such as general-0.1; without it the coordinator.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come; Ctrl-C ends it.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=_MAX_LINES, help="How many lines.")] = 200,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show what a worker wrote to stdout and stderr, or the coordinator's own log.

    A worker's lines are kept after its death; how it ended, and its threads' stacks if they were written, follow them
    (with --json: in `dspool status --json`). The coordinator's are in a file when it was started with `dspool up -d`.
    """
    if follow and as_json:
        raise InvalidRequest("--follow has no end and --json is one document: choose one of them")
    if worker is None:
        _coordinator_log(lines, follow=follow, as_json=as_json)
        return
    with session() as client:
        kept = client.logs(worker)
        if as_json:
            print_json(kept[-lines:])
            return
        _write(kept[-lines:])
        if not kept:
            err().print(f"{worker} has written nothing", markup=False)
        if follow:
            _follow_worker(lambda: client.logs(worker), lambda: _lives(client.workers(), worker), kept)
        for row in client.workers():
            if row["id"] == worker and row["exit"] is not None:
                _write(_end_of(row))


def _end_of(row: Mapping[str, Any]) -> list[str]:
    """Return what there is to say of a dead worker, as lines."""
    end = row["exit"]
    peak = f", peak RSS {mebibytes(end['peak_rss_bytes'])} MiB" if end["peak_rss_bytes"] else ""
    lines = [
        f"--- {row['id']} ended: {end['cause']}",
        f"--- by {_ended_by(end)}, after {duration(row['age_s'])} and {row['requests']} requests{peak}",
    ]
    return [*lines, "--- stacks of its threads", *end["stacks"]] if end["stacks"] else lines


def _lives(workers: Sequence[Mapping[str, Any]], worker_id: str) -> bool:
    return any(row["id"] == worker_id and row["state"] != "exited" for row in workers)


def _follow_worker(read: Callable[[], list[str]], lives: Callable[[], bool], seen: list[str]) -> None:
    """Write what comes until the worker is dead and has been read to its end."""
    living = True
    while living:
        time.sleep(_FOLLOW_S)
        living = lives()
        lines = read()
        _write(new_lines(seen, lines))
        seen = lines


def new_lines(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """Return what came after `before`: both are the last lines of one stream, of which the first may be dropped."""
    for dropped in range(len(before) + 1):
        shared = before[dropped:]
        if list(now[: len(shared)]) == list(shared):
            return now[len(shared) :]
    return now


def _coordinator_log(lines: int, *, follow: bool, as_json: bool) -> None:
    found = find()
    directory = found.run_dir if found is not None else user_run_dir()
    path = directory / LOG_FILE
    if found is None and not path.exists():
        raise NoCoordinator(f"no coordinator is running, and {path} does not exist")
    if not path.exists():
        raise Unavailable(f"this coordinator writes its log to where it was started: there is no {path}")
    with path.open("r", encoding="utf-8", errors="replace") as file:
        tail = file.read().splitlines()[-lines:]
        if as_json:
            print_json([log_entry(line) for line in tail])
            return
        _write(tail)
        if not tail:
            err().print(f"{path} is empty", markup=False)
        if follow:
            for line in _growth(file, found.info if found is not None else None):
                _write([line])


def log_entry(line: str) -> dict[str, Any]:
    """Return a line of the coordinator's log as its fields; what is no JSON object, such as a traceback, as `text`."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"text": line}


def _growth(file: Any, info: CoordinatorInfo | None) -> Iterator[str]:
    """Yield the lines that are added to a file while a coordinator lives, and the last ones after its death."""
    partial = ""
    living = True
    while living:
        living = info is not None and info.alive
        partial += file.read()
        *whole, partial = partial.split("\n")
        yield from whole
        if living:
            time.sleep(_FOLLOW_S)
    if partial:
        yield partial


def _write(lines: Sequence[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


# --- config -----------------------------------------------------------------------------------

config = typer.Typer(help="The configuration: check it, show it, its schema.", no_args_is_help=True)
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="The file; else DSPOOL_CONFIG, else ./dspool.yaml if there is one.")
]


@config.command("check")
@command
def config_check(file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Check the configuration; every problem is told, with its line."""
    from orchestrator.config import load

    settings = load(file)
    source = str(settings.file) if settings.file is not None else None
    if as_json:
        print_json({"valid": True, "file": source})
    else:
        out().print(f"{source or 'the built-in configuration (no file)'} is valid", markup=False)


@config.command("show")
@command
def config_show(file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the configuration, defaults filled in, secrets masked: of the running coordinator, else of the file."""
    found = None if file is not None else find()
    if found is None:
        from orchestrator.config import load, show

        shown, origin = show(load(file)), "of the file and the environment; no coordinator is running"
        if file is not None:
            origin = f"of {file} and the environment"
    else:
        with session(found) as client:
            shown, origin = client.execute("dspool.config"), f"of the coordinator with pid {client.stats()['pid']}"
    if as_json:
        print_json(plain(shown))
        return
    import yaml

    sys.stdout.write(f"# {origin}\n{yaml.safe_dump(plain(shown), sort_keys=False, allow_unicode=True)}")


@config.command("schema")
@command
def config_schema(as_json: AsJson = False) -> None:
    """Print the JSON Schema of dspool.yaml."""
    from orchestrator.config import schema

    print_json(schema())
