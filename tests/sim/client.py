"""A simulated client: names its requests, sends, cancels, leaves, and keeps what it has read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bridge.protocol import messages as wire
from tests.sim.asks import Ask
from tests.sim.ledger import Broken, label
from tests.sim.network import Link
from tests.sim.noise import Noise
from tests.sim.worker import Work

if TYPE_CHECKING:
    from tests.sim.world import World


_PRINCIPALS: Final = ("ann", "ann", "bob", "eve")


class Client:
    """One connection. principal: whom it speaks for. `answers`: what it has read, by request id."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.number = number
        self.principal = _PRINCIPALS[number % len(_PRINCIPALS)]
        self.peer = b"client %d" % number
        noise = Noise(world.seed, f"client {number}")
        self.up = Link(world.clock, noise, self._arrived)
        self.down = Link(world.clock, noise, self._read)
        self.gone = False
        self.asked: list[int] = []
        self.answers: dict[int, wire.Message] = {}
        self._last_id = wire.request_id_base(number)
        self.up.send(wire.Hello())

    def _arrived(self, message: Any) -> None:
        self._world.shell.heard_client(self.peer, message)

    def submit(self, ask: Ask, work: Work) -> None:
        """Send a request under the next id."""
        self._last_id += 1
        self.asked.append(self._last_id)
        self._world.works[self._last_id] = work
        flags = (wire.FLAG_EVENTS if work.events else 0) | (wire.FLAG_IDEMPOTENT if ask.idempotent else 0)
        self.up.send(
            wire.Request(
                request_id=self._last_id, operation=ask.operation, pool=ask.pool, rows=ask.rows,
                deadline_ms=ask.deadline_ms, priority=ask.priority, flags=flags, idempotency_key=ask.key,
                payload=ask.payload or b"%d" % self._last_id,
            )
        )  # fmt: skip

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
            self.up.send(wire.ToolReply(request_id=message.request_id, epoch=message.epoch, number=message.number))
        if type(message) is not wire.Reply:
            return
        if message.request_id in self.answers:
            raise Broken("one outcome", f"client {self.number} read two for request {label(message.request_id)}")
        self.answers[message.request_id] = message
