"""What a schedule can do to a world: one table. A move says everything about itself; where it does not apply, it does
nothing, so that any move can be left out of a history.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bridge.protocol import messages as wire
from pools.config import FleetConfig
from pools.core.events import (
    CpuRead,
    Drain,
    DrainWorker,
    DropLetter,
    Exited,
    MemoryRead,
    PardonLetter,
    Resize,
    Restart,
    Signalled,
)
from tests.sim import conversations, deployments, scenes
from tests.sim.asks import Ask, draw_ask
from tests.sim.families import draw_family
from tests.sim.noise import pick
from tests.sim.services import ASKED, INNER, NAME, PLACE
from tests.sim.work import Work
from tests.sim.worker import SIGKILL, Process

if TYPE_CHECKING:
    from tests.sim.world import World

CLIENTS: Final = 4
_MEMORY: Final = (0.5, 0.84, 0.85, 0.87, 0.9, 0.93, 0.99, 0.99)
_CPU: Final = (0.1, 0.5, 0.75, 0.95, 0.95)
_REUSES: Final = ("the last id", "an early id", "another's id", "another's parent")
_CURSES: Final = ("boot failed", "boot failed", "exits", "launch failed", "hangs", "mute")


class Move(NamedTuple):
    """One move: when (seconds after the start), what, with which values."""

    at: float
    name: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        kind = MOVES[self.name]
        return f"{self.at:9.4f} s  {self.name:8} {kind.text.format(*self.values)}"


class MoveKind(NamedTuple):
    """How a kind of move is drawn, made and told. weight: how often it is drawn, 0 = in histories with sessions alone.

    in_sessions: how often it is there. in_services: in those where the coordinator's own process is asked.
    """

    weight: int
    draw: Callable[[Random, FleetConfig], tuple[Any, ...]]
    make: Callable[..., None]
    text: str
    in_sessions: int = 0
    in_services: int = 0


# --- clients ----------------------------------------------------------------------------------------


def _draw_submit(random: Random, config: FleetConfig) -> tuple[Any, ...]:
    ask, work = draw_ask(random, config)
    return _client(random), ask, work


def _client(random: Random) -> int:
    # Square: the first clients ask most, so that one client's requests queue behind each other.
    return 1 + int(random.random() ** 2 * CLIENTS)


def _draw_burst(random: Random, config: FleetConfig) -> tuple[Any, ...]:
    return (2 + int(random.random() * 6), *_draw_submit(random, config))


def _burst(world: World, count: int, *request: Any) -> None:
    for _ in range(count):
        scenes.submit(world, *request)


def _doze(world: World, for_s: float) -> None:
    scenes.submit(world, 1, Ask("slow", deadline_ms=40.0), Work(0.1, "late"))
    world.clock.after(0.07, _stall, world, for_s)


def _draw_crowd(random: Random, config: FleetConfig) -> tuple[Any, ...]:
    return (2 + int(random.random() * 8), *_draw_submit(random, config)[1:])


def _crowd(world: World, count: int, *request: Any) -> None:
    for number in range(CLIENTS + 1, CLIENTS + 1 + count):
        scenes.submit(world, number, *request)


def _slow(world: World, number: int, base_s: float) -> None:
    client = world.client(number)
    if client is not None:
        client.down.slow_down(base_s)


def _reuse(world: World, number: int, how: str) -> None:
    client = world.client(number)
    if client is None or not client.asked:
        return
    if how == "the last id":
        client.submit_as(client.asked[-1])
    elif how == "an early id":
        client.submit_as(wire.request_id_base(number))
    elif how == "another's parent":
        client.submit(Ask("slow"), Work(), max(world.ledger.cases, default=1))
    else:
        client.submit_as(wire.request_id_base(number + 1) + 1)


def _leave(world: World, number: int, how: str, notice_s: float) -> None:
    client = world.client(number)
    if client is not None:
        client.leave(how, notice_s)


# --- workers ----------------------------------------------------------------------------------------


def _place(random: Random, config: FleetConfig) -> str:
    pool = pick(random, config.pools)
    return f"{pool.name}-{1 + int(random.random() * (pool.max_size or pool.size))}"


def _on_process(what: Callable[..., object]) -> Callable[..., None]:
    """Make a move of something that is done to the process that now lives at a place."""

    def make(world: World, place: str, *values: Any) -> None:
        process = world.process_at(place)
        if process is not None and process.alive:
            what(world, process, *values)

    return make


def _kill(world: World, process: Process, how: str) -> None:
    process.die(Signalled(SIGKILL, how == "out of memory"), silently=how == "silently")


def _exit(world: World, process: Process, code: int) -> None:
    process.die(Exited(code))


def _freeze(world: World, process: Process, for_s: float) -> None:
    process.frozen = True
    world.clock.after(for_s, process.thaw)


def _unplug(world: World, process: Process) -> None:
    process.up.cut = process.down.cut = True


def _garble(world: World, process: Process) -> None:
    world.shell.look(world.shell.garbled, process.desk)


def _curse(world: World, place: str, how: str, lives: int) -> None:
    world.launcher.curses[place] = [how] * lives


# --- operators --------------------------------------------------------------------------------------


def _draw_resize(random: Random, config: FleetConfig) -> tuple[Any, ...]:
    return pick(random, config.pools).name, int(random.random() * 4), pick(random, (None, None, 2, 4))


def _resize(world: World, pool: str, size: int, max_size: int | None) -> None:
    world.shell.look(world.shell.step, Resize(pool, size, max_size))


def _retire(world: World, process: Process) -> None:
    world.shell.look(world.shell.step, DrainWorker(process.desk.worker_id))


def _restart(world: World, target: str, grace_s: float | None) -> None:
    process = world.process_at(target)
    world.shell.look(world.shell.step, Restart(process.desk.worker_id if process is not None else target, grace_s))


def _letter(world: World, pardoned: bool) -> None:
    world.shell.look(_release_letter, world, pardoned)


def _release_letter(world: World, pardoned: bool) -> None:
    letter = next(iter(world.fleet._tables.poison.letters.values()), None)
    if letter is not None:
        world.shell.step((PardonLetter if pardoned else DropLetter)(letter.letter_id))


# --- the rest ---------------------------------------------------------------------------------------


def _leak(world: World, process: Process) -> None:
    process.leak(64 << 20)


def _read_memory(world: World, used: float) -> None:
    world.shell.look(world.shell.step, MemoryRead(used))


def _read_cpu(world: World, used: float) -> None:
    world.shell.look(world.shell.step, CpuRead(used))


def _stall(world: World, for_s: float) -> None:
    if not world.is_calm:
        world.shell.stand_still(for_s)


def _drain(world: World, budget_s: float) -> None:
    world.shell.look(world.shell.step, Drain(budget_s))


MOVES: Final[dict[str, MoveKind]] = {
    "submit": MoveKind(100, _draw_submit, scenes.submit, "client {0}: {1}, {2}"),
    "burst": MoveKind(10, _draw_burst, _burst, "{0} times client {1}: {2}, {3}"),
    "crowd": MoveKind(2, _draw_crowd, _crowd, "{0} more clients: {1}, {2}"),
    "family": MoveKind(
        8,
        lambda random, config: (_client(random), *draw_family(random, config)),
        scenes.submit,
        "client {0}: {1}, {2}",
    ),
    "slow": MoveKind(
        2, lambda random, _: (_client(random), pick(random, (0.05, 1.0))), _slow, "client {0} reads {1} s late"
    ),
    "cancel": MoveKind(
        25,
        lambda random, _: (_client(random), int(random.random() * 4), random.random() < 0.4),
        scenes.cancel,
        "client {0}: its latest but {1}, force={2}",
    ),
    "reuse": MoveKind(
        2,
        lambda random, _: (
            _client(random),
            pick(random, _REUSES),
        ),
        _reuse,
        "client {0} uses {1}",
    ),
    "leave": MoveKind(
        4,
        lambda random, _: (_client(random), pick(random, ("bye", "dead", "muted")), pick(random, (0.0, 0.001, 0.1))),
        _leave,
        "client {0}: {1}, noticed after {2} s",
    ),
    "kill": MoveKind(
        12,
        lambda random, config: (
            _place(random, config),
            pick(random, ("killed", "killed", "silently", "out of memory")),
        ),
        _on_process(_kill),
        "{0} {1}",
    ),
    "exit": MoveKind(
        3, lambda random, config: (_place(random, config), pick(random, (0, 1))), _on_process(_exit), "{0} code {1}"
    ),
    "freeze": MoveKind(
        5,
        lambda random, config: (_place(random, config), pick(random, (0.003, 0.05, 1.0, 30.0))),
        _on_process(_freeze),
        "{0} for {1} s",
    ),
    "unplug": MoveKind(2, lambda random, config: (_place(random, config),), _on_process(_unplug), "{0} loses its link"),
    "garble": MoveKind(2, lambda random, config: (_place(random, config),), _on_process(_garble), "{0} is unreadable"),
    "curse": MoveKind(
        5,
        lambda random, config: (_place(random, config), pick(random, _CURSES), pick(random, (1, 1, 2, 4))),
        _curse,
        "{0}: {1}, the next {2} lives",
    ),
    "resize": MoveKind(
        4,
        _draw_resize,
        _resize,
        "pool {0} to {1}, max_size={2}",
    ),
    "retire": MoveKind(
        3, lambda random, config: (_place(random, config),), _on_process(_retire), "{0} is taken out of service"
    ),
    "restart": MoveKind(
        5,
        lambda random, config: (
            pick(random, (config.pools[0].name, _place(random, config))),
            pick(random, (None, None, 0.0, 0.05)),
        ),
        _restart,
        "{0}, grace_s={1}",
    ),
    "stall": MoveKind(
        2,
        lambda random, _: (pick(random, (0.002, 0.03, 0.3, 7.0)),),
        _stall,
        "the coordinator stands still for {0} s",
    ),
    "doze": MoveKind(
        1,
        lambda random, _: (pick(random, (0.3, 1.2, 7.0)),),
        _doze,
        "client 1 sends a request that ends too late, while the coordinator stands still for {0} s",
    ),
    "memory": MoveKind(8, lambda random, _: (pick(random, _MEMORY),), _read_memory, "{0} of it is used"),
    "cpu": MoveKind(3, lambda random, _: (pick(random, _CPU),), _read_cpu, "{0} of the processors is used"),
    "leak": MoveKind(2, lambda random, config: (_place(random, config),), _on_process(_leak), "{0} takes 64 MiB"),
    "jam": MoveKind(
        2, lambda random, _: (2 + int(random.random() * 8),), scenes.jam, "client 1 sends {0} requests that hang"
    ),
    "plague": MoveKind(
        3,
        lambda random, _: (2 + int(random.random() * 5), pick(random, (0.002, 0.1))),
        scenes.plague,
        "client 2 sends {0} requests that kill, after {1} s, and one that does not",
    ),
    "chorus": MoveKind(
        4,
        lambda random, _: (
            2 + int(random.random() * 4),
            pick(random, (0.002, 0.1)),
            pick(random, ("ok", "ok", "deaf")),
            pick(random, (None, 40.0)),
        ),
        scenes.chorus,
        "clients 1 and 4 send {0} requests with one key, {1} s of work, the first ends {2}, deadline_ms={3}",
    ),
    "legacy": MoveKind(
        2,
        lambda random, _: (int(random.random() * 3), pick(random, (0.01, 0.05, 0.1)), pick(random, (0.03, 0.2))),
        scenes.legacy,
        "clients 1 and 4 send one request with one key, which asks for {0} others; client 1 cancels it after {1} s, "
        "{2} s of work",
    ),
    "hurry": MoveKind(
        2,
        lambda random, _: (6 + int(random.random() * 6), pick(random, (0.03, 0.2))),
        scenes.hurry,
        "client 3 sends {0} requests, {1} s of work, client 1 one of low priority, and the same of high priority",
    ),
    "siege": MoveKind(
        4,
        lambda random, _: (2 + int(random.random() * 4),),
        scenes.siege,
        "client 3 sends {0} requests that hang, and as many of low priority",
    ),
    "deploy": MoveKind(
        3,
        lambda random, config: (pick(random, config.pools).name, random.randint(1, 3), pick(random, (0, 0, 1, 2, 4))),
        deployments.deploy,
        "version {1} of program qa to pool {0}, {2} as its canary",
    ),
    "undeploy": MoveKind(1, lambda random, _: (), deployments.undeploy, "program qa"),
    "letter": MoveKind(
        7, lambda random, _: (random.random() < 0.5,), _letter, "the oldest dead letter leaves, pardoned={0}"
    ),
    "talk": MoveKind(0, conversations.draw_talk, scenes.submit, "client {0}: {1}, {2}", 50),
    "chat": MoveKind(0, conversations.draw_chat, conversations.chat, "clients 1 and 4, {0} times: {1}, {2}", 20),
    "open": MoveKind(
        0,
        conversations.draw_open,
        conversations.open_session,
        "client {0}: session {1}, ttl_s={2}, affinity={3}, on_loss={4}",
        16,
    ),
    "expire": MoveKind(
        0,
        lambda random, _: (pick(random, (1, 4)), pick(random, ("s1", "s1", "s2")), pick(random, ("any", "opened"))),
        conversations.expire,
        "client {0}: session {1} ({2})",
        6,
    ),
    "circle": MoveKind(
        0,
        lambda random, _: (pick(random, (0.002, 0.05)),),
        conversations.circle,
        "calls ask for one in the other's session, {0} s of work",
        4,
    ),
    "evict": MoveKind(
        0,
        lambda random, _: (pick(random, ("killed", "killed", "taken out of service")),),
        conversations.evict,
        "the worker of the first session is {0}",
        10,
    ),
    "crowd at home": MoveKind(
        0,
        lambda random, _: (pick(random, (0.03, 0.2)), random.random() < 0.5),
        conversations.crowd_at_home,
        "a strict session is called while its worker is busy, {0} s of work, and leaves={1}",
        14,
    ),
    "outage": MoveKind(
        0, lambda random, _: (pick(random, (0.01, 0.5)),), conversations.outage, "nothing is kept for {0} s", 10
    ),
    "swap": MoveKind(
        0,
        lambda random, config: (
            config.pools[0].name,
            pick(random, (0.02, 0.2)),
            random.randint(1, 3),
            random.random() < 0.5,
        ),
        deployments.swap,
        "clients call program qa in pool {0}, {1} s of work, and version {2} comes meanwhile; a worker ends={3}",
        0,
        6,
    ),
    "consult": MoveKind(
        0,
        lambda random, _: (
            1 + int(random.random() * 4),
            _client(random),
            Ask(pick(random, (ASKED,) * 9 + (INNER,)), deadline_ms=pick(random, (None, None, 40.0, 2000.0))),
            Work(pick(random, (0.0001, 0.01, 0.2)), pick(random, ("ok",) * 6 + ("error", "crash", "hang", "late"))),
        ),
        _burst,
        "{0} times client {1}: {2}, {3}",
        0,
        20,
    ),
    "bury": MoveKind(
        0,
        lambda random, _: (PLACE, pick(random, ("killed", "killed", "silently"))),
        _on_process(_kill),
        "{0} {1}",
        0,
        8,
    ),
    "bewitch": MoveKind(
        0,
        lambda random, _: (PLACE, pick(random, _CURSES), pick(random, (1, 1, 2, 4))),
        _curse,
        "{0}: {1}, the next {2} lives",
        0,
        4,
    ),
    "renew": MoveKind(
        0,
        lambda random, _: (NAME, pick(random, (None, 0.05))),
        _restart,
        "{0}, grace_s={1}",
        0,
        3,
    ),
    "drain": MoveKind(1, lambda random, _: (pick(random, (0.0, 0.02, 0.5, 5.0)),), _drain, "within {0} s"),
}
