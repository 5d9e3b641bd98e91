"""`dspool resize`, `drain`, `restart`: workers and pools in and out of service, followed until it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.cli.arguments import parse_size
from orchestrator.cli.coordinators import session
from orchestrator.cli.failure import command
from orchestrator.cli.listings import AsJson, size_text
from orchestrator.cli.plain import plain
from orchestrator.cli.screen import err, out, print_json
from orchestrator.errors import Unavailable
from pools.services import NAME as SERVICES
from pools.worker_id import incarnation_of, place_of, pool_of

if TYPE_CHECKING:
    from orchestrator.client.client import Client

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it is done; Ctrl-C only ends the waiting.")]
Row = Mapping[str, Any]
_LOOK_S: Final = 0.1
# So long the services process may take to end, and its successor to be ready.
_SERVICES_S: Final = 30.0
_READY: Final = ("ready", "busy")
_ALIVE: Final = ("launching", "booting", *_READY)


# --- the commands -----------------------------------------------------------------------------------


@command
def resize(
    pool: Annotated[str, typer.Argument(help="A pool's name.")],
    size: Annotated[str, typer.Argument(metavar="N|MIN:MAX", help="Workers; or from how many to how many, as needed.")],
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Bring a pool to a number of workers, or let it have from MIN to MAX as its work asks for.

    Workers beyond the size finish what they run, however long that takes. Drained places are in service again.
    """
    wanted = parse_size(size)
    with session() as client:
        row = client.resize(pool, wanted)
        if wait:
            _follow(lambda: _not_filled(client, pool))
            row = _pool(client, pool)
    if as_json:
        print_json(plain(row))
    else:
        out().print(f"{pool}: {row['ready']} of {size_text(row)} workers are ready", markup=False)


