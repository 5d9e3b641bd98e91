"""A client's process: it asks for work without pause and writes down what becomes of it, until its stdin ends.

`python -m orchestrator.chaos.load FOLDER NAME SEED`. It finds the coordinator by a file that holds the endpoint, and
connects again when its coordinator is gone.
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bridge import faultpoints
from orchestrator.chaos.history import Call, Recorder
from orchestrator.chaos.rows import Rows, outcome
from orchestrator.discovery import connect
from orchestrator.errors import Cancelled, CircuitOpen, DspoolError, Overloaded, Unavailable

if TYPE_CHECKING:
    from orchestrator.client.client import Client
    from orchestrator.client.future import Future

ENDPOINT_FILE: Final = "endpoint"
EFFECTS_FILE: Final = "effects"
HISTORY_SUFFIX: Final = ".history"
# How many requests a client has under way, so that a kill finds some.
_WINDOW: Final = 32
# The share of requests that may run again, that share a key with a few others, that write nothing, that are in a hurry.
_IDEMPOTENT, _KEYED, _ECHO, _HASTY = 0.3, 0.1, 0.2, 0.1
_SHARING: Final = 4
# After so many requests out of all, one of the last few is cancelled.
_CANCELLED, _LATELY = 0.05, 8
_DEADLINES_S: Final = (1.0, 4.0)
_HASTE_S: Final = (0.005, 0.3)
_LONG, _LONG_S = 0.2, 0.02  # so many take so long at most, the others nearly nothing
_PRIORITIES: Final = ("high", "normal", "normal", "low")
_PRINCIPALS: Final = 3
_CONNECT_S: Final = 30.0
_POLL_S: Final = 0.02
# Who is refused asks for nothing meanwhile.
_REFUSED_S: Final = 0.05


class Load:
    """What one client asks for."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        self._folder = folder
        self._name = name
        self._rng = random.Random(f"load {seed} {name}")
        self._recorder = Recorder(folder / f"{name}{HISTORY_SUFFIX}")
        self._room = threading.Semaphore(_WINDOW)
        self._sent = 0
        self._key, self._key_uses = "", 0
        self._ending = threading.Event()
        self._patient_until_s = 0.0
        self._lately: deque[Future] = deque(maxlen=_LATELY)
        self._rows = Rows(name, seed, self._recorder, self._args)

    def run(self) -> None:
        """Ask until the end is asked for; then wait for what is unanswered."""
        threading.Thread(target=self._await_end, name="end", daemon=True).start()
        while not self._ending.is_set():
            client = self._connect()
            if client is None:
                break
            with client:
                self._ask(client)
        self._recorder.close()

    def _await_end(self) -> None:
        sys.stdin.read()
        self._ending.set()

    def _connect(self) -> Client | None:
        """Connect to the coordinator there is, or will be; None when the end is asked for first."""
        until = time.monotonic() + _CONNECT_S
        principal = f"p{self._rng.randrange(_PRINCIPALS)}"
        while not self._ending.is_set():
            self._key_uses = 0  # a coordinator takes the keys that it knows with it
            try:
                return connect((self._folder / ENDPOINT_FILE).read_text(), principal=principal)
            except Unavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(_POLL_S)
        return None

    def _ask(self, client: Client) -> None:
        """Keep requests under way until the end is asked for or the coordinator is gone."""

        def goes_on() -> bool:
            return not self._ending.is_set() and not client.connection.ended

        mapping = threading.Thread(target=self._rows.run, args=(client, goes_on), name="map")
        mapping.start()
        while goes_on():
            if time.monotonic() < self._patient_until_s:
                time.sleep(_POLL_S)
            elif self._room.acquire(timeout=_POLL_S):
                self._send(client)
        for _ in range(_WINDOW):
            self._room.acquire()
        self._room.release(_WINDOW)
        mapping.join()

    def _send(self, client: Client) -> None:
        call, options = self._next()
        self._recorder.sent(call)
        try:
            future = client.submit(
                "fault.effect" if call.has_effect else "echo", self._args(call), deadline_s=call.deadline_s, **options
            )
        except DspoolError as error:
            self._settle(call, error, None)
            return
        future.add_done_callback(lambda _: self._settled(call, future))
        self._lately.append(future)
        if self._rng.random() < _CANCELLED:
            self._rng.choice(self._lately).cancel()

    def _args(self, call: Call) -> Any:
        """Return the arguments of a request: the same for all that share a token."""
        if not call.has_effect:
            return call.token
        rng = random.Random(call.token)
        seconds = rng.uniform(0.0, _LONG_S) if rng.random() < _LONG else 0.0
        return {"path": str(self._folder / EFFECTS_FILE), "token": call.token, "seconds": seconds}

    def _next(self) -> tuple[Call, dict[str, Any]]:
        """Return the next request, and how it is to be sent."""
        rng = self._rng
        self._sent += 1
        call_id = token = f"{self._name}-{self._sent}"
        options: dict[str, Any] = {"priority": rng.choice(_PRIORITIES)}
        has_effect, idempotent = rng.random() >= _ECHO, rng.random() < _IDEMPOTENT
        if has_effect and idempotent:
            options["idempotent"] = True
            if rng.random() < _KEYED / _IDEMPOTENT:
                if self._key_uses % _SHARING == 0:
                    self._key = f"{call_id}-key"
                self._key_uses += 1
                token = options["idempotency_key"] = self._key
        deadline_s = rng.uniform(*(_HASTE_S if rng.random() < _HASTY else _DEADLINES_S))
        return Call(call_id, self._name, token, time.monotonic(), deadline_s, idempotent, has_effect), options

    def _settled(self, call: Call, future: Future) -> None:
        error = future.exception(0)
        answer = future.ticket.answer if future.ticket is not None else None
        never_ran = isinstance(error, Cancelled) and answer is not None and answer.how == "dequeued"
        self._settle(call, error, future.result(0) if error is None else None, "no" if never_ran else "")

    def _settle(self, call: Call, error: BaseException | None, answer: Any, executed: str = "") -> None:
        if isinstance(error, Overloaded | CircuitOpen | Unavailable):
            self._patient_until_s = time.monotonic() + _REFUSED_S
        self._recorder.settled(call.call_id, outcome(error, answer, executed))
        self._room.release()


def _fail(failure: threading.ExceptHookArgs) -> None:
    """End the process where a thread fails, as one does whose main thread fails."""
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


def main() -> None:
    """Run one client."""
    folder, name, seed = sys.argv[1:]
    threading.excepthook = _fail
    faulthandler.enable()  # who does not end is told to abort, and says where it stands
    faultpoints.arm_by(os.environ)
    Load(Path(folder), name, int(seed)).run()


if __name__ == "__main__":
    main()
