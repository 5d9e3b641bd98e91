"""The part of a connection that cancels requests, and remembers what the coordinator said to that."""

from __future__ import annotations

from abc import abstractmethod

from bridge.protocol.messages import Cancel, Request
from orchestrator.client.future import CancelOutcome, Future, Ticket, final_outcome
from orchestrator.client.leading import Leading
from orchestrator.client.room import Room
from orchestrator.client.shield import shield
from orchestrator.errors import Cancelled, DspoolError


class Cancelling(Leading):
    """Cancels futures, and requests by their ids."""

    _futures: dict[int, Future]
    _tickets: dict[int, Ticket]
    _room: Room

    @abstractmethod
    def _fail(self, request_id: int, error: DspoolError, callbacks: list[Future]) -> None:
        """End a request with an error of this side."""

    @abstractmethod
    def _ending(self) -> DspoolError:
        """Return what the connection has ended with, a fresh one each time."""

    def cancel(self, future: Future, force: bool = False) -> CancelOutcome:
        """Cancel a request; see Future.cancel."""
        callbacks: list[Future] = []
        with shield.held(), self.lock:
            if future.done():
                return final_outcome(future.ticket) if future.ticket is not None else CancelOutcome("finished", "none")
            self._check_owner()
            for place, message in enumerate(self._out):
                if type(message) is Request and message.request_id == future.request_id:
                    del self._out[place]
                    future.ticket = Ticket(future.request_id, future)
                    future.ticket.answer = CancelOutcome("queued", "dequeued")
                    self._fail(future.request_id, Cancelled("cancelled before it was sent"), callbacks)
                    self._call_back(callbacks)
                    self._room.offer()
                    return future.ticket.answer
            return self._ask(future.request_id, future, force)

    def cancel_id(self, request_id: int, force: bool = False) -> CancelOutcome:
        """Cancel a request of this connection by its id."""
        self._check_owner()
        with shield.held(), self.lock:
            if self._ended is not None:
                raise self._ending()
            future = self._futures.get(request_id)
            return self._ask(request_id, None, force) if future is None else self.cancel(future, force)

    def _ask(self, request_id: int, future: Future | None, force: bool) -> CancelOutcome:
        ticket = self._tickets.get(request_id)
        if ticket is None:
            ticket = self._tickets[request_id] = Ticket(request_id, future)
            if future is not None:
                future.ticket = ticket
        elif ticket.answer is not None:
            return ticket.answer
        if force or not ticket.asked:
            ticket.asked = True
            ticket.force = ticket.force or force
            self._out.append(Cancel(request_id=request_id, force=force))
            self._push(alone=True)
            if self._leader is None:
                self._io.submitted()
        return CancelOutcome("running", "asked", ticket, self)

    def _answer_ticket(self, request_id: int, answer: CancelOutcome) -> None:
        ticket = self._tickets.get(request_id)
        if ticket is None:
            return
        ticket.answer = answer
        if answer.how != "asked":
            del self._tickets[request_id]
        for parked in ticket.waiters:
            parked.wake()

    def wait_ticket(self, ticket: Ticket, until: float | None) -> bool:
        """Wait until a cancellation's outcome is known."""
        lists = [ticket.waiters] if ticket.future is None else [ticket.waiters, ticket.future.waiters]
        return self._drive(ticket.settled, lists, until)
