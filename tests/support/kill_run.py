"""Runs `kills`: some coordinators (or pools) side by side, each with killers of its own.  scripts/kills --help

Every killer is a process of its own, so that the marks by which the dead are looked for do not mix. It makes one kill
for each line on its stdin and answers with one on its stdout; where stdin ends, it stops what it runs and ends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import selectors
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tests.support.acceptance import ROOT
from tests.support.kills import CoordinatorKill, WorkerKill, kill_coordinators, kill_workers, report

PROGRESS_EVERY = 25
# A killer that is asked to end stops a coordinator, which may have calls to cancel.
END_S = 30.0

KINDS: dict[str, type[Any]] = {"coordinator": CoordinatorKill, "worker": WorkerKill}
KILLERS: dict[str, Callable[[int, int], Generator[Any, None, None]]] = {
    "coordinator": kill_coordinators,
    "worker": lambda times, seed: kill_workers(times),
}


class Failed(Exception):
    """A killer found what must not be, or came to an end."""


# --- one killer ---------------------------------------------------------------------------------------


def serve(who: str, seed: int) -> None:
    """Kill once for each line on stdin, and answer with what it cost."""
    try:
        with closing(KILLERS[who](sys.maxsize, seed)) as kills:
            for _ in sys.stdin:
                print(json.dumps(asdict(next(kills))), flush=True)
    except Exception:  # noqa: BLE001 - whatever it is, it is the run's finding
        print(json.dumps({"error": traceback.format_exc()}), flush=True)


class Killer:
    """The process of one killer. A context manager: leaving it lets the killer stop what it runs."""

    def __init__(self, who: str, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.support.kill_run import serve; serve({who!r}, {seed})"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the run, which then closes stdin
        )  # fmt: skip

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise Failed(f"a killer did not end within {END_S:g} s") from None

    @property
    def stdout(self) -> IO[str]:
        """Where it answers."""
        assert self._process.stdout is not None
        return self._process.stdout

    def order(self) -> None:
        """Ask for one kill."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: its answer says why
            self._process.stdin.write("\n")

    def answer(self) -> dict[str, Any]:
        """Return what the kill cost. Raises Failed."""
        line = self.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": f"it ended with {self._process.wait()}"}
        if "error" in found:
            raise Failed(found["error"])
        return found


# --- the run ------------------------------------------------------------------------------------------


def kill_side_by_side(
    who: str, times: int, jobs: int, seed: int, seconds: float = float("inf")
) -> Generator[Any, None, None]:
    """Yield what each of `times` kills cost, `jobs` killers at a time; begin no other after `seconds`.

    Raises Failed as soon as a killer does, ValueError for less than one kill or killer.
    """
    if times < 1 or jobs < 1:
        raise ValueError(f"times and jobs are at least 1, not {times} and {jobs}")
    until, kind = time.monotonic() + seconds, KINDS[who]
    with ExitStack() as stack, selectors.DefaultSelector() as answers:
        for number in range(min(jobs, times)):
            killer = stack.enter_context(Killer(who, seed + number))
            answers.register(killer.stdout, selectors.EVENT_READ, killer)
            killer.order()
        ordered = min(jobs, times)
        for done in itertools.count(1):
            (key, _), *_ = answers.select()
            yield kind(**key.data.answer())
            if ordered < times and time.monotonic() < until:
                key.data.order()
                ordered += 1
            if done == ordered:
                return


def main() -> int:
    """Kill, print, and return 1 where a limit is broken or a killer failed, 130 after Ctrl-C."""
    wanted = _arguments()
    kills = _known(wanted.json, wanted.who) if wanted.resume else []
    before, began, code = len(kills), time.monotonic(), 0
    order = (wanted.who, max(wanted.times - before, 0), wanted.jobs, wanted.seed + before, wanted.seconds)
    try:
        with closing(kill_side_by_side(*order)) as found:
            for kill in found if order[1] else ():
                kills.append(kill)
                if len(kills) % PROGRESS_EVERY == 0:
                    rate = _rate(len(kills) - before, began)
                    print(f"{len(kills)} of {wanted.times}, {rate}: {_brief(kills)}", file=sys.stderr, flush=True)
                    _write(wanted.json, kills)
    except KeyboardInterrupt:
        code = 130
    except Failed as exc:
        print(f"FAILED after {len(kills)} kills:\n{exc}", file=sys.stderr)
        code = 1
    if not kills:
        return code or 1
    _write(wanted.json, kills)
    return _tell(wanted.who, kills, _rate(len(kills) - before, began)) or code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/kills",
        description="Kill again and again; tell what each kill cost. Ctrl-C ends it with a summary.",
    )
    parser.add_argument("who", nargs="?", choices=KILLERS, default="coordinator", help="the victims (coordinator)")
    parser.add_argument("--times", type=int, default=1000, metavar="N", help="how many in all (1000)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many killers side by side (1)")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="begin no other after so long")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments of the kills (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every kill as JSON, as they come")
    parser.add_argument("--resume", action="store_true", help="go on with the kills of --json FILE")
    wanted = parser.parse_args()
    if wanted.times < 1 or wanted.jobs < 1:
        parser.error("--times and --jobs are at least 1")
    if wanted.resume and wanted.json is None:
        parser.error("--resume goes on with a file: name it with --json")
    return wanted


def _known(file: Path, who: str) -> list[Any]:
    return [KINDS[who](**kill) for kill in json.loads(file.read_text())["kills"]] if file.exists() else []


def _rate(kills: int, began: float) -> str:
    return f"{kills * 60.0 / (time.monotonic() - began):.0f} a minute"


def _write(file: Path | None, kills: list[Any]) -> None:
    """Write whole or not at all: a run that is killed meanwhile can be resumed."""
    if file is not None:
        part = file.with_name(f".{file.name}.part")
        part.write_text(json.dumps({"figures": report(kills), "kills": list(map(asdict, kills))}, indent=1) + "\n")
        part.replace(file)


def _brief(kills: list[Any]) -> str:
    return ", ".join(f"{name} {figure['p99']:.3g} (most {figure['max']:.3g})" for name, figure in report(kills).items())


def _tell(who: str, kills: list[Any], rate: str) -> int:
    """Print the table; return 1 where a limit is broken, else 0."""
    figures = report(kills)
    print(f"{len(kills)} SIGKILLs, each to a {who}; {rate}\n{'':<10}{'p50':>8}{'p99':>8}{'max':>8}{'limit':>8}")
    for name, figure in figures.items():
        numbers = "".join(f"{figure[key]:>8.3f}" for key in ("p50", "p99", "max", "limit"))
        print(f"{name:<10}{numbers}  {'ok' if figure['kept'] else 'BROKEN'}")
    return 0 if all(figure["kept"] for figure in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
