"""Tools of the caller's own process, seen from the worker: a call travels there and its answer back."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Mapping
from typing import Any, Final

from bridge.protocol.errors import CANCELLED, INVALID_REQUEST, BridgeError, decode_error
from bridge.protocol.messages import ERROR, ToolCall, ToolReply
from bridge.protocol.values import decode_value, encode_value
from bridge.worker.call import Call, CallStopped, current_call
from bridge.worker.waits import await_

_LOCK: Final = threading.Lock()

Answer = concurrent.futures.Future[ToolReply]


class ToolFailed(Exception):
    """What a tool of the caller raised. Its class is made to read as the one that was raised there."""


class Exchange:
    """The tool calls of one attempt, each waiting for its answer. It is its call's `on_tool_reply`."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._number = 0
        self._waiting: dict[int, Answer] = {}

    @classmethod
    def of(cls, call: Call) -> Exchange:
        """Return the exchange of a call."""
        with _LOCK:
            found = call.on_tool_reply
            if not isinstance(found, Exchange):
                found = call.on_tool_reply = cls(call)
            return found

    def __call__(self, reply: ToolReply) -> None:
        """Take an answer, on the io thread."""
        with self._lock:
            answer = self._waiting.pop(reply.number, None)
        if answer is not None and answer.set_running_or_notify_cancel():
            answer.set_result(reply)

    async def ask(self, name: str, payload: bytes) -> ToolReply:
        """Have the caller's tool called; wait for the answer. The slot is lent: the tool may ask for work of its own.

        Raises CallStopped when the call must stop first.
        """
        call = self._call
        async with call.apaused():
            with self._lock:
                self._number = number = self._number + 1
                answer = self._waiting[number] = Answer()
            try:
                remaining_s = call.remaining_s()
                call.post(
                    ToolCall(
                        request_id=call.request_id, payload=payload, name=name, epoch=call.epoch, number=number,
                        deadline_ms=None if remaining_s is None else remaining_s * 1e3,
                    )
                )  # fmt: skip
                return await await_(call, answer)
            finally:
                with self._lock:
                    self._waiting.pop(number, None)


async def call_tool(name: str, arguments: Mapping[str, Any], message_bytes: int) -> Any:
    """Call a tool of whoever asked for what runs now. message_bytes: what a message may have.

    Raises what the tool raised, as a ToolFailed of the same name and message; BridgeError for arguments that cannot
    travel; CallStopped when the request ends first.
    """
    call = current_call.get()
    if call is None:
        text = f"{name} is a tool of the caller's: it can be called on the threads of the caller's request alone"
        raise BridgeError(INVALID_REQUEST, text)
    reply = await Exchange.of(call).ask(name, encode_value(dict(arguments), max_bytes=message_bytes))
    call.step()
    payload = reply.payload or b""
    if reply.status == ERROR:
        raise _raised(decode_error(payload))
    return decode_value(payload)


def _raised(error: BridgeError) -> BaseException:
    """Return what to raise: to the model it reads as what the tool raised there."""
    if error.code == CANCELLED:  # of the call: who had the tool is gone
        return CallStopped(error)
    module, _, name = str(error.details.get("type") or error.code).rpartition(".")
    kind = type(name, (ToolFailed,), {"__module__": module or "builtins"})
    return kind(error.message)  # type: ignore[no-any-return]
