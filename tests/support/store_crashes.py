"""Crashes of whoever writes to a store: at fault points, in the middle of any call that writes, and at any moment.

A writer is a fork of this process, so that a crash costs milliseconds. It says which writes have returned; after its
crash another one repeats what did not, as clients do. Then the store must hold each write once.

    python -m tests.support.store_crashes [--writes N | --migrations] [--postgres] …
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from bridge import faultpoints
from bridge.faultpoints import Fault
from orchestrator.services.store import Store, store_path
from orchestrator.services.store.database import PostgreSQL, SQLite, create_file, is_postgresql
from orchestrator.services.store.migrations import LATEST, MIGRATIONS, migrate
from tests.support.store_writes import compared, is_there, write, wrong

# What a fork calls to end before its time. It is given a folder of its own.
Crash: TypeAlias = Callable[[str], None]

SOURCE: Final = Path(__file__).with_name("killing_calls.c")
BEFORE, HALF, AFTER = range(3)
MOMENTS: Final = ("before", "half", "after")
_BUSY_S: Final = 10.0
# So many writes does one writer, if it does not crash before.
_AT_MOST: Final = 3


# --- crashes ----------------------------------------------------------------------------------------


def at_point(point: str, nth: int, action: str = "kill") -> Crash:
    """Return what lets a writer end at the n-th hit of a fault point."""

    def arm(folder: str) -> None:
        faultpoints.arm(faultpoints.schedule(folder, [Fault(point, nth, action)]))
        faultpoints.begin(folder)

    return arm


def at_call(nth: int, moment: int) -> Crash:
    """Return what kills a writer in the middle of its n-th call that writes, syncs, truncates, renames or sends."""

    def arm(folder: str) -> None:
        ctypes.CDLL(None).kill_at(ctypes.c_long(nth), moment)

    return arm


def after(seconds: float) -> Crash:
    """Return what kills a writer so long after it begins."""

    def arm(folder: str) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # as sudden as a SIGKILL: the process has no say
        signal.setitimer(signal.ITIMER_REAL, seconds)

    return arm


def forked(work: Callable[[Callable[[int], None]], None], crash: Crash | None) -> tuple[list[int], bool]:
    """Run `work` in a fork that crashes as told; return what it said (numbers), and whether it came to its end."""
    with tempfile.TemporaryDirectory(prefix="hits-") as folder:
        return _forked(work, crash, folder)


def _forked(work: Callable[[Callable[[int], None]], None], crash: Crash | None, folder: str) -> tuple[list[int], bool]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            if crash is not None:
                crash(folder)
            work(lambda number: os.write(writing, b"%d\n" % number) and None)
            code = 0
        except BaseException:  # noqa: BLE001 - a fork must not go on as the tests
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        numbers = [int(line) for line in said if line.endswith(b"\n")]
    _, status = os.waitpid(pid, 0)
    ended = os.waitstatus_to_exitcode(status)
    if ended not in (0, -signal.SIGKILL, -signal.SIGALRM, faultpoints.EXIT_CODE):
        raise RuntimeError(f"a writer ended by itself, with {ended}")
    return numbers, ended == 0


@dataclass
class Crashes:
    """What came of a run."""

    writes: int = 0
    crashes: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    already_there: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def text(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.crashes.items()))
        head = (
            f"{self.writes} writes in {self.seconds:.0f} s, {self.crashes.total()} crashes ({kinds}); "
            f"{self.repeated} writes were repeated, {self.already_there} of them were there already; "
            f"{len(self.wrong)} lost, doubled or damaged"
        )
        return "\n".join([head, *self.wrong[:20]])


def crash_writers(where: str, writes: int, seed: int = 0) -> Crashes:
    """Do so many writes to a new store by writers that crash all the time; return what came of it."""
    told = Crashes(writes)
    chosen = _crashes(random.Random(seed))
    began = time.monotonic()
    done = 0
    Store.open(where).close()
    while done < writes:
        kind, crash = next(chosen)
        start = done

        def work(say: Callable[[int], None], start: int = start) -> None:
            with Store.open(where, busy_timeout_s=_BUSY_S) as store:
                if start and not is_there(store, start - 1):
                    raise AssertionError(f"write {start - 1} had returned, and is lost")
                if is_there(store, start):
                    say(-1)
                for number in range(start, min(start + _AT_MOST, writes)):
                    write(store, number)
                    say(number)

        said, ended = forked(work, crash)
        told.already_there += said.count(-1)
        done = max([start, *(number + 1 for number in said)])
        if not ended:
            told.crashes[kind] += 1
            told.repeated += done < writes
    with Store.open(where) as store:
        told.wrong = wrong(store, writes)
    told.seconds = time.monotonic() - began
    return told


def _crashes(dice: random.Random) -> Iterator[tuple[str, Crash]]:
    """Yield crashes, every point of a commit by turns; each with its kind."""
    preloaded = hasattr(ctypes.CDLL(None), "kill_at")
    nth = 0
    while True:
        for point in ("store.before_commit", "store.after_commit"):
            for action in ("kill", "exit"):
                yield f"{action} at {point}", at_point(point, dice.randint(1, 3), action)
        yield "kill at a moment", after(dice.uniform(0.01, 0.2))
        for moment in (BEFORE, HALF, AFTER) if preloaded else ():
            # The first calls are of opening; then there are some 20 for a write.
            nth = nth % 60 + 1
            yield f"kill {MOMENTS[moment]} a call", at_call(nth, moment)


# --- migrations -------------------------------------------------------------------------------------


def store_of(where: str, version: int) -> None:
    """Make a store as an earlier version of dspool did, with something in each of its tables."""
    if is_postgresql(where):
        database: Any = PostgreSQL(where, busy_timeout_s=_BUSY_S)
        database.create_schema()
        migrate(database, version)
        database.close()
    else:
        create_file(Path(where), lambda made: _migrated(made, version))
    with Store.open(where, readonly=True) as old:
        assert old.schema == version
    _fill(where, version)


def _migrated(path: Path, version: int) -> None:
    database = SQLite(path, busy_timeout_s=_BUSY_S)
    migrate(database, version)
    database.close()


def _fill(where: str, version: int) -> None:
    database = (
        PostgreSQL(where, busy_timeout_s=_BUSY_S) if is_postgresql(where) else SQLite(Path(where), busy_timeout_s=1)
    )
    store = Store(database, version)
    for number in range(9):
        if number % 3 < version:
            write(store, number)
    store.close()


def kept(where: str) -> list[Any]:
    """Return what `store_of` filled in."""
    with Store.open(where, readonly=True) as store:
        held: list[Any] = [store.programs.versions("qa")]
        held.append(store.sessions.load() if store.schema >= 2 else [])
        held.append(store.events.read() if store.schema >= 3 else [])
        return held


def crash_migrations(fresh: Callable[[], str], version: int, *, calls: bool = True) -> Crashes:
    """Let a store of `version` be brought to the newest one and be killed meanwhile: at each point in turn.

    fresh: names a place for a new store. version: 0 = there is none yet. calls: not at fault points alone.
    """
    told = Crashes()
    began = time.monotonic()
    makers: list[tuple[str, Callable[[int], Crash]]] = [
        (f"kill at {point}", lambda nth, point=point: at_point(point, nth))
        for point in ("store.in_migration", "store.before_commit", "store.after_commit")
    ]
    if calls and hasattr(ctypes.CDLL(None), "kill_at"):
        # Before a call is after the one that went before it.
        makers += [
            (f"kill {MOMENTS[moment]} a call", lambda nth, moment=moment: at_call(nth, moment))
            for moment in (HALF, AFTER)
        ]
    for kind, make in makers:
        nth = 0
        while _one_migration(fresh(), version, make(nth := nth + 1), told):
            told.crashes[kind] += 1
    told.seconds = time.monotonic() - began
    return told


def _one_migration(where: str, version: int, crash: Crash, told: Crashes) -> bool:
    """Return whether it crashed."""
    if version:
        store_of(where, version)
    before = kept(where) if version else None
    _, ended = forked(lambda say: Store.open(where).close(), crash)
    told.wrong += _torn(where, version, before)
    with Store.open(where) as store:
        told.wrong += compared("version", store.schema, LATEST)
        told.wrong += store.check()
        if before is not None:
            told.wrong += compared("what was kept", kept(where), before)
        for number in [*(number for number in range(9) if number % 3 >= version), *range(9, 18)]:
            write(store, number)
        told.wrong += wrong(store, 18)
    told.writes += 1
    return not ended


def _torn(where: str, version: int, before: list[Any] | None) -> list[str]:
    """Return what is not of one version, whichever, of a store whose migration was killed."""
    if before is None:
        # A file is there whole, or not at all; a database may be on its way.
        if is_postgresql(where) or not Path(where).exists():
            return []
        with Store.open(where, readonly=True) as store:
            return compared("version", store.schema, LATEST)
    with Store.open(where, readonly=True) as store:
        schema = store.schema
        tables = _tables(store)
    expected = sum(statement.startswith("CREATE TABLE") for step in MIGRATIONS[:schema] for statement in step)
    lines = compared("tables", tables, expected) + compared("what was kept", kept(where), before)
    return lines if version <= schema <= LATEST else [*lines, f"version {schema}"]


def _tables(store: Store) -> int:
    sqlite = "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
    postgres = "SELECT count(*) FROM pg_tables WHERE schemaname = 'dspool'"
    with store._database.read() as connection:
        return int(connection.exec_driver_sql(sqlite if connection.dialect.name == "sqlite" else postgres).scalar_one())


# --- the command ------------------------------------------------------------------------------------


def preload(folder: Path) -> dict[str, str]:
    """Return the environment of a process whose forks can be killed in the middle of calls. Needs a C compiler."""
    library = folder / "killing_calls.so"
    command = ["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return {**os.environ, "LD_PRELOAD": str(library)}


@contextmanager
def _places(postgres: bool, folder: Path) -> Iterator[Callable[[], str]]:
    if postgres:
        from tests.support.postgres import postgres_server

        # The server itself is not to be killed.
        os.environ.pop("LD_PRELOAD", None)
        with postgres_server() as server:
            yield server.emptied
    else:
        yield lambda: str(store_path(tempfile.mkdtemp(dir=folder)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/crashes", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--writes", type=int, default=1000, metavar="N", help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the crashes")
    parser.add_argument("--postgres", action="store_true", help="in a PostgreSQL server of its own, instead of a file")
    parser.add_argument("--migrations", action="store_true", help="instead: of stores of each earlier version")
    parser.add_argument("--version", type=int, choices=range(LATEST), help="of --migrations: this one alone")
    parser.add_argument("--points", action="store_true", help="of --migrations: at fault points alone, not at calls")
    parser.add_argument("--json", action="store_true", help="print JSON")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crashes-") as name:
        folder = Path(name)
        if "LD_PRELOAD" not in os.environ and shutil.which("cc") is not None:
            return subprocess.run([sys.executable, "-m", __spec__.name, *sys.argv[1:]], env=preload(folder)).returncode
        tempfile.tempdir = name
        with _places(wanted.postgres, folder) as fresh:
            runs: dict[str, Crashes]
            if wanted.migrations:
                versions = range(LATEST) if wanted.version is None else [wanted.version]
                runs = {f"version {one}": crash_migrations(fresh, one, calls=not wanted.points) for one in versions}
            else:
                runs = {"writes": crash_writers(fresh(), wanted.writes, wanted.seed)}
    if wanted.json:
        print(json.dumps({name: vars(run) for name, run in runs.items()}))
    else:
        print("\n".join(f"{name}: {run.text()}" for name, run in runs.items()))
    return 1 if any(run.wrong for run in runs.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pytest.skip.Exception as skipped:
        sys.exit(f"SKIPPED {skipped}")
