"""What becomes of a program, as moves make it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pools.core.events import ProgramSet, ServedVersion, Signalled
from tests.sim.asks import PROGRAM, Ask
from tests.sim.scenes import submit
from tests.sim.work import Work
from tests.sim.worker import SIGKILL

if TYPE_CHECKING:
    from tests.sim.world import World


def deploy(world: World, pool: str, version: int, canary: int) -> None:
    """A version is live from now on, and the canary, 0 = none, has an alias of its own."""
    served = [ServedVersion(version, pool, b"spec %d" % version)]
    if canary and canary != version:
        served.append(ServedVersion(canary, pool, b"spec %d" % canary))
    aliases = {"live": version, "canary": canary} if canary else {"live": version}
    world.shell.look(world.shell.step, ProgramSet(PROGRAM, tuple(served), aliases))


def swap(world: World, pool: str, run_s: float, version: int, ends: bool) -> None:
    """A program is called while its next version comes, and gets and loses an alias; then a worker may end."""
    deploy(world, pool, version, 0)
    for number in range(1, 9):
        world.clock.after(0.01, submit, world, 1 + number % 4, Ask(PROGRAM), Work(run_s))
    world.clock.after(0.015, deploy, world, pool, version + 1, version + 1)
    world.clock.after(0.02, deploy, world, pool, version + 1, 0)
    if ends:
        world.clock.after(0.02, _end, world, f"{pool}-1")


def _end(world: World, place: str) -> None:
    process = world.process_at(place)
    if process is not None:
        process.die(Signalled(SIGKILL))


def undeploy(world: World) -> None:
    """The program is gone."""
    world.shell.look(world.shell.step, ProgramSet(PROGRAM, (), {}))
