"""What a simulated worker has of sessions: live copies, and what calls make of them."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from bridge.protocol import messages as wire
from bridge.protocol.sessions import cut_tail, pack_change, unpack_snapshot
from tests.sim.noise import Noise
from tests.sim.sessions import SET
from tests.sim.step import broken

# A call in so many leaves the state as it was.
_IDLE: float = 0.2


class Copy:
    """A session as a worker has it."""

    __slots__ = ("seq", "state")

    def __init__(self, seq: int, state: bytes) -> None:
        self.seq = seq
        self.state = state


class Visits:
    """The sessions of one process. begun: called with what a program finds as it begins (`Sessions.begun`)."""

    def __init__(self, worker_id: str, noise: Noise, begun: Callable[[wire.Request, int, bytes], None]) -> None:
        self._worker_id = worker_id
        self._noise = noise
        self._begun = begun
        self.copies: dict[tuple[str, int], Copy] = {}
        self._visits: dict[int, Copy] = {}  # by the epoch of an attempt that has begun

    def enter(self, request: wire.Request) -> None:
        """An attempt begins: with what is here, if that is what is meant, or with what it brings."""
        place = request.in_session
        if place is None:
            broken("calls go to their own session", f"{request.session!r} at {self._worker_id}: nothing is said of it")
        copy = self._here(request, place)
        if copy is None:
            if not place.snapshot:
                broken("who has no copy is sent one", f"{request.session!r} at {self._worker_id}, {place}")
            tail = cut_tail(request.payload or b"", place.tail)[1]
            state = unpack_snapshot(tail)[0] if tail else b""
            copy = self.copies[request.session, place.generation] = Copy(place.seq, state)
        self._visits[request.epoch] = copy
        self._begun(request, copy.seq, copy.state)

    def leave(self, request: wire.Request, reply: wire.Reply) -> wire.Reply:
        """Return the answer to an attempt, with what it made of its session. One that failed changes nothing there."""
        place = request.in_session
        copy = self._visits.pop(request.epoch, None)
        if copy is None:
            is_here = place is not None and self._here(request, place) is not None
            return replace(reply, session=wire.SessionChange(place.seq)) if place is not None and is_here else reply
        state = turn = None
        if reply.status == wire.OK and self._noise.next() >= _IDLE:
            state = b"%s %d" % (request.session.encode(), request.epoch)
            copy.state = state
        if not request.operation.startswith(SET):
            turn = b"turn %d" % request.epoch
        if state is None and turn is None:
            return replace(reply, session=wire.SessionChange(copy.seq))
        copy.seq += 1
        tail = pack_change(state, turn)
        return replace(
            reply, payload=(reply.payload or b"") + tail, session=wire.SessionChange(copy.seq, len(tail))
        )  # fmt: skip

    def forget(self, message: wire.SessionEnd) -> None:
        """A session has ended, or lives elsewhere now."""
        self.copies.pop((message.session, message.generation), None)

    def _here(self, request: wire.Request, place: wire.InSession) -> Copy | None:
        copy = self.copies.get((request.session, place.generation))
        return copy if copy is not None and copy.seq == place.seq else None
