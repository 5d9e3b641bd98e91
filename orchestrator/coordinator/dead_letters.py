"""The control operations about dead letters: requests in quarantine, for workers died of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from bridge.protocol.codec import unpack_outcomes
from bridge.protocol.errors import INVALID_REQUEST, BridgeError, decode_error, shown
from bridge.protocol.messages import ERROR, OK, ROWS, Reply, Request
from bridge.protocol.values import decode_value, encode_value, split_values
from pools.core.events import DropLetter, PardonLetter, ReturnLetter
from pools.core.fleet import Fleet

# What is read to show it, at most: the thread that does it serves everybody.
_SHOWN_BYTES: Final = 64 * 1024

Operation = Callable[[dict[str, Any], float], Any]


class DeadLetters:
    """Answers `dspool.dead_letter…`. All of them raise BridgeError, NOT_FOUND for an id that no letter has."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._pardoned: dict[int, ReturnLetter] = {}  # by the id of the request that runs it once more
        self.operations: dict[str, Operation] = {
            "dead_letters": self._rows,
            "dead_letter": self._show,
            "dead_letter_drop": self._drop,
        }

    def _rows(self, args: dict[str, Any], now: float) -> list[dict[str, Any]]:
        return self._fleet.dead_letters(now)

    def _show(self, args: dict[str, Any], now: float) -> dict[str, Any]:
        """Return the row and `args`: the arguments, of each row if there are several; None if they cannot be shown."""
        row, message = self._fleet.dead_letter(_letter_id(args), now)
        return {**row, "rows": message.rows, "lm": message.lm or None, "args": _arguments(message)}

    def _drop(self, args: dict[str, Any], now: float) -> bool:
        self._fleet.handle(DropLetter(_letter_id(args)), now)
        return True

    def requeue(self, args: dict[str, Any], own_id: int, now: float) -> Request:
        """Take a request out of quarantine; return it as it is to be asked once more, with `own_id`.

        Its principal is whose letter it will be if workers die of it again. A call of a session runs outside of it.
        """
        letter_id = _letter_id(args)
        row, message = self._fleet.dead_letter(letter_id, now)
        self._fleet.handle(PardonLetter(letter_id), now)
        principal = row["principal"]
        self._pardoned[own_id] = ReturnLetter(message, row["pool"], principal, row["requests"])
        return replace(
            message, request_id=own_id, principal=principal, idempotency_key="", flags=0, event_window=0,
            parent_request_id=0, depth=0, session="", in_session=None,
        )  # fmt: skip

    def ended(self, reply: Reply, now: float) -> Reply:
        """Take the outcome of a requeued request; return the answer to who requeued it.

        A request that no worker was given (it was refused, shed, out of time in the queue) is in quarantine again.
        """
        back = self._pardoned.pop(reply.request_id)
        if reply.status == ERROR and not reply.worker:
            self._fleet.handle(back, now)
        return _outcome(reply)


def _outcome(reply: Reply) -> Reply:
    """Return how a requeued request ended as the answer to one question.

    Of a request of several rows that is a list of `{"value": …}` and `{"error": …}`.
    """
    if reply.status != ROWS:
        return reply
    rows: list[dict[str, Any]] = []
    for status, payload in unpack_outcomes(reply.payload or b""):
        if status == OK:
            rows.append({"value": decode_value(payload)})
        else:
            rows.append({"error": decode_error(payload).message if payload else "it did not run"})
    return replace(reply, status=OK, payload=encode_value(rows))


def _arguments(message: Request) -> Any:
    payload = message.payload or b""
    if len(payload) > _SHOWN_BYTES:
        return None
    try:
        if message.rows == 1:
            return decode_value(payload)
        return [decode_value(row) for row in split_values(payload, message.rows)]
    except BridgeError:
        return None


def _letter_id(args: dict[str, Any]) -> str:
    letter_id = args.get("id")
    if not isinstance(letter_id, str):
        text = f"id: {shown(letter_id)} is no dead letter's id"
        raise BridgeError(INVALID_REQUEST, text, details={"path": "id"})
    return letter_id
