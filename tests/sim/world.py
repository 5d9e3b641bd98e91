"""A fleet and everything around it, at one point of simulated time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from pools.core.events import CpuRead, MemoryRead, OpenSession
from pools.core.fleet import Fleet
from tests.sim.client import Client
from tests.sim.clock import Clock
from tests.sim.families import INSIDERS_FROM, Insider
from tests.sim.invariants import Auditor
from tests.sim.keeper import Keeper
from tests.sim.launcher import Launcher
from tests.sim.ledger import Broken, Ledger
from tests.sim.moves import MOVES, Move
from tests.sim.noise import Noise
from tests.sim.schedule import Schedule
from tests.sim.shell import Shell
from tests.sim.story import Story
from tests.sim.work import Work
from tests.sim.worker import Process

# A clock that starts at zero would make "never" and "at once" look the same.
START_S: Final = 1000.0
# More steps than any history takes that comes to an end.
_STEPS_MAX: Final = 20_000


class World:
    """Everything of one history. seen: counts what happened; story: where it is told, if anybody listens.

    on_step: called after each step of the shell, None in most histories.
    """

    def __init__(self, schedule: Schedule, seen: Counter[str], story: Story | None = None) -> None:
        self.seed = schedule.seed
        self.seen = seen
        self.story = story
        self.clock = Clock(START_S)
        self.ledger = Ledger(schedule.config, seen)
        self.clients: dict[bytes, Client] = {}
        self.processes: dict[str, Process] = {}
        self.works: dict[int, Work] = {}
        self.launcher = Launcher(self)
        self.opened: dict[tuple[str, str], int] = {}  # generations of sessions, as they were opened last
        self._is_calm = False
        self._insiders = 0
        self.fleet = Fleet(
            schedule.config,
            lms=frozenset(("default",)),
            random=Noise(schedule.seed, "jitter").next,
            open_page=lambda worker_id: self.ledger.open_desk(worker_id, self.clock.now).page,
            run=1,
        )
        self.keeper = Keeper(self) if schedule.config.sessions.durable else None
        self.auditor = Auditor(self.ledger, self.fleet._tables, lambda desk, epoch: self.shell.has_unread(desk, epoch))
        self.shell = Shell(self, self.fleet)
        self.shell.start()
        if self.keeper is not None:
            self.keeper.begin()
        self.shell.step(MemoryRead(0.5))
        self.timers = len(self.fleet._tables.timers)
        for move in schedule.moves:
            self.clock.at(START_S + move.at, self._make, move)

    def _make(self, move: Move) -> None:
        if not self._is_calm:
            if self.story is not None:
                self.story.tell(
                    self.clock.now - START_S, f"*** {move.name} {MOVES[move.name].text.format(*move.values)}"
                )
            MOVES[move.name].make(self, *move.values)

    # --- who is there -------------------------------------------------------------------------------

    def client(self, number: int) -> Client | None:
        """Return a client, connected on first use; None if it has left."""
        peer = b"client %d" % number
        client = self.clients.get(peer)
        if client is None:
            client = self.clients[peer] = Client(self, number)
        return None if client.gone else client

    def insider(self, worker_id: str, principal: str, read: Callable[[int], None]) -> Insider:
        """Connect a worker's process for a principal. read(id) is called for each answer."""
        self._insiders += 1
        insider = Insider(self, INSIDERS_FROM + self._insiders, worker_id, principal, read)
        self.clients[insider.peer] = insider
        return insider

    def open_session(self, event: OpenSession) -> None:
        """Have a session opened; note which one it is."""
        self.shell.step(event)
        session = self.fleet._tables.sessions.by_key.get(f"{event.principal}\0{event.id}")
        if session is not None:
            self.opened[event.principal, event.id] = session.generation

    def process_at(self, place: str) -> Process | None:
        """Return the latest process of a place."""
        return next(
            (self.processes[name] for name in reversed(self.processes) if name.rpartition(".")[0] == place), None
        )

    def calm(self) -> None:
        """Stop all mischief: whatever hangs comes to its end, and no curse holds."""
        self._is_calm = True
        self.launcher.curses.clear()
        if self.keeper is not None:
            self.keeper.fails_until = 0.0
        self.shell.look(self.shell.step, MemoryRead(0.5))
        self.shell.look(self.shell.step, CpuRead(0.1))
        for process in list(self.processes.values()):
            process.let_go()

    @property
    def is_calm(self) -> bool:
        """Whether the mischief is over."""
        return self._is_calm

    # --- time -----------------------------------------------------------------------------------------

    def run(self, done: Callable[[], bool]) -> None:
        """Let things happen, one after the other, until `done`. Raises Broken if they never end."""
        clock, shell, fleet = self.clock, self.shell, self.fleet
        infinity = float("inf")
        while not done():
            due = clock.next_due()
            at = infinity if due is None else due
            death = shell.next_death
            timer = fleet.next_timer()
            if clock.now < shell.still_until:
                clock.do_next()  # what the coordinator has to do waits; it goes on by the clock
            elif at <= (infinity if death is None else death) and at <= (infinity if timer is None else timer):
                clock.do_next()
            elif death is not None and (timer is None or death <= timer):
                clock.now = max(clock.now, death)
                shell.settle_deaths()
            elif timer is not None:
                clock.now = max(clock.now, timer)
                shell.tick()
            else:
                return
            if shell.steps > _STEPS_MAX:
                raise Broken("it comes to an end", f"{shell.steps} steps")

    # --- what is told ---------------------------------------------------------------------------------

    def note(self, event: Any, peer: bytes) -> None:
        """Tell an event, if anybody listens."""
        if self.story is not None:
            self.story.event(self.clock.now - START_S, event, peer)

    def note_send(self, peer: bytes, message: Any) -> None:
        """Tell what the fleet sends or asks for, if anybody listens."""
        if self.story is not None:
            self.story.sent(peer, message)
