"""What must hold when nothing is under way any more, and how a world gets there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from pools.core.events import Drain, ExpireSession
from tests.sim.asks import PROGRAM
from tests.sim.ledger import Broken, label
from tests.sim.services import NAME
from tests.sim.sizes import LOOKS_EVERY_S, SHRINKS_AFTER_S, SHRINKS_EVERY_S
from tests.support.books import check_books
from tests.support.fleet import Sim

if TYPE_CHECKING:
    from tests.sim.worker import Process
    from tests.sim.world import World

# Every backoff, grace period and heartbeat limit of a history is over by then, several times.
CALM_S: Final = 60.0
STOP_S: Final = 4.0
# A version that nobody runs is forgotten by then.
_FORGOTTEN_S: Final = 1.5
# A session with less time to live is let expire.
_SOON_S: Final = 0.5
# What has expired is swept, and forgotten by the store, by then.
_SWEPT_S: Final = 2.0
# Longer than any message travels.
_ARRIVES_S: Final = 5.0


class Books:
    """A world as `check_books` of the unit tests reads it."""

    def __init__(self, world: World) -> None:
        self.fleet = world.fleet
        self.tables = world.fleet._tables
        self.processes = world.ledger.desks
        self.resumed = world.ledger.resumed
        self._world = world

    @property
    def now(self) -> float:
        return self._world.clock.now

    def queued(self, name: str) -> list[int]:
        return [entry.request_id for entry in self.tables.pools[name].queue]

    @property
    def replies(self) -> dict[int, Any]:
        ledger = self._world.ledger
        return {request_id: case for request_id, case in ledger.cases.items() if request_id not in ledger.open}


def audit_books(world: World) -> None:
    """Check everything that the unit tests demand of the fleet's tables after every event."""
    try:
        check_books(cast(Sim, Books(world)))
    except AssertionError as error:
        raise Broken("books", str(error).partition("\n")[0] or "an assertion of check_books") from error
    world.auditor.audit(world.clock.now)


def settle_down(world: World) -> None:
    """Stop all mischief; run until nothing is under way and every pool has its workers; check what is left."""
    world.calm()
    limit = world.clock.now + CALM_S
    world.run(lambda: world.clock.now >= limit or (_is_quiet(world) and world.clock.now >= world.shell.still_until))
    audit_books(world)
    ledger, tables = world.ledger, world.fleet._tables
    if ledger.open:
        raise Broken("everything settles", f"{next(iter(ledger.open.values()))} is stuck")
    if not _is_quiet(world):
        states = {name: (len(pool.ready), len(pool.wanted)) for name, pool in tables.pools.items()}
        raise Broken("pools come back", f"ready workers and places: {states}, stopped: {world.fleet.stopped}")
    if tables.requests or len(tables.deadlines):
        raise Broken(
            "tables are empty at the end", f"{len(tables.requests)} requests, {len(tables.deadlines)} deadlines"
        )
    if any(worker.attempts or worker.held for worker in tables.workers.values()):
        raise Broken("tables are empty at the end", "a worker holds an attempt")
    if any(pool.queue or pool.queued or pool.in_flight or pool.over or pool.lent for pool in tables.pools.values()):
        raise Broken("tables are empty at the end", "a pool's queue or counters")
    _check_tables(tables)
    if any(client.in_flight for client in tables.clients.values()):
        raise Broken("tables are empty at the end", "a client's rows")
    if len(tables.clients) != len(ledger.clients):
        raise Broken("tables are empty at the end", f"{len(tables.clients)} clients of {len(ledger.clients)}")


def _check_tables(tables: Any) -> None:
    """Nothing is left of what waited beside the queues, of reservations, leases, tool calls and accounts."""
    pools = tables.pools.values()
    if tables.stirred or tables.leavers or any(pool.lined for pool in pools):
        raise Broken("tables are empty at the end", "somebody waits for a turn")
    if tables.keys.running or any(pool.following for pool in pools):
        raise Broken("tables are empty at the end", f"{len(tables.keys.running)} keys run")
    if any(pool.seclusion is not None and pool.seclusion.waiting for pool in pools):
        raise Broken("tables are empty at the end", "somebody waits to run alone")
    if any(worker.reserved for worker in tables.workers.values()):
        raise Broken("tables are empty at the end", "a worker is kept for nobody")
    if any(breaker._leases for pool in pools for breaker in pool.breakers.values()):
        raise Broken("tables are empty at the end", "a probe of nobody")
    if tables.children or tables.tool_calls:
        raise Broken("tables are empty at the end", "what belonged to attempts")
    if any(account.in_flight for account in tables.accounts.values()):
        raise Broken("tables are empty at the end", "a principal's rows")


def forget_programs(world: World) -> None:
    """Let versions be forgotten that no name leads to: workers know what there is, and by its names."""
    if not world.ledger.programs and not world.fleet._tables.programs.versions:
        return
    if world.ledger.drain_due is not None:
        return
    until = world.clock.now + _FORGOTTEN_S
    world.run(lambda: world.clock.now >= until)
    versions = world.ledger.versions
    wanted = {f"{PROGRAM}@{version}" for version in versions.values()}
    for worker in world.fleet._tables.workers.values():
        desk = world.ledger.desks[worker.worker_id]
        if (
            desk.pool != NAME
            and desk.ready
            and not desk.stopping
            and (desk.programs, desk.aliases) != (wanted, versions)
        ):
            raise Broken("workers know the programs", f"{desk.worker_id}: {desk.programs}, {desk.aliases}")


