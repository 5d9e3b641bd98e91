"""The sessions that live in this worker: what their attempts find, and what these leave.

The coordinator has all of it too, as bytes, and one attempt of a session runs at a time. Each begins from what was
kept and works on a copy, so one that fails has changed nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from bridge.protocol import large
from bridge.protocol.errors import INVALID_REQUEST, TOO_LARGE, UNAVAILABLE, BridgeError, decode_error, encode_error
from bridge.protocol.messages import ERROR, OK, InSession, Reply, Request, SessionChange
from bridge.protocol.names import bare
from bridge.protocol.sessions import cut_tail, pack_change, unpack_snapshot
from bridge.protocol.values import MAX_NESTING, decode_value, encode_value
from bridge.protocol.worker_spec import WorkerSpec
from bridge.sessions import Session
from bridge.wallclock import unix_now
from bridge.worker import arguments
from bridge.worker.call import Call, current_call
from bridge.worker.raised import internal_error

SET: Final = "session.set"
DELETE: Final = "session.delete"
# What they do is no turn of the conversation.
_SILENT: Final = frozenset({SET, DELETE})
# Of what a session or a message may hold, the part that the inputs of one turn may take, and its outputs.
_TURN_PART: Final = 8

_encode: Final = msgspec.msgpack.Encoder().encode
_NIL: Final = _encode(None)


class Live:
    """A session that lives here. seq: changes so far. state, turns: as they are kept. local: objects of programs."""

    __slots__ = ("local", "seq", "state", "turns")

    def __init__(self, seq: int, state: bytes, turns: list[bytes]) -> None:
        self.seq = seq
        self.state = state
        self.turns = deque(turns)
        self.local: dict[Any, Any] = {}


class Visit:
    """One attempt in its session. payload: its arguments, encoded."""

    __slots__ = ("live", "operation", "payload", "session")

    def __init__(self, name: str, live: Live, operation: str, payload: bytes) -> None:
        self.live = live
        self.operation = operation
        self.payload = payload
        self.session = Session(name, live.state, tuple(live.turns), live.local)


class Sessions:
    """The sessions of one worker. Thread-safe. Keys are what the coordinator says: a session and its generation."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker_id = spec.worker_id
        self._nesting = spec.nesting
        self._message_bytes = spec.message_bytes
        self._max_bytes = spec.session_bytes
        self._max_turns = spec.session_turns
        self._part_bytes = min(spec.session_bytes, spec.message_bytes) // _TURN_PART
        self._lock = threading.Lock()
        self._live: dict[tuple[str, int], Live] = {}

    def __len__(self) -> int:
        """Return how many live here."""
        return len(self._live)

    def forget(self, key: str, generation: int) -> None:
        """A session has ended or lives elsewhere now. An attempt that runs in it keeps what it has."""
        with self._lock:
            self._live.pop((key, generation), None)

    def enter(self, request: Request, call: Call) -> Request:
        """Begin an attempt in its session, known as `call.visit`; return it as it is to be run.

        Raises BridgeError: UNAVAILABLE if the session is not here, INVALID_REQUEST for bytes that are none.
        """
        place = request.in_session or InSession()
        try:
            payload, tail = cut_tail(request.payload or b"", place.tail)
            live = self._found(request.session, place, tail)
        except ValueError as exc:
            raise BridgeError(INVALID_REQUEST, str(exc), details={"path": ""}) from None
        name = request.session.rpartition("\0")[2]
        call.visit = Visit(name, live, request.operation, payload)
        return replace(request, payload=payload)

    def _found(self, key: str, place: InSession, tail: bytes) -> Live:
        with self._lock:
            live = self._live.get((key, place.generation))
            if live is not None and live.seq == place.seq:
                return live
            if not place.snapshot:
                have = "nothing" if live is None else f"change {live.seq}"
                text = f"the session is not in {self._worker_id}: it has {have} of it, change {place.seq} is meant"
                raise BridgeError(UNAVAILABLE, text, retryable=True)
            state, turns = unpack_snapshot(tail) if tail else (b"", [])
            live = self._live[key, place.generation] = Live(place.seq, state, turns)
            return live

    def unchanged(self, request: Request, reply: Reply) -> Reply:
        """Return the reply to an attempt that has not begun, saying that its session is here if it is."""
        place = request.in_session
        if place is None:
            return reply
        with self._lock:
            live = self._live.get((request.session, place.generation))
        here = live is not None and live.seq == place.seq
        return replace(reply, session=SessionChange(place.seq)) if here else reply

    def answered(self, visit: Visit, reply: Reply) -> Reply:
        """Return the reply to an attempt with what it changed, which is kept here from now on.

        What it did to the state counts if it succeeded. A state that cannot be kept is its failure.
        """
        state = None
        if reply.status == OK:
            try:
                state = visit.session.changed(self._nesting, self._max_bytes)
            except BridgeError as error:
                reply = _failed(reply, error)
            except Exception as exc:  # noqa: BLE001 - a thread that it left behind changes it as it is written
                reply = _failed(reply, internal_error(exc))
        turn = None if visit.operation in _SILENT else self._turn(visit, reply)
        live = visit.live
        if state is None and turn is None:
            return replace(reply, session=SessionChange(live.seq))
        tail = pack_change(state, turn)
        if len(reply.payload or b"") + len(tail) > self._message_bytes:
            text = f"the result of {visit.operation} leaves no room for what it changed in its session"
            reply, state = _failed(reply, BridgeError(TOO_LARGE, text)), None
            turn = None if turn is None else self._turn(visit, reply)
            tail = pack_change(state, turn)
        self._keep(live, state, turn)
        return replace(reply, payload=(reply.payload or b"") + tail, session=SessionChange(live.seq, len(tail)))

    def _keep(self, live: Live, state: bytes | None, turn: bytes | None) -> None:
        live.seq += 1
        if state is not None:
            live.state = state
        if turn is not None:
            live.turns.append(turn)
        size = len(live.state) + sum(map(len, live.turns))
        while live.turns and (size > self._max_bytes or len(live.turns) > self._max_turns):
            size -= len(live.turns.popleft())

    # --- turns ----------------------------------------------------------------------------------------

    def _turn(self, visit: Visit, reply: Reply) -> bytes:
        """Return what was said in a call, an encoded mapping; large inputs or outputs are left out and named so.

        Arguments and results are there encoded, and so taken as they are.
        """
        is_ok = reply.status == OK
        inputs = self._told(visit.payload, is_known=is_ok)
        outputs = self._told(reply.payload or b"", is_known=True) if is_ok else _NIL
        omitted = [name for name, value in (("inputs", inputs), ("outputs", outputs)) if value is None]
        fields: dict[str, bytes] = {
            "operation": _encode(bare(visit.operation)),
            "inputs": inputs or _NIL,
            "outputs": outputs or _NIL,
            "ok": _encode(is_ok),
            "error": _NIL if is_ok else _encode(decode_error(reply.payload or b"").code),
            "at": _encode(unix_now()),
            "run_ms": _encode(reply.run_ms),
            "worker": _encode(self._worker_id),
        }
        if omitted:
            fields["omitted"] = _encode(omitted)
        parts = [bytes([0x80 | len(fields)])]  # the head of a mapping of less than 16
        for name, value in fields.items():
            parts += (_encode(name), value)
        return b"".join(parts)

    def _told(self, data: bytes, *, is_known: bool) -> bytes | None:
        """Return an encoded value as a part of a turn, None if it is too large. is_known: it has been read."""
        if len(data) > self._part_bytes:
            return None
        is_own_form = data[:1] == large.MARK
        if is_known and not is_own_form and self._nesting < MAX_NESTING:
            return data
        try:
            value = decode_value(data, nesting=MAX_NESTING - 1)
            return encode_value(value, nesting=MAX_NESTING - 1) if is_own_form else data
        except BridgeError:
            return None


