"""Sessions, as the program that serves one sees it: what it remembers from call to call, and what was said before.

    from bridge.sessions import current_session

    class Counter(dspy.Module):
        def forward(self, question):
            session = current_session()
            if session is not None:
                session.state["asked"] = session.state.get("asked", 0) + 1
            ...

A caller names the session: `client.execute("counter", {...}, session="user-42")`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from bridge.protocol.kept import read_state, read_turn, write_state
from bridge.worker.call import current_call


class Session:
    """The session that a call is in. For the time of that call; thread-safe but for what is in `state` itself.

    id: as the caller named it. local: objects of this worker that are no state: what is kept there for the next call
    is gone when that runs in another worker.
    """

    def __init__(self, name: str, state: bytes, turns: Sequence[bytes], local: dict[Any, Any]) -> None:
        self.id = name
        self.local = local
        self._kept = state
        self._kept_turns = turns
        self._lock = threading.Lock()
        self._state: dict[str, Any] | None = None
        self._history: list[dict[str, Any]] | None = None

    @property
    def state(self) -> dict[str, Any]:
        """What the session remembers: texts to values that can travel. Changes are kept if the call succeeds."""
        with self._lock:
            if self._state is None:
                self._state = read_state(self._kept)
            return self._state

    @property
    def history(self) -> list[dict[str, Any]]:
        """The calls before this one, the oldest first: operation, inputs, outputs, ok, error, at, run_ms, worker."""
        with self._lock:
            if self._history is None:
                self._history = [read_turn(turn) for turn in self._kept_turns]
            return self._history

    def changed(self, nesting: int, max_bytes: int) -> bytes | None:
        """Return the state as it is to be kept, None if that is as it was.

        Raises BridgeError: INVALID_REQUEST for what cannot travel, TOO_LARGE above `max_bytes`.
        """
        with self._lock:
            state = self._state
        if state is None:
            return None
        data = write_state(state, nesting, max_bytes)
        return None if data == self._kept else data

    def __repr__(self) -> str:
        """Name it."""
        return f"<Session {self.id!r}>"


def current_session() -> Session | None:
    """Return the session of the call that the calling thread or task works for, None if it is in none.

    A `@batched` function serves many callers at once: it is in none.
    """
    call = current_call.get()
    return None if call is None or call.visit is None else call.visit.session