@command
def drain(
    worker: Annotated[str, typer.Argument(help="A worker's id, such as general-2.1.")],
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Take a worker out of service: it finishes what it runs, and its place stays empty.

    `dspool restart WORKER` or `dspool resize` fills the place again.
    """
    with session() as client:
        row: Row = client.drain(worker)
        if wait:
            _follow(lambda: _not_ended(client, [worker]))
            row = _find(client.workers(), worker) or row
    if as_json:
        print_json(plain(row))
    elif row["state"] == "exited":
        out().print(f"{worker} has ended: {row['exit']['cause']}", markup=False)
    else:
        out().print(f"{worker} drains", markup=False)


@command
def restart(
    target: Annotated[str, typer.Argument(metavar="WORKER|POOL", help="A worker's id, or a pool's name.")],
    grace_s: Annotated[
        float | None, typer.Option("--grace-s", min=0, help="Kill what still runs after so many seconds.")
    ] = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Replace a worker, or a pool's workers one after the other; each has its spare ready before it is told to go.

    Without --grace-s a worker has all the time that its work needs. Drained places are filled again. The coordinator's
    own process, `services`, ends before the next one begins, and has a few seconds for what it runs.
    """
    with session() as client:
        before = client.stats()["services"]["worker"]
        told = client.restart(target, grace_s=grace_s)
        if wait and SERVICES in (target, pool_of(target)):
            told = {**told, "replaced": _follow_services(client, before)}
        elif wait:
            told = {**told, "replaced": _follow_restart(client, target, told["replacing"])}
    if as_json:
        print_json(plain(told))
    elif not wait:
        names = ", ".join(told["replacing"]) or "nobody; empty places are filled"
        out().print(f"to be replaced: {names}", markup=False)
    else:
        for old, new in told["replaced"].items():
            out().print(f"{old} → {new}", markup=False)
        out().print(f"{target} is restarted", markup=False)


# --- waiting ----------------------------------------------------------------------------------------


def _follow(look: Callable[[], str]) -> None:
    """Ask what is still to come until it is nothing, and say so on standard error where it changes."""
    console, before = err(), ""
    while text := look():
        if text != before:
            console.print(text, markup=False)
            before = text
        time.sleep(_LOOK_S)


def _follow_restart(client: Client, target: str, names: Sequence[str]) -> dict[str, str | None]:
    """Wait until nobody of `names` is to be replaced and the pool is full; return who followed whom.

    Raises Unavailable if a spare failed, the pool cannot boot, or a place stays empty.
    """
    pool = target if _is_pool(client, target) else pool_of(target)
    followers: dict[str, str | None] = dict.fromkeys(names)

    def look() -> str:
        # In this order: of whom nobody is to be replaced any more, the workers then say what became of it.
        replacing = _pool(client, pool)["replacing"]
        workers = client.workers()
        followers.update(_followers(names, workers))
        if waiting := [name for name in replacing if name in followers]:
            return _progress(names, waiting, workers)
        if kept := [name for name in names if (row := _find(workers, name)) and _serves(row)]:
            raise Unavailable(f"not replaced: {_why_kept(kept, workers)}")
        return _not_ended(client, names) or _not_filled(client, pool, target)

    _follow(look)
    return followers


def _follow_services(client: Client, before: str | None) -> dict[str, str | None]:
    """Wait until another services process is ready; return who followed whom. Raises Unavailable if none comes."""
    until = time.monotonic() + _SERVICES_S

    def look() -> str:
        found = client.stats()["services"]
        if found["state"] == "ready" and found["worker"] != before:
            return ""
        if time.monotonic() >= until:
            raise Unavailable(f"the services process is {found['state']}: {found['problem'] or 'it starts'}")
        return f"services: {found['state']}"

    _follow(look)
    after: str | None = client.stats()["services"]["worker"]
    return {} if before is None else {before: after}


def _progress(names: Sequence[str], waiting: Sequence[str], workers: Iterable[Row]) -> str:
    done = f"{len(names) - len(waiting)} of {len(names)} replaced"
    current = _find(workers, waiting[0])
    if current is not None and current["leaving"]:
        return f"{done}; {_still_runs(current)}"
    return f"{done}; the spare of {waiting[0]} starts"


def _not_ended(client: Client, names: Sequence[str]) -> str:
    """Return what workers that leave still run, nothing if they have ended."""
    workers = client.workers()
    living = [row for name in names if (row := _find(workers, name)) and row["state"] != "exited"]
    return "; ".join(map(_still_runs, living))


def _not_filled(client: Client, pool: str, target: str = "") -> str:
    """Return what a pool still lacks of its size, or has beyond it.

    target: what is restarted, if anything is; of a worker's place alone it is asked then. Raises Unavailable if the
    pool cannot boot, or if what is lacking will not come: a place is out of service, or beyond the size by now.
    """
    row, workers = _pool(client, pool), [each for each in client.workers() if each["pool"] == pool]
    if row["state"] == "degraded" and not any(each["state"] in _ALIVE for each in workers):
        raise Unavailable(str(row["why"]))
    places = [f"{pool}-{number}" for number in range(1, row["size"] + 1)]
    if target and not places:
        raise Unavailable(f"pool {pool} is off (size 0) by now: resize it")
    if target not in ("", pool):
        if place_of(target) not in places:
            raise Unavailable(f"{place_of(target)} is beyond the size of pool {pool} by now ({row['size']}): resize it")
        places = [place_of(target)]
    elif beyond := [each for each in workers if each["state"] != "exited" and place_of(each["id"]) not in places]:
        return "; ".join(map(_still_runs, beyond))
    serving = {place_of(each["id"]) for each in workers if _serves(each)}
    lacking = [place for place in places if place not in serving]
    empty = {place: why for place in lacking if (why := _why_empty(client, place, workers))}
    if empty.keys() < set(lacking):
        return f"{len(places) - len(lacking)} of {len(places)} workers are ready"
    if empty:
        raise Unavailable(f"out of service: {', '.join(empty.values())}; dspool restart {pool} fills what is empty")
    return ""


def _why_empty(client: Client, place: str, workers: Iterable[Row]) -> str:
    """Return how the last worker of a place left it if nobody follows, nothing while somebody is there or to come."""
    lives = [each for each in workers if place_of(each["id"]) == place]
    if not lives or any(each["state"] in _ALIVE and not each["leaving"] for each in lives):
        return ""
    newest = max(lives, key=lambda each: incarnation_of(each["id"]))
    if newest["leaving"] == "drained":
        return f"{place} ({newest['id']} is drained)"
    # The living come first, then the latest death: of a spare and the one it was to follow either may have died last.
    last = lives[0]
    if last["exit"] is None:
        return ""
    kind = client.execute("dspool.config")["pools"][last["pool"]]["restart"]["type"]
    normal = last["exit"]["kind"] == "exited" and last["exit"]["code"] == 0 and last["boot_ms"] > 0
    final = last["exit"]["cause"] == "drained" or kind == "temporary" or (kind == "transient" and normal)
    return f"{place} ({last['id']} ended: {last['exit']['cause']})" if final else ""


def _still_runs(row: Row) -> str:
    rows = row["in_flight"]
    what = f"finishes {rows} row{'s' if rows > 1 else ''}" if rows else "ends"
    return f"{row['id']} {what} ({row['leaving']})" if row["leaving"] else f"{row['id']} {what}"


def _why_kept(kept: Sequence[str], workers: Sequence[Row]) -> str:
    """Say of whom no spare was ready, and how the latest one ended."""
    told = []
    for name in kept:
        dead = [row for row in workers if row["exit"] and place_of(row["id"]) == place_of(name)]
        spares = [row for row in dead if incarnation_of(row["id"]) > incarnation_of(name)]
        latest = max(spares, key=lambda row: incarnation_of(row["id"]), default=None)
        spare = "" if latest is None else f" ({latest['id']}: {latest['exit']['cause']}; dspool logs {latest['id']})"
        told.append(name + spare)
    return "; ".join(told)


def _followers(names: Iterable[str], workers: Sequence[Row]) -> dict[str, str | None]:
    """Return who serves in the place of each, None where nobody does yet."""
    serving = {place_of(row["id"]): row["id"] for row in workers if _serves(row)}
    return {name: new if (new := serving.get(place_of(name))) != name else None for name in names}


# --- rows -------------------------------------------------------------------------------------------


def _pool(client: Client, name: str) -> dict[str, Any]:
    return next(row for row in client.pools() if row["pool"] == name)


def _is_pool(client: Client, target: str) -> bool:
    return any(row["pool"] == target for row in client.pools())


def _find(workers: Iterable[Row], worker_id: str) -> Row | None:
    return next((row for row in workers if row["id"] == worker_id), None)


def _serves(row: Row) -> bool:
    return row["state"] in _READY and not row["leaving"]
