"""Calls in sessions, as moves make them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Final

from pools.config import FleetConfig, SessionsConfig
from pools.core.events import DrainWorker, ExpireSession, OpenSession, Signalled
from tests.sim.asks import Ask, draw_ask
from tests.sim.noise import pick
from tests.sim.scenes import submit
from tests.sim.sessions import SET
from tests.sim.work import Work
from tests.sim.worker import SIGKILL

if TYPE_CHECKING:
    from tests.sim.world import World

_IDS: Final = ("s1", "s1", "s1", "s2", "s3")
_MEANT: Final = ("any",) * 8 + ("opened",) * 4
_TTLS_S: Final = (0.05, 0.3, 1.0, 5.0, 60.0)
_AFFINITIES: Final = ("hint", "strict_queue", "strict_queue", "strict_fail_fast")
_ON_LOSS: Final = ("restore", "fail")
# Clients of one principal.
_PAIR: Final = (1, 4)
# Of five histories one has sessions.
_EVERY: Final = 5
_ODD: Final = 0.03
_NESTED: Final = 0.15


def has_sessions(seed: int) -> bool:
    """Whether calls in sessions are among the moves of a history."""
    return seed // 7 % _EVERY == 1


def draw_sessions(random: Random) -> SessionsConfig:
    """Draw what sessions are by default."""
    return SessionsConfig(
        ttl_s=pick(random, _TTLS_S), max=pick(random, (1, 2, 1000, 1000)), affinity=pick(random, _AFFINITIES),
        on_loss=pick(random, _ON_LOSS), durable=random.random() < 0.5, history=3,
    )  # fmt: skip


def draw_call(random: Random, config: FleetConfig) -> tuple[Ask, Work]:
    """Draw a call in a session."""
    ask, work = draw_ask(random, config)
    ask = ask._replace(session=pick(random, _IDS), meant=pick(random, _MEANT))
    if random.random() >= _ODD:
        ask = ask._replace(rows=1, key="", operation="slow" if ask.operation.startswith("dspool.") else ask.operation)
    else:
        ask = ask._replace(session=pick(random, ("s1", "s\0", "")), meant="elsewhere")
    kind = random.random()
    if kind < _NESTED:
        child = Ask("slow", session=pick(random, _IDS)), Work(0.002)
        return ask._replace(operation="slow"), Work(0.01, children=(child,) * (1 + int(random.random() * 2)))
    if kind < 2 * _NESTED:
        return ask._replace(operation=SET, pool=""), Work(0.0001, inline=True)
    return ask, work


def draw_talk(random: Random, config: FleetConfig) -> tuple[Any, ...]:
    """Draw a call in a session, and who makes it."""
    return (pick(random, (1, 1, 4, 4, 2)), *draw_call(random, config))


def draw_chat(random: Random, config: FleetConfig) -> tuple[Any, ...]:
    """Draw several calls in one session."""
    return (2 + int(random.random() * 5), *draw_call(random, config))


def chat(world: World, count: int, ask: Ask, work: Work) -> None:
    """Two clients of one principal make the same call in one session, by turns."""
    for n in range(count):
        submit(world, _PAIR[n % 2], ask, work)


def circle(world: World, run_s: float) -> None:
    """Two calls, each in its session, ask for one in the other's, and one for one in its own."""
    for number, own, other in ((1, "s1", "s2"), (4, "s2", "s1"), (1, "s3", "s3")):
        child = Ask("slow", session=other), Work(run_s)
        submit(world, number, Ask("slow", session=own), Work(run_s, children=(child,)))


def crowd_at_home(world: World, run_s: float, leaves: bool) -> None:
    """A strict session is called while its worker is busy with others; then that worker may end."""
    open_session(world, 1, "s1", 5.0, "strict_queue", "restore")
    submit(world, 1, Ask("fast", session="s1"), Work(0.0001))
    for _ in range(20):
        world.clock.after(0.02, submit, world, 3, Ask("slow"), Work(run_s))
    for number in _PAIR:
        world.clock.after(0.03, submit, world, number, Ask("slow", session="s1"), Work(0.002))
    if leaves:
        world.clock.after(0.04, evict, world, "taken out of service")


def draw_open(random: Random, config: FleetConfig) -> tuple[Any, ...]:
    """Draw how a session is opened."""
    affinity = pick(random, (None, None, None, *_AFFINITIES, "never" if random.random() < 0.1 else None))
    return (
        pick(random, _PAIR), pick(random, _IDS), pick(random, (None, None, *_TTLS_S)), affinity,
        pick(random, (None, None, *_ON_LOSS)),
    )  # fmt: skip


def open_session(
    world: World, number: int, session: str, ttl_s: float | None, affinity: str | None, on_loss: str | None
) -> None:
    """A client opens a session."""
    client = world.client(number)
    if client is not None:
        world.shell.look(world.open_session, OpenSession(client.principal, session, ttl_s, affinity, on_loss))


def expire(world: World, number: int, session: str, meant: str) -> None:
    """A client ends a session."""
    client = world.client(number)
    if client is not None:
        generation = world.opened.get((client.principal, session), 0) if meant == "opened" else 0
        world.shell.look(world.shell.step, ExpireSession(client.principal, session, generation))


def evict(world: World, how: str) -> None:
    """The worker where the first session lives ends."""
    places = (talk.at for talk in world.auditor.sessions.talks.values())
    desk = next((desk for desk in places if desk is not None), None)
    process = world.processes[desk.worker_id] if desk is not None else None
    if process is None or not process.alive:
        return
    if how == "killed":
        process.die(Signalled(SIGKILL))
    else:
        world.shell.look(world.shell.step, DrainWorker(process.desk.worker_id))


def outage(world: World, for_s: float) -> None:
    """Nothing can be kept for a while."""
    if world.keeper is not None:
        world.keeper.fails_until = world.clock.now + for_s
