"""A simulated worker process: boots, marks what starts, runs, replies, stops; hangs, freezes and dies as told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from bridge.protocol import messages as wire
from bridge.protocol.errors import BridgeError, encode_error
from pools.core.events import Exited, ExitReason, Signalled
from tests.sim.families import Insider, children_of, goes_astray
from tests.sim.ledger import Desk
from tests.sim.nesting import waits_of
from tests.sim.network import Link
from tests.sim.noise import Noise
from tests.sim.services import NAME
from tests.sim.visits import Visits

if TYPE_CHECKING:
    from tests.sim.world import World

BEAT_S: Final = 2.0
SIGKILL: Final = 9
SIGSEGV: Final = 11
_TOOL: Final = "tool"
_CREDIT: Final = "credit"
# A dead process's connections are noticed by then.
_NOTICED_S: Final = 0.05
_CANCELLED: Final = encode_error(BridgeError("CANCELLED", "the attempt was cancelled"))
_EXPIRED: Final = encode_error(BridgeError("DEADLINE_EXCEEDED", "expired in the worker", details={"stage": "queued"}))
_FAILED: Final = encode_error(BridgeError("REMOTE_ERROR", "the program raised"))
_NO_BOOT: Final = encode_error(BridgeError("REMOTE_ERROR", "no module named x", details={"remote_traceback": "root"}))


class Process:
    """One life. How it boots: ok | boot failed | exits | hangs | mute (never says Hello)."""

    def __init__(self, world: World, desk: Desk, boot: str) -> None:
        self._world = world
        self._clock = world.clock
        self._ledger = world.ledger
        self.desk = desk
        self._noise = Noise(world.seed, desk.worker_id)
        self.visits = Visits(desk.worker_id, self._noise, self._begun)
        self._slots = world.ledger.pools[desk.pool].slots
        self._boot = boot
        self.up = Link(world.clock, self._noise, self._arrived)
        self.down = Link(world.clock, self._noise, self._sent)
        self.alive = False
        self.frozen = False
        self._stopping = False
        self._booted = False
        self._waiting: dict[int, wire.Request] = {}
        self._paused: set[int] = set()
        self._insiders: dict[str, Insider] = {}
        # What an attempt waits for, by its epoch: children by id, a tool, credit. Whose child each is. How those are to
        # end that have nothing else to do.
        self._awaits: dict[int, set[int | str]] = {}
        self._parents: dict[int, int] = {}
        self._done: dict[int, str] = {}
        self._alone: set[int] = set()  # those that wait for nobody: asked to stop, or left by their callers
        self._running: dict[int, wire.Request] = {}
        self._began: dict[int, float] = {}
        self._rss_bytes = 1 << 20
        self._stood_still: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def _begun(self, request: wire.Request, seq: int, state: bytes) -> None:
        self._world.auditor.sessions.begun(request, self.desk, seq, state)

    def _arrived(self, message: wire.Message) -> None:
        self._world.shell.heard_worker(self.desk, message)

    def _sent(self, message: wire.Message) -> None:
        self.do(self._read, message)

    def do(self, what: Callable[..., object], *args: Any) -> None:
        """Do something in this process: nothing if it is dead, later if it stands still."""
        if self.alive:
            if self.frozen:
                self._stood_still.append((what, args))
            else:
                what(*args)

    def _later(self, delay_s: float, what: Callable[..., object], *args: Any) -> None:
        self._clock.after(delay_s, self.do, what, *args)

    # --- the life -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """The process exists."""
        self.alive = True
        if self._boot != "mute":
            self._later(0.01 * self._noise.next(), self._hello)

    def _hello(self) -> None:
        self.up.send(wire.Hello(role="worker", worker_id=self.desk.worker_id, pid=1))
        self._later(BEAT_S, self._beat_regularly)
        took_s = 0.3 * self._noise.next() ** 2
        if self._boot == "ok":
            self._later(took_s, self._ready)
        elif self._boot == "boot failed":
            self._later(took_s, self._boot_failed)
        elif self._boot == "exits":
            self._later(took_s, self.die, Exited(1))

    def _ready(self) -> None:
        if not self._booted and not self._stopping:
            self._booted = True
            self.up.send(wire.Ready(slots=self._slots))

    def _boot_failed(self) -> None:
        self.up.send(wire.BootFailed(payload=_NO_BOOT))
        self.die(Exited(1))

    def _beat_regularly(self) -> None:
        self._beat()
        self._later(BEAT_S, self._beat_regularly)

    def leak(self, rss_bytes: int) -> None:
        """Have so much memory from now on, and say what it had and has."""
        self.do(self._beat)
        self._rss_bytes = rss_bytes
        self.do(self._beat)

    def _beat(self) -> None:
        run_ms = {epoch: (self._clock.now - self._began[epoch]) * 1000.0 for epoch in self._running}
        attempts = [(epoch, ms, 0, 0, ms) for epoch, ms in run_ms.items()]
        running, queued = len(self._running), len(self._waiting)
        self.up.send(wire.Heartbeat(rss_bytes=self._rss_bytes, running=running, queued=queued, attempts=attempts))

    def die(self, reason: ExitReason, *, silently: bool = False) -> None:
        """End the process. What it has sent is on its way, unless it dies silently: then that is lost too."""
        if not self.alive:
            return
        self.alive = False
        if silently:
            self.up.cut = True
        for insider in self._insiders.values():
            insider.leave("muted" if silently else "dead", _NOTICED_S * self._noise.next())
        self._world.launcher.ended(self, reason, self._noise)

    def thaw(self) -> None:
        """Go on after standing still."""
        self.frozen = False
        while self._stood_still and self.alive and not self.frozen:
            what, args = self._stood_still.popleft()
            what(*args)

    def let_go(self) -> None:
        """Let everything that hangs come to its end: the program's, the boot's."""
        if self.frozen:
            self.thaw()
        if self._boot != "ok" or (self.up.cut and not self.desk.ready):
            self.die(Exited(1))
        self._boot = "ok"
        for request in list(self._running.values()):
            if self._world.works[request.request_id].ending in ("hang", "deaf"):
                self._later(0.0, self._finish, request, "ok")

    # --- what it is told ----------------------------------------------------------------------------

    def _read(self, message: wire.Message) -> None:
        kind = type(message)
        if kind is wire.Request:
            self._take(message)  # type: ignore[arg-type]
        elif kind is wire.Recall:
            self._recall(message)  # type: ignore[arg-type]
        elif kind is wire.Cancel:
            self._cancel(message)  # type: ignore[arg-type]
        elif kind is wire.ToolReply:
            self._has(message.epoch, _TOOL)  # type: ignore[attr-defined]
        elif kind is wire.Credit:
            self._take_credit(message)  # type: ignore[arg-type]
        elif kind is wire.Stop:
            self._stop()
        elif kind is wire.SessionEnd:
            self.visits.forget(message)  # type: ignore[arg-type]

    def _take(self, request: wire.Request) -> None:
        work = self._world.works[request.request_id]
        if request.deadline_ms is not None and request.deadline_ms <= 0.0:
            self._reply(request, wire.ERROR, _EXPIRED)
        elif work.inline and not self._stopping:
            self._ledger.ran(self.desk, request)
            if request.session:
                self.visits.enter(request)
            self._reply(request, wire.OK, b"%d" % request.epoch)
        elif self._stopping:
            self.up.send(wire.Recalled(request_id=request.request_id, epoch=request.epoch))
        else:
            self._waiting[request.epoch] = request
            self._start_next()

    def _start_next(self) -> None:
        while self._waiting and len(self._running) - len(self._paused) < self._slots:
            request = self._waiting.pop(next(iter(self._waiting)))
            self._running[request.epoch] = request
            self._began[request.epoch] = self._clock.now
            self._ledger.ran(self.desk, request)
            if request.session:
                self.visits.enter(request)
            work = self._world.works[request.request_id]
            children = work.children
            if not children and self.desk.pool != NAME:
                children = children_of(self._world.seed, request.epoch)
            if children:
                self._later(work.run_s * 0.3, self._ask, request, children, work.waits)
            else:
                for delay_s, act in waits_of(self._world.seed, request.epoch, work.run_s):
                    self._later(delay_s, self._wait, request, act)
            if work.events:
                self._later(work.run_s / 2, self._progress, request)
            if work.ending not in ("hang", "deaf") or self._world.is_calm:
                self._later(work.run_s, self._finish, request, work.ending)

    def _ask(self, request: wire.Request, children: tuple[tuple[Any, Any], ...], waits: bool) -> None:
        """Ask for what the program of an attempt asks for; if it waits for that, lend its slot out."""
        epoch, parent_id = request.epoch, request.request_id
        if epoch not in self._running:
            return
        insider = self._insiders.get(request.principal)
        if insider is None:
            insider = self._world.insider(self.desk.worker_id, request.principal, self._has_answer)
            self._insiders[request.principal] = insider
        if goes_astray(self._world.seed, epoch):
            parent_id = max(self._ledger.cases)
        asked = [insider.submit(ask, work, parent_id) for ask, work in children]
        if waits:
            self._awaits.setdefault(epoch, set()).update(asked)
            self._parents.update(dict.fromkeys(asked, epoch))
            self._wait(request, "pause")

    def _has_answer(self, request_id: int) -> None:
        self.do(self._answered, request_id)

    def _answered(self, request_id: int) -> None:
        """A child has its answer: with the last one its parent goes on."""
        epoch = self._parents.pop(request_id, 0)
        if epoch not in self._running:
            return
        if epoch not in self._parents.values():
            self._wait(self._running[epoch], "resume")
        self._has(epoch, request_id)

    def _await(self, epoch: int, what: str) -> None:
        """Have an attempt wait for something, unless nobody is there for it."""
        if epoch not in self._alone:
            self._awaits.setdefault(epoch, set()).add(what)

    def _has(self, epoch: int, *what: int | str) -> None:
        """An attempt has something that it waited for: with the last of it, it goes on."""
        awaits = self._awaits.get(epoch)
        if awaits is None:
            return
        has_tool = _TOOL in what and _TOOL in awaits
        awaits.difference_update(what)
        if has_tool:
            self._wait(self._running[epoch], "resume")
        if awaits:
            return
        del self._awaits[epoch]
        if epoch in self._done:
            self._later(0.001 * self._noise.next(), self._finish, self._running[epoch], self._done.pop(epoch))

    def _wait(self, request: wire.Request, act: str) -> None:
        """Lend the slot of what runs out, take it back, or ask its caller."""
        request_id, epoch = request.request_id, request.epoch
        if epoch not in self._running:
            return
        if act == "call":
            self.up.send(wire.ToolCall(request_id=request_id, epoch=epoch, name="tool", number=1))
            self._await(epoch, _TOOL)
            if epoch in self._awaits and epoch not in self._paused:
                self._wait(request, "pause")
        elif act == "pause":
            self._paused.add(epoch)
            self.up.send(wire.Pause(request_id=request_id, epoch=epoch))
            self._start_next()
        elif _TOOL not in self._awaits.get(epoch, ()):
            self._paused.discard(epoch)
            self.up.send(wire.Resume(request_id=request_id, epoch=epoch))

    def _progress(self, request: wire.Request) -> None:
        """Say something; where there is room for no more, wait until that is read."""
        if request.epoch in self._running:
            self.up.send(wire.Event(request_id=request.request_id, epoch=request.epoch, kind="step", sequence=1))
            if request.event_window:
                self._await(request.epoch, _CREDIT)

    def _finish(self, request: wire.Request, ending: str) -> None:
        if request.epoch not in self._running:
            return
        if ending == "crash":
            self.die(Signalled(SIGSEGV))
            return
        if request.epoch in self._awaits and ending != "cancelled":
            self._done[request.epoch] = ending
            return
        self._awaits.pop(request.epoch, None)
        self._done.pop(request.epoch, None)
        del self._running[request.epoch], self._began[request.epoch]
        self._paused.discard(request.epoch)
        if ending == "error":
            self._reply(request, wire.ERROR, _FAILED)
        elif ending == "cancelled":
            self._reply(request, wire.ERROR, _CANCELLED)
        else:
            self._reply(request, wire.OK, b"%d" % request.epoch)
        if ending == "twice":
            self._reply(request, wire.OK, b"again")
        if ending == "last words":
            self.die(Exited(3))
        elif self._stopping and not self._running:
            self.die(Exited(0))
        else:
            self._start_next()

    def _reply(self, request: wire.Request, status: int, payload: bytes) -> None:
        run_ms = self._world.works[request.request_id].run_s * 1000.0
        reply = wire.Reply(
            request_id=request.request_id, epoch=request.epoch, status=status, payload=payload, run_ms=run_ms
        )
        self.up.send(self.visits.leave(request, reply) if request.session else reply)

    def _recall(self, recall: wire.Recall) -> None:
        request = self._waiting.pop(recall.epoch, None)
        kind = wire.Started if request is None else wire.Recalled
        self.up.send(kind(request_id=recall.request_id, epoch=recall.epoch))

    def _cancel(self, message: wire.Cancel) -> None:
        request = self._waiting.pop(message.epoch, None)
        if request is not None:
            self._reply(request, wire.ERROR, _CANCELLED)
            return
        request = self._running.get(message.epoch)
        if request is not None and self._world.works[request.request_id].ending not in ("deaf", "late"):
            self._later(0.004 * self._noise.next(), self._finish, request, "cancelled")
        else:
            self._alone.add(message.epoch)
            self._has(message.epoch, _TOOL, _CREDIT)

    def _take_credit(self, message: wire.Credit) -> None:
        if message.events == wire.UNREAD_EVENTS:
            self._alone.add(message.epoch)
        self._has(message.epoch, _CREDIT)

    def _stop(self) -> None:
        self._stopping = True
        for request in self._waiting.values():
            self.up.send(wire.Recalled(request_id=request.request_id, epoch=request.epoch))
        self._waiting.clear()
        if not self._running:
            self.die(Exited(0))
