"""Scenes of several requests, as moves make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.protocol import messages as wire
from tests.sim.asks import POISON, Ask
from tests.sim.work import Work

if TYPE_CHECKING:
    from tests.sim.world import World


def submit(world: World, number: int, ask: Ask, work: Work) -> None:
    """A client sends a request."""
    client = world.client(number)
    if client is not None:
        client.submit(ask, work)


def cancel(world: World, number: int, which: int, force: bool) -> None:
    """A client cancels one of its latest requests: 0 is the last."""
    client = world.client(number)
    if client is not None:
        client.cancel(which, force=force)


def jam(world: World, count: int) -> None:
    """Client 1 sends requests that hang."""
    for _ in range(count):
        submit(world, 1, Ask("slow"), Work(0.1, "hang"))


def plague(world: World, count: int, after_s: float) -> None:
    """Client 2 sends requests that kill, and one that does not."""
    for _ in range(count):
        submit(world, 2, Ask("slow", payload=POISON), Work(after_s, "crash"))
    submit(world, 2, Ask("slow"), Work(0.2))


def chorus(world: World, count: int, run_s: float, ending: str, deadline_ms: float | None) -> None:
    """Clients 1 and 4 send requests with one key by turns; the first is another."""
    for n in range(count):
        ask = Ask("slow", key="k", payload=b"a", deadline_ms=None if n else deadline_ms)
        submit(world, 4 if n % 2 else 1, ask, Work(run_s, "ok" if n else ending))


def legacy(world: World, count: int, after_s: float, run_s: float) -> None:
    """Clients 1 and 4 send the same with one key, and client 1 gives up: its program goes on, and asks for others."""
    children = tuple((Ask("slow"), Work(run_s)) for _ in range(count))
    ask = Ask("slow", key="k", payload=b"a")
    for number in (1, 4):
        submit(world, number, ask, Work(run_s, events=True, children=children))
    world.clock.after(after_s, cancel, world, 1, 0, True)


def hurry(world: World, count: int, run_s: float) -> None:
    """One of high priority has the key of one of low priority that waits behind others."""
    for _ in range(count):
        submit(world, 3, Ask("slow"), Work(run_s))
    for priority in (wire.PRIORITY_LOW, wire.PRIORITY_HIGH):
        submit(world, 1, Ask("slow", key="l", payload=b"a", priority=priority), Work(run_s))


def siege(world: World, count: int) -> None:
    """Client 3 sends requests that hang, of two classes."""
    for priority in (wire.PRIORITY_NORMAL, wire.PRIORITY_LOW):
        for _ in range(count):
            submit(world, 3, Ask("slow", priority=priority), Work(0.1, "hang"))