def end_sessions(world: World) -> None:
    """End all sessions, or let them expire where that is soon: nothing is left, with the fleet or its workers."""
    sessions = world.auditor.sessions
    if not sessions.used or world.ledger.drain_due is not None:
        return
    if world.keeper is not None:
        world.keeper.check()
    # What was said last may still be on its way, and begin another.
    limit = world.clock.now + _ARRIVES_S + _SWEPT_S
    while _has_sessions(world) and world.clock.now < limit:
        for (principal, session_id), talk in list(sessions.talks.items()):
            if talk.options[0] > _SOON_S and not talk.has_expired(world.clock.now):
                world.shell.step(ExpireSession(principal, session_id))
        until = world.clock.now + _SOON_S
        world.run(lambda until=until: not _has_sessions(world) or world.clock.now >= until)  # type: ignore[misc]
    left = world.fleet._tables.sessions
    if left.by_key or left.of_principal or left.bytes or len(left._expiries):
        raise Broken("tables are empty at the end", f"sessions: {sorted(left.by_key)}, {left.bytes} bytes")
    for process in world.processes.values():
        if _has_copies(process):
            raise Broken("workers forget what ended", f"{process.desk.worker_id}: {process.visits.copies.keys()}")
    if world.keeper is not None and world.keeper.rows:
        raise Broken("what ended is not kept", f"{world.keeper.rows}")


def _has_sessions(world: World) -> bool:
    """Whether anything of a session is left: with the fleet, its workers, or in the store."""
    if world.fleet._tables.sessions.by_key or any(_has_copies(process) for process in world.processes.values()):
        return True
    return world.keeper is not None and bool(world.keeper.rows or not world.keeper.is_quiet)


def _has_copies(process: Process) -> bool:
    return process.alive and not process.down.cut and bool(process.visits.copies)


def _is_quiet(world: World) -> bool:
    """Whether nothing is under way and, unless the fleet is stopping, every place has a ready worker."""
    tables = world.fleet._tables
    if tables.requests:
        return False
    if world.keeper is not None and not world.keeper.is_quiet:
        return False
    if world.ledger.drain_due is not None:
        return world.fleet.stopped
    if any(worker.attempts for worker in tables.workers.values()):
        return False
    return all(_is_complete(world, pool) for pool in tables.pools.values())


def _is_complete(world: World, pool: Any) -> bool:
    """Whether a pool has just the workers that it is to have: as many as its bounds say, but for those taken out."""
    if not pool.asked:
        return not pool.lives
    wanted, (least, most) = len(pool.wanted), world.ledger.bounds[pool.name]
    if len(pool.ready) != wanted or len(pool.lives) != wanted or pool.succession is not None:
        return False
    permanent = world.ledger.pools[pool.name].restart.type == "permanent"
    return least <= wanted <= most if permanent and not world.ledger.drained_one else True


def shrink_down(world: World) -> None:
    """Let nothing be asked for a while: pools that have grown have their least size again."""
    pools, bounds = world.fleet._tables.pools, world.ledger.bounds
    grown = [pool for name, pool in pools.items() if len(pool.wanted) > bounds[name][0]]
    if not grown or world.ledger.drain_due is not None:
        return
    # What was said last may still be on its way, and make a pool grow.
    arrived = world.clock.now + _ARRIVES_S
    world.run(lambda: world.clock.now >= arrived)
    settle_down(world)
    steps = max(len(pool.wanted) - bounds[pool.name][0] for pool in grown)
    limit = world.clock.now + SHRINKS_AFTER_S + SHRINKS_EVERY_S * steps + LOOKS_EVERY_S

    def is_small() -> bool:
        return all(len(pool.wanted) <= bounds[pool.name][0] for pool in grown)

    world.run(lambda: is_small() or world.clock.now >= limit)
    if not is_small():
        raise Broken("pools shrink when nobody needs them", f"{[(pool.name, pool.size) for pool in grown]}")


def stop(world: World) -> None:
    """Drain what is left, wait for the last worker, and see that nothing comes back and no timer stays."""
    if world.ledger.drain_due is None:
        world.shell.look(world.shell.step, Drain(0.0))
    limit = world.clock.now + STOP_S
    world.run(lambda: world.fleet.stopped or world.clock.now >= limit)
    tables = world.fleet._tables
    if not world.fleet.stopped or tables.workers or tables.workers_by_peer:
        raise Broken("the fleet stops", f"{sorted(tables.workers)} are left")
    launched = world.seen["Launch"]
    limit = world.clock.now + CALM_S
    # One timer is to forget the outcomes of keys, another the suspects, both in a while.
    timers = world.timers + tables.keys.timed + bool(tables.poison.timer_at)
    world.run(lambda: world.clock.now >= limit or len(tables.timers) <= timers)
    if len(tables.timers) > timers:
        raise Broken("no timer leaks", f"{len(tables.timers)} timers, {timers} expected")
    if world.seen["Launch"] != launched:
        raise Broken("the fleet stops", "it launched a worker after its end")


def check_answers(world: World) -> None:
    """Every client that stayed has read exactly one answer to each request it sent properly."""
    limit = world.clock.now + _ARRIVES_S
    world.run(lambda: world.clock.now >= limit or not _unread(world))
    for request_id in _unread(world):
        raise Broken("one outcome", f"nobody answered request {label(request_id)}")


def _unread(world: World) -> list[int]:
    return [
        request_id
        for client in world.clients.values()
        if not client.gone
        for request_id in client.asked
        if request_id not in client.answers
    ]
