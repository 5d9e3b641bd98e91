"""A simulated client: names its requests, sends, cancels, leaves, and keeps what it has read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bridge.protocol import messages as wire
from tests.sim.asks import PROGRAM, Ask
from tests.sim.ledger import Broken, label
from tests.sim.network import Link
from tests.sim.noise import Noise
from tests.sim.work import Work

if TYPE_CHECKING:
    from tests.sim.world import World


# One request in so many says how deep it is nested, which is not for it to say.
_LIES_EVERY: Final = 5
_LIE: Final = 7
# One tool in so many asks for something itself.
_TOOLS_ASK_EVERY: Final = 6
# What a program is called by, one request after the other.
_NAMES: Final = (*(PROGRAM,) * 5, f"{PROGRAM}@live", f"{PROGRAM}@canary", f"{PROGRAM}@2")
_PRINCIPALS: Final = ("ann", "ann", "bob", "eve")


class Client:
    """One connection. principal: whom it speaks for. `answers`: what it has read, by request id.

    name: whose noise its links have. worker_id: of the worker whose programs it serves, "" = none's.
    """

    def __init__(self, world: World, number: int, *, name: str = "", principal: str = "", worker_id: str = "") -> None:
        self._world = world
        self.number = number
        self.principal = principal or _PRINCIPALS[number % len(_PRINCIPALS)]
        self.worker_id = worker_id
        self.peer = b"client %d" % number
        noise = Noise(world.seed, name or f"client {number}")
        self.up = Link(world.clock, noise, self._arrived)
        self.down = Link(world.clock, noise, self._read)
        self.gone = False
        self.asked: list[int] = []
        self._tools: dict[int, wire.ToolCall] = {}  # those that wait for what they asked for, by its id
        self.answers: dict[int, wire.Message] = {}
        self._last_id = wire.request_id_base(number)
        self.up.send(wire.Hello())

    def _arrived(self, message: Any) -> None:
        self._world.shell.heard_client(self.peer, message)

    def submit(self, ask: Ask, work: Work, parent_id: int = 0) -> int:
        """Send a request under the next id, which is returned. parent_id: of the request that it is nested in."""
        self._last_id += 1
        self.asked.append(self._last_id)
        self._world.works[self._last_id] = work
        flags = (wire.FLAG_EVENTS if work.events else 0) | (wire.FLAG_IDEMPOTENT if ask.idempotent else 0)
        self.up.send(
            wire.Request(
                request_id=self._last_id, operation=self._name(ask), pool=ask.pool, rows=ask.rows,
                deadline_ms=ask.deadline_ms, priority=ask.priority, flags=flags, idempotency_key=ask.key,
                payload=ask.payload or b"%d" % self._last_id, parent_request_id=parent_id,
                depth=0 if self._last_id % _LIES_EVERY else _LIE, event_window=work.events and self._last_id % 2,
                session=ask.session, in_session=self._meant(ask),
            )
        )  # fmt: skip
        return self._last_id

    def _name(self, ask: Ask) -> str:
        return _NAMES[self._last_id % len(_NAMES)] if ask.operation == PROGRAM else ask.operation

    def _meant(self, ask: Ask) -> wire.InSession | None:
        if ask.meant == "elsewhere":
            return wire.InSession(1, 1)
        opened = self._world.opened.get((self.principal, ask.session)) if ask.meant == "opened" else None
        return None if opened is None else wire.InSession(opened)

    def submit_as(self, request_id: int) -> None:
        """Send a request under an id that is not the next one."""
        self._world.works.setdefault(request_id, Work())
        self.up.send(wire.Request(request_id=request_id, operation="fast", payload=b"%d" % request_id))

    def cancel(self, which: int, *, force: bool) -> None:
        """Cancel one of the latest requests: 0 is the last."""
        if which < len(self.asked):
            self.up.send(wire.Cancel(request_id=self.asked[-1 - which], force=force))

    def leave(self, how: str, notice_s: float) -> None:
        """Say Bye, die, or be muted. Of one that dies, what it sent is still read; of one that is muted, nothing."""
        if self.gone:
            return
        self.gone = True
        if how == "bye":
            self.up.send(wire.Bye())
            return
        if how == "muted":
            self.up.cut = True
        self.down.cut = True
        self._world.clock.after(notice_s, self._world.shell.lost_client, self.peer)

    def _read(self, message: wire.Message) -> None:
        if type(message) is wire.ToolCall and not self.gone:
            if message.epoch % _TOOLS_ASK_EVERY:
                self._answer(message)
            else:
                self._tools[self.submit(Ask("slow"), Work(), message.request_id)] = message
        if type(message) is wire.Event and not self.gone:
            self.up.send(wire.Credit(request_id=message.request_id, events=1))
        if type(message) is not wire.Reply:
            return
        if message.request_id in self.answers:
            raise Broken("one outcome", f"client {self.number} read two for request {label(message.request_id)}")
        self.answers[message.request_id] = message
        call = self._tools.pop(message.request_id, None)
        if call is not None and not self.gone:
            self._answer(call)

    def _answer(self, call: wire.ToolCall) -> None:
        self.up.send(wire.ToolReply(request_id=call.request_id, epoch=call.epoch, number=call.number))
