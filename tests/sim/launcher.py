"""The simulated launcher: processes come to life, are killed, and their ends are reported, each in its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pools.core.events import ExitReason, Launch, Signalled
from tests.sim.noise import Noise
from tests.sim.worker import SIGKILL, Process

if TYPE_CHECKING:
    from tests.sim.world import World

_LAUNCH_S: Final = 0.02
_NOTICE_S: Final = 0.003
_REPORT_S: Final = 0.01
# Some reports come late or never: then the worker has vanished.
_LATE: Final = 0.93
_NEVER: Final = 0.97


class Launcher:
    """Starts `Process`es. `curses`: how the next lives of a place will go wrong, by place."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.curses: dict[str, list[str]] = {}
        self._unborn: set[str] = set()
        self._killed: set[str] = set()
        self._pid = 4000

    def launch(self, launch: Launch) -> None:
        """Begin to start a process."""
        world = self._world
        desk = world.ledger.desks[launch.worker_id]
        curses = self.curses.get(desk.place)
        boot = curses.pop() if curses else "ok"
        world.seen[f"boots: {boot}"] += 1
        process = world.processes[launch.worker_id] = Process(world, desk, boot)
        self._unborn.add(launch.worker_id)
        noise = Noise(world.seed, f"launch {launch.worker_id}")
        world.clock.after(_LAUNCH_S * noise.next(), self._bear, process, boot, noise)

    def _bear(self, process: Process, boot: str, noise: Noise) -> None:
        world, worker_id = self._world, process.desk.worker_id
        self._unborn.discard(worker_id)
        if boot == "launch failed":
            world.shell.look(world.shell.launch_failed, worker_id, "OSError: no memory")
            return
        self._pid += 1
        process.begin()
        world.shell.look(world.shell.launched, worker_id, self._pid)
        if worker_id in self._killed:
            process.die(Signalled(SIGKILL))

    def kill(self, worker_id: str) -> None:
        """SIGKILL a process; one that is being launched gets it once it exists."""
        if worker_id in self._unborn:
            self._killed.add(worker_id)
        else:
            self._world.processes[worker_id].die(Signalled(SIGKILL))

    def ended(self, process: Process, reason: ExitReason, noise: Noise) -> None:
        """A process has ended: its death is noticed, then reported."""
        world, worker_id = self._world, process.desk.worker_id
        noticed_s = _NOTICE_S * noise.next()
        chance = noise.next()
        report_s = 0.15 if chance > _LATE else _REPORT_S * chance
        world.clock.after(noticed_s, world.shell.look, world.shell.died, worker_id)
        if chance < _NEVER:
            world.clock.after(noticed_s + report_s, self._report, worker_id, reason)

    def _report(self, worker_id: str, reason: ExitReason) -> None:
        shell = self._world.shell
        shell.look(shell.reaped, worker_id, reason)
