"""`dspool doctor`: is everything here that dspool needs?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from orchestrator import processes
from orchestrator.cli import checks
from orchestrator.cli.checks import FAIL, NOTE, OK, Finding
from orchestrator.cli.coordinators import find, session
from orchestrator.cli.failure import Exit, command
from orchestrator.cli.listings import AsJson, ConfigFile
from orchestrator.cli.screen import fill, out, print_json, table
from orchestrator.errors import DspoolError

_STYLES: Final = {OK: "green", NOTE: "yellow", FAIL: "bold red"}
_END_TIMEOUT_S: Final = 5.0


@command
def doctor(
    live: Annotated[
        bool, typer.Option("--live", help="Also start a private coordinator and make each pool work.")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Remove what dead coordinators have left.")] = False,
    file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, the configuration, and what earlier runs left. Exit code 1 if a check fails."""
    findings = list(_look(file, fix=fix))
    if live:
        failed = any(each.status == FAIL for each in findings)
        findings += [Finding("live", FAIL, "not tried", "mend the above first")] if failed else list(_try_out())
    healthy = all(each.status != FAIL for each in findings)
    if as_json:
        print_json({"healthy": healthy, "checks": [asdict(each) for each in findings]})
    else:
        from rich.text import Text

        made = table("check", "", "found", "advice")
        rows = ([each.check, Text(each.status, _STYLES[each.status]), each.found, each.advice] for each in findings)
        out().print(fill(made, rows))
    if not healthy:
        raise typer.Exit(Exit.FAILED)


def _look(file: Any, *, fix: bool) -> Iterator[Finding]:
    from orchestrator.config import load

    yield from checks.machine()
    yield checks.cgroups(_told_of_cgroups())
    settings, finding = checks.configuration(lambda: load(file))
    yield finding
    if settings is None:
        return
    yield from checks.capacity(sum(pool.max_size or pool.size for pool in settings.pools))
    yield from checks.directories(settings)
    found = checks.leftovers(settings.run_dir)
    if fix and found:
        found.remove()
        found = checks.leftovers(settings.run_dir)
    yield checks.left(found)


def _told_of_cgroups() -> dict[str, Any] | None:
    """Return what the running coordinator says of its workers' control groups, None if there is none to ask."""
    try:
        found = find()
        if found is None:
            return None
        with session(found) as client:
            return dict(client.stats()["cgroups"])
    except DspoolError:
        return None  # what is wrong with it, other checks and commands say


def _try_out() -> Iterator[Finding]:
    """Make a private coordinator with one worker a pool work, and stop it."""
    from orchestrator import Orchestrator

    pools = {name: {"size": 1} for name in ("general", "optimizer", "neural")}
    began = time.monotonic()
    orchestrator = Orchestrator(pools=pools, lms={"default": {"model": "offline/knn"}})
    try:
        orchestrator.start()
    except DspoolError as error:
        yield Finding("live: start", FAIL, error.message)
        return
    yield Finding("live: start", OK, f"three pools ready in {time.monotonic() - began:.1f} s")
    try:
        with orchestrator.client() as client:
            for pool in pools:
                yield _attempt(f"live: ping {pool}", lambda pool=pool: client.ping(pool=pool))  # type: ignore[misc]
            yield _attempt("live: dspy.Predict", lambda: client.predict("question -> answer", question="Is it up?"))
            yield _attempt("live: embed", lambda: client.embed(["one", "two"]))
    finally:
        family = [found for found in processes.descendants(orchestrator.pid) if found.alive]
        orchestrator.stop()
    left = processes.survivors(family, _END_TIMEOUT_S)
    text = f"{len(left)} processes left"
    yield Finding("live: stop", FAIL if left else OK, text, "\n".join(map(str, left)))


def _attempt(check: str, work: Callable[[], Any]) -> Finding:
    began = time.monotonic()
    try:
        work()
    except DspoolError as error:
        return Finding(check, FAIL, f"{error.code}: {error}", "dspool logs WORKER, or run with log_level: debug")
    return Finding(check, OK, f"answered in {(time.monotonic() - began) * 1000:.0f} ms")