def _failed(reply: Reply, error: BridgeError) -> Reply:
    return replace(reply, status=ERROR, payload=encode_error(error))


# --- operations -----------------------------------------------------------------------------------


def set_state(args: Any, call: Call) -> None:
    """Operation `session.set {values}`: put values into the state of the session. Raises BridgeError."""
    values = arguments.read(args, SET, required=("values",))["values"]
    if not isinstance(values, Mapping):
        raise arguments.invalid("values", f"values must be a mapping, got {arguments.shown(values)}")
    _session(call).state.update(values)


def delete_state(args: Any, call: Call) -> list[str]:
    """Operation `session.delete {keys}`: take keys out of the state of the session; return those that were there.

    keys: None = all. Raises BridgeError.
    """
    keys = arguments.read(args, DELETE, required=("keys",))["keys"]
    if keys is not None and not isinstance(keys, list):
        raise arguments.invalid("keys", f"keys must be a list or None, got {arguments.shown(keys)}")
    state = _session(call).state
    gone = [key for key in (list(state) if keys is None else keys) if isinstance(key, str) and key in state]
    for key in gone:
        del state[key]
    return gone


def _session(call: Call) -> Session:
    if call.visit is None:
        raise arguments.invalid("session", f"{call.operation} works on a session: name one")
    return call.visit.session


# --- conversations --------------------------------------------------------------------------------


def history(field: str) -> Any | None:
    """Return the conversation of the current call's session with its operation as a `dspy.History`.

    Of a DSPy module's operation: with the same signature. field: the input that takes it, which is in no message.
    None outside of a session.
    """
    call = current_call.get()
    if call is None or call.visit is None:
        return None
    import dspy  # type: ignore[import-untyped]

    visit = call.visit
    own, signature = bare(visit.operation), None
    if own.startswith("dspy."):
        signature = _signature(decode_value(visit.payload, nesting=MAX_NESTING))
    messages = []
    for turn in visit.session.history:
        inputs, outputs = turn.get("inputs"), turn.get("outputs")
        if not turn.get("ok") or turn.get("operation") != own or turn.get("omitted"):
            continue
        if signature is not None:
            if not isinstance(inputs, dict) or _signature(inputs) != signature:
                continue
            inputs = inputs["inputs"]
        inputs = {} if inputs is None else inputs
        if isinstance(inputs, Mapping) and isinstance(outputs, Mapping):
            messages.append({**{name: value for name, value in inputs.items() if name != field}, **outputs})
    return dspy.History(messages=messages)


def _signature(args: Any) -> Any | None:
    """Return the signature in the arguments of a DSPy module's operation, None where there is none."""
    return args["signature"] if isinstance(args, dict) and args.keys() >= {"signature", "inputs"} else None
