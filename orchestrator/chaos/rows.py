"""What one thread of a client's process asks for: rows, many at a time, by `map`."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from orchestrator.chaos.history import OK, Call, Outcome, Recorder
from orchestrator.errors import DspoolError, WorkerLost

if TYPE_CHECKING:
    from orchestrator.client.client import Client

# Together with the requests of the other thread these fit into what a client may have under way.
_WINDOW: Final = 16
_MOST_ROWS: Final = 100
# Between two maps: most requests are the other thread's.
_PAUSE_S: Final = 0.05
_DEADLINE_S: Final = 4.0
# A map that waits for room, at most its deadline, hands out nothing meanwhile.
_TOLD_S: Final = 2 * _DEADLINE_S
_IDEMPOTENT, _ECHO = 0.3, 0.2
_PRIORITIES: Final = ("high", "normal", "low")


def outcome(error: BaseException | None, answer: Any, executed: str = "") -> Outcome:
    """Return how a request has ended now. executed: where the error does not say it."""
    code = OK if error is None else error.code if isinstance(error, DspoolError) else type(error).__name__
    if isinstance(error, WorkerLost):
        executed = error.executed
    return Outcome(code, time.monotonic(), executed, answer)


class Rows:
    """One map after the other. args: the arguments of a call."""

    def __init__(self, name: str, seed: int, recorder: Recorder, args: Callable[[Call], Any]) -> None:
        self._name = name
        self._rng = random.Random(f"rows {seed} {name}")
        self._recorder = recorder
        self._args = args
        self._sent = 0

    def run(self, client: Client, goes_on: Callable[[], bool]) -> None:
        """Map while it goes on; all rows are settled when this returns."""
        while goes_on():
            self._map(client, goes_on)
            time.sleep(_PAUSE_S)

    def _map(self, client: Client, goes_on: Callable[[], bool]) -> None:
        rng = self._rng
        has_effect, idempotent = rng.random() >= _ECHO, rng.random() < _IDEMPOTENT
        priority, count = rng.choice(_PRIORITIES), rng.randint(1, _MOST_ROWS)
        pulled: deque[Call] = deque()

        def rows() -> Iterator[Any]:
            for _ in range(count):
                if not goes_on():
                    return
                self._sent += 1
                call_id = f"{self._name}-row-{self._sent}"
                call = Call(call_id, self._name, call_id, time.monotonic(), _TOLD_S, idempotent, has_effect)
                self._recorder.sent(call)
                pulled.append(call)
                yield self._args(call)

        operation = "fault.effect" if has_effect else "echo"
        try:
            answers = client.map(
                operation, rows(), ordered=True, on_error="yield", window=_WINDOW, deadline_s=_DEADLINE_S,
                priority=priority, idempotent=idempotent,
            )  # fmt: skip
            for answer in answers:
                self._settle(pulled.popleft(), answer)
        except DspoolError as error:  # the connection is over
            for call in pulled:
                self._settle(call, error)

    def _settle(self, call: Call, answer: Any) -> None:
        failed = isinstance(answer, DspoolError)
        self._recorder.settled(call.call_id, outcome(answer if failed else None, None if failed else answer))
