"""What can be wrong with a fleet, by name: each rule looks at the tables and says what it finds.

A rule judges this moment alone; `health` remembers since when something is so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from bridge.protocol.errors import decode_error
from pools.core import breakers, internal, modes
from pools.core.entries import PoolEntry
from pools.core.events import BootFailed
from pools.core.places import unserved
from pools.core.tables import Tables

WARNING: Final = "warning"
CRITICAL: Final = "critical"

# So long an old worker may finish what it runs before it is said that it holds up the replacements of its pool.
STUCK_S: Final = 60.0
# Boots in a row that fail beside workers that serve, before that is more than bad luck.
_FAILED_BOOTS: Final = 2
# A process of ours that is started again at once is no issue.
_DOWN_S: Final = 5.0
# Operations that are named where there may be many.
_NAMED: Final = 3


class Finding(NamedTuple):
    """Something that is wrong now. It is an issue when it was found for `after_s`.

    name: of the kind; subject: of what, the empty string for the whole fleet. text: what is so, and why. action: what
    is done about it, and what an operator may do.
    """

    name: str
    subject: str
    level: str
    text: str
    action: str
    after_s: float = 0.0


Rule = Callable[[Tables, float], Iterator[Finding]]


def _unserved(tables: Tables, now: float) -> Iterator[Finding]:
    for pool in tables.user_pools.values():
        error = unserved(pool) if pool.size else None
        if error is None:
            continue
        why = error.message.partition("\n")[0]
        if pool.boot_error is not None:
            doing = "one launch at a time is tried, with growing pauses; the first worker that is ready heals the pool"
            action = f"{doing}. Mend the cause; `dspool restart {pool.name}` tries at once"
            yield Finding("pool_degraded", pool.name, CRITICAL, f"no worker can boot: {why}", action)
        else:
            yield Finding("pool_out_of_service", pool.name, CRITICAL, why, f"`dspool restart {pool.name}` fills it")


def _services(tables: Tables, now: float) -> Iterator[Finding]:
    for pool in tables.pools.values():
        error = internal.refusal(pool, now) if pool.config.internal else None
        if error is not None:
            why = error.message.partition("\n")[0]
            lacks = "programs cannot be deployed or changed, sessions and events not be kept; calls go on"
            action = f"{lacks}. It is started again by itself; `dspool restart {pool.name}` tries at once"
            yield Finding("services_down", pool.name, WARNING, why, action, _DOWN_S)
    if tables.store_problem:
        lacks = "what is deployed and what sessions become is not kept, or cannot be changed; calls go on"
        action = f"{lacks}. Mend the cause: it is tried again whenever it is needed. `dspool store check` looks closer"
        yield Finding("store_failed", "", WARNING, tables.store_problem, action)
    if tables.sessions_problem:
        action = "what changed is kept when that works again, and is tried each second; until then only this run has it"
        yield Finding("sessions_not_kept", "", WARNING, tables.sessions_problem, action)
    for name, problem in tables.program_problems.items():
        why = f"the program of the configuration could not be deployed: {problem.partition(chr(10))[0]}"
        action = "what was live of it before is called. `dspool logs` of the services process has the traceback"
        yield Finding("program_not_deployed", name, WARNING, why, action)


def _flapping(tables: Tables, now: float) -> Iterator[Finding]:
    for pool in tables.pools.values():
        if not pool.restarts.is_exhausted(now=now):
            continue
        restart = pool.config.restart
        last = pool.dead[-1] if pool.dead else None
        cause = f"; the latest, {last.worker_id}: {last.cause.partition(chr(10))[0]}" if last is not None else ""
        text = f"{restart.max_restarts} workers or more ended within {restart.window_s:g} s{cause}"
        action = "each place waits longer before it is filled again. `dspool logs WORKER` says how one ended"
        yield Finding("workers_flapping", pool.name, WARNING, text, action)


def _queues(tables: Tables, now: float) -> Iterator[Finding]:
    config = tables.config.degradation
    for pool in tables.user_pools.values():
        limit = pool.config.max_queue
        waiting = pool.waiting_rows
        if config is None or not limit or waiting < config.queue * limit:
            continue
        text = f"{waiting:,} rows wait, {limit:,} may"
        more = f"`dspool resize {pool.name} N` adds workers"
        action = f"clients are asked to send less, what does not fit is refused (Overloaded). {more}"
        yield Finding("queue_standing", pool.name, WARNING, text, action, config.hold_s)


def _growth(tables: Tables, now: float) -> Iterator[Finding]:
    for pool in tables.user_pools.values():
        missing = sum(1 for place in pool.wanted if place.worker is None or not place.worker.booted)
        if pool.boot_error is not None or pool.restarts.failed_boots < _FAILED_BOOTS or not missing or not pool.ready:
            continue
        tries = pool.restarts.failed_boots
        text = f"{len(pool.ready)} of {pool.size} workers serve, the others cannot boot ({tries} tries){_cause(pool)}"
        action = "it is tried again, with growing pauses. Mend the cause, or `dspool resize` to what serves"
        yield Finding("growth_blocked", pool.name, WARNING, text, action)


def _cause(pool: PoolEntry) -> str:
    for dead in reversed(pool.dead):
        if isinstance(dead.reason, BootFailed):
            return f": {decode_error(dead.reason.error).message.partition(chr(10))[0]}"
    return ""


def _replacements(tables: Tables, now: float) -> Iterator[Finding]:
    for pool in tables.pools.values():
        succession = pool.succession
        if succession is None or not succession.spare.booted:
            continue
        old = succession.old
        behind = f", {len(pool.wishes)} more wait for that" if pool.wishes else ""
        rows = sum(entry.rows for entry in old.attempts.values())
        text = f"{old.worker_id} leaves ({succession.wish.why}) and has not finished {rows} rows that it holds{behind}"
        action = f"it may take as long as it takes. `dspool restart {old.worker_id} --grace S` ends what it runs"
        yield Finding("replacement_stuck", old.worker_id, WARNING, text, action, STUCK_S)


def _quarantine(tables: Tables, now: float) -> Iterator[Finding]:
    letters = tables.poison.letters
    if letters:
        operations = sorted({letter.message.operation for letter in letters.values()})
        named = ", ".join(operations[:_NAMED]) + (", …" if len(operations) > _NAMED else "")
        which, them = ("1 request is", "it") if len(letters) == 1 else (f"{len(letters)} requests are", "them")
        text = f"{which} in quarantine, for workers died of {them}: {named}"
        action = "their equals are refused (PoisonRequest). `dspool dead-letter ls` lists them; requeue or drop each"
        yield Finding("quarantine", "", WARNING, text, action)


def _memory(tables: Tables, now: float) -> Iterator[Finding]:
    if tables.memory_paused:
        text = f"{(tables.memory_used or 0.0) * 100:.0f} % of the memory is in use"
        action = "nothing new is accepted and no pool grows until there is more. Fewer workers need less"
        yield Finding("memory_short", "", CRITICAL, text, action)


def _cpu(tables: Tables, now: float) -> Iterator[Finding]:
    signal = tables.modes.signals.get(modes.CPU)
    if signal is not None and signal.counts and signal.value is not None:
        text = f"the processors were {signal.value * 100:.0f} % busy over 10 s, and work waits"
        action = "work of low priority gets less of the queues. More cores, fewer slots, or less beside dspool"
        yield Finding("cpu_short", "", WARNING, text, action)


def _breakers(tables: Tables, now: float) -> Iterator[Finding]:
    for pool in tables.pools.values():
        for row in breakers.rows(pool, now):
            if row["state"] != breakers.OPEN:
                continue
            operation = row["operation"]
            subject = f"{pool.name}/{operation}" if operation else pool.name
            text = f"{row['failures']} of the last {row['outcomes']} ended with the worker's death or out of time"
            action = (
                "requests are refused (CircuitOpen) or go to the fallback; a probe now and then finds out if it works"
            )
            yield Finding("breaker_open", subject, WARNING, text, action)


RULES: Final[tuple[Rule, ...]] = (
    _unserved,
    _services,
    _flapping,
    _queues,
    _growth,
    _replacements,
    _breakers,
    _quarantine,
    _memory,
    _cpu,
)
