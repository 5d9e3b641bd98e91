"""A client process that sends distinct echoes and compares every answer: `python -m tests.support.echo_client`.

Arguments: endpoint, the number of this client, how many echoes, how many at most before the oldest is read (0: all are
sent before the first is read). It says "ready", waits for a line, works, and says what it found, as JSON lines.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, deque
from typing import Any

from orchestrator import Client, errors
from orchestrator.client.future import Future

ANSWER_S = 60.0


def row(client: int, number: int) -> dict[str, Any]:
    """Return what one client sends with one number, and nobody else does."""
    return {"client": client, "number": number, "text": f"{client}:{number:0100d}"}


class Work:
    """What one client has sent and not read, and what it found."""

    def __init__(self, client: Client, name: int) -> None:
        self._client, self._name = client, name
        self._sent: deque[tuple[int, Future]] = deque()
        self.own = self.foreign = 0
        self.errors: Counter[str] = Counter()

    def send(self, number: int) -> None:
        """Send one echo."""
        self._sent.append((number, self._client.submit("echo", row(self._name, number))))

    def read(self, left: int) -> None:
        """Read the oldest answers until `left` are unread."""
        while len(self._sent) > left:
            number, future = self._sent.popleft()
            try:
                found = future.result(ANSWER_S)
            except errors.DspoolError as error:
                self.errors[error.code] += 1
                continue
            if found == row(self._name, number):
                self.own += 1
            else:
                self.foreign += 1


def main() -> None:
    endpoint, name, count, window = sys.argv[1], *map(int, sys.argv[2:5])
    with Client(endpoint) as client:
        work = Work(client, name)
        print(json.dumps("ready"), flush=True)
        sys.stdin.readline()
        for number in range(count):
            work.send(number)
            if window:
                work.read(window - 1)
        work.read(0)
    print(json.dumps({"own": work.own, "foreign": work.foreign, "errors": work.errors}), flush=True)


if __name__ == "__main__":
    main()
