"""The message types of the wire, version 1.

A message is a msgpack array `[version, type, request_id, payload, ...fields]`. Fields are only ever
appended: a reader ignores trailing fields it does not know and gives missing ones their defaults, so
versions N and N-1 interoperate. `payload` is opaque to the coordinator: bytes when it rides inside the
message, nil when it follows as a frame of its own (see `codec`).

The struct is both what travels and what the fleet core handles: it is the event.
"""

from __future__ import annotations

from typing import Final

import msgspec

PROTOCOL_VERSION: Final = 1

# Status of a Reply.
OK: Final = 0
ERROR: Final = 1
ROWS: Final = 2  # payload: one `[status, payload]` per argument row, see codec.pack_outcomes
NOT_RUN: Final = 4  # of the last outcomes in ROWS: the rows did not run, for what they return had no room any more

# Flags of a Request.
FLAG_EVENTS: Final = 1  # the caller wants the Event messages of this request
FLAG_IDEMPOTENT: Final = 2  # it may run again after its worker died

# Attempts that a Heartbeat tells of. A reader takes no larger array in a message (see codec).
BEAT_ATTEMPTS: Final = 64

# Priorities of a Request.
PRIORITY_HIGH: Final = 0
PRIORITY_NORMAL: Final = 1
PRIORITY_LOW: Final = 2

MAX_KEY_CHARS: Final = 200  # of an idempotency key
UNREAD_EVENTS: Final = 1 << 31  # as the events of a Credit: nobody reads them any more, so none are to be sent


class Message(msgspec.Struct, frozen=True, gc=False, array_like=True, kw_only=True):
    """What every message starts with. `type` is redefined by each kind and never reused."""

    version: int = PROTOCOL_VERSION
    type: int = 0
    request_id: int = 0
    payload: bytes | None = b""


# --- both directions, at the start ------------------------------------------------------------


class Hello(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """First message of a client or a worker. A worker proves itself with the token it was launched with.

    package_version: "" where it is not known. worker_id of a client: of the worker whose programs it serves, which it
    proves with another token that the worker was launched with; "" = it is nobody's.
    """

    type: int = 1
    package_version: str = ""
    run_id: str = ""
    pid: int = 0
    role: str = "client"  # client | worker
    principal: str = "default"
    token: bytes = b""
    worker_id: str = ""
    pool: str = ""
    incarnation: int = 0

    def __repr__(self) -> str:
        """Tell who says it, and not the token."""
        return f"<Hello of a {self.role}: pid {self.pid}, principal {self.principal!r}, worker {self.worker_id!r}>"


class Welcome(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """The coordinator's answer to a Hello it accepts.

    `client_no` is the upper part of every request id of this client (see `request_id_base`).
    `started_ticks` is the coordinator's start time in /proc/<pid>/stat units: with the pid it names
    one process for ever. A client holds requests back beyond `max_in_flight` unanswered rows in all, and beyond
    `window_rows` of one operation in one pool, so that one honest client does not fill a queue. In `shared_dir`, which
    it makes when it first needs it, it may have `shared_bytes` of payloads; "" = all payloads travel in frames.
    """

    type: int = 2
    package_version: str = ""
    run_id: str = ""
    pid: int = 0
    started_ticks: int = 0
    client_no: int = 0
    message_bytes: int = 0
    nesting: int = 0
    max_in_flight: int = 0
    window_rows: int = 0
    shared_dir: str = ""
    shared_bytes: int = 0


class Refused(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """The coordinator's answer to a Hello it does not accept. payload: an encoded error."""

    type: int = 5


# --- requests ---------------------------------------------------------------------------------


class InSession(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Where a session stands. A client fills in `generation` alone: of the session that it means, 0 = any.

    seq: changes so far. snapshot: the last `tail` bytes of the payload are what it holds (see `protocol.sessions`);
    else the worker has that since its last attempt.
    """

    generation: int = 0
    seq: int = 0
    snapshot: bool = False
    tail: int = 0


class SessionChange(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What an attempt made of its session: the last `tail` bytes of the payload, 0 = nothing (see `protocol.sessions`).

    seq: changes so far, this one included.
    """

    seq: int
    tail: int = 0


class Request(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """One call. client -> coordinator, and, with an epoch, coordinator -> worker (then it is an attempt).

    `deadline_ms` is what remains of the deadline when the message is sent; None = the pool's default.
    `rows` > 1: payload is the concatenation of that many encoded argument values, and the Reply has
    status ROWS. `event_window` > 0: the worker sends at most so many Event messages beyond those that Credit messages
    made room for, then the program waits; 0 = as many as it likes. `segment`: the client's shared segment of this
    request (see `bridge.shared_memory`), "" = none; `shared_bytes`: of its payload there, 0 = the payload is here.
    `session`: whose call this is, "" = no session's; `in_session`: where the session stands. `worker`: the one worker
    that is to run it, "" = any; only internal clients may say so.
    """

    type: int = 3
    operation: str
    pool: str = ""
    principal: str = ""
    session: str = ""
    priority: int = PRIORITY_NORMAL
    deadline_ms: float | None = None
    idempotency_key: str = ""
    epoch: int = 0
    lm: str = ""
    traceparent: str = ""
    parent_request_id: int = 0
    depth: int = 0
    rows: int = 1
    flags: int = 0
    event_window: int = 0
    segment: str = ""
    shared_bytes: int = 0
    in_session: InSession | None = None
    worker: str = ""


class Reply(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """The outcome of an attempt (worker -> coordinator) or of a request (coordinator -> client).

    Times are milliseconds. The worker fills status … cached; the coordinator adds the rest. `pressed`: the pool's
    queue is more than half full, so its clients send less at a time. `fallback_used`: it ran elsewhere than it was
    asked for, whose breaker was open or who had no workers. `shared_bytes`: of the payload, which is in the segment of
    the request, behind what was there; 0 = it is here. `session`: what the attempt changed in its session; not for the
    client.
    """

    type: int = 4
    status: int = OK
    epoch: int = 0
    run_ms: float = 0.0
    lm_calls: int = 0
    tokens: int = 0
    cost_usd: float | None = None
    cached: bool = False
    worker: str = ""
    pool: str = ""
    attempt: int = 0
    queue_ms: float = 0.0
    total_ms: float = 0.0
    pressed: bool = False
    fallback_used: bool = False
    shared_bytes: int = 0
    session: SessionChange | None = None


class Event(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """Progress of a running request, worker -> coordinator -> client. payload: an encoded mapping."""

    type: int = 9
    kind: str = ""
    epoch: int = 0
    sequence: int = 0


class Credit(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """A client has taken `events` of a request's Events: so many more may follow. client -> coordinator -> worker.

    The coordinator itself says UNREAD_EVENTS where the caller is gone and its run goes on for others.
    """

    type: int = 24
    epoch: int = 0
    events: int = 0


class ToolCall(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """A program calls a tool of its caller's own process: worker -> coordinator -> client.

    payload: an encoded mapping of arguments. `number` counts the calls of one attempt from 1. `deadline_ms`: what
    remains of the request's; None = it has none.
    """

    type: int = 19
    name: str = ""
    epoch: int = 0
    number: int = 0
    deadline_ms: float | None = None


class ToolReply(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """What a tool came to: client -> coordinator -> worker. status: OK, payload a value, or ERROR, payload an error."""

    type: int = 20
    status: int = OK
    epoch: int = 0
    number: int = 0


class Cancel(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """Ask that a request be cancelled (client -> coordinator) or an attempt stopped (coordinator -> worker)."""

    type: int = 7
    force: bool = False
    epoch: int = 0


class CancelReply(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """What became of a Cancel. stage: queued|running|finished; how: dequeued|cooperative|killed|none|asked."""

    type: int = 8
    stage: str = ""
    how: str = ""


# --- peers ------------------------------------------------------------------------------------


class Bye(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """A client leaves: what it has queued is cancelled, what runs is asked to stop."""

    type: int = 10


class Taken(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """How many bytes of frames a client has read since it last said so: it is sent no more than a window unread.

    ZeroMQ's high-water mark counts messages, and one may have 64 MiB.
    """

    type: int = 23
    bytes: int = 0


class Invalid(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """Last word to a peer that is being muted, or the answer to a message that could not be taken.

    payload: an encoded error. `muted`: nothing this peer sends from now on is read.
    """

    type: int = 6
    muted: bool = False


# --- worker <-> coordinator -------------------------------------------------------------------


class Ready(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """The worker has booted and takes `slots` concurrent attempts."""

    type: int = 11
    slots: int = 1
    boot_ms: float = 0.0


class BootFailed(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """The worker could not boot and is about to exit. payload: an encoded error with the root traceback."""

    type: int = 12


class Heartbeat(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """The worker's io thread is alive.

    rss_bytes: of the worker and the processes that its programs have started. running: how many attempts have started;
    queued: how many wait for a thread. attempts: those that run now, the longest running first, at most BEAT_ATTEMPTS,
    each as `(epoch, run_ms, rows_done, lm_calls, quiet_ms)`; quiet_ms: since it last did what can be seen: a row done,
    an LM call begun or ended, a module or a tool called, an event.
    """

    type: int = 13
    rss_bytes: int = 0
    running: int = 0
    queued: int = 0
    attempts: list[tuple[int, float, int, int, float]] = []


class Recall(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """Give an attempt back unless it has started."""

    type: int = 14
    epoch: int = 0


class Recalled(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """The attempt is given back: no user code ran and none will."""

    type: int = 15
    epoch: int = 0


class Started(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """The attempt had started (or finished: then its Reply is on its way) when the Recall came."""

    type: int = 16
    epoch: int = 0


class Pause(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """An attempt waits for something that may need a slot (a request or a tool of its own): it lends its slot out."""

    type: int = 21
    epoch: int = 0


class Resume(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """A paused attempt goes on: it has a slot of its worker again."""

    type: int = 22
    epoch: int = 0


class Stop(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """Finish what has started and exit 0."""

    type: int = 17


class Program(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """A version of a program exists, or is gone. payload: an encoded ProgramSpec mapping, or empty = gone.

    aliases: the names that this version has now; who calls the program by its name alone means "live".
    """

    type: int = 18
    name: str = ""
    program_version: int = 0
    aliases: list[str] = []


class SessionEnd(Message, frozen=True, gc=False, array_like=True, kw_only=True):
    """A session has ended, or lives elsewhere: the worker forgets it. coordinator -> worker."""

    type: int = 25
    session: str = ""
    generation: int = 0


# A reader ignores types it does not know.
TYPES: Final[dict[int, type[Message]]] = {
    cls.__struct_defaults__[1]: cls
    for cls in (
        Hello, Welcome, Request, Reply, Refused, Invalid, Cancel, CancelReply, Event, Bye, Ready,
        BootFailed, Heartbeat, Recall, Recalled, Started, Stop, Program, Taken, ToolCall,
        ToolReply, Pause, Resume, Credit, SessionEnd,
    )
}  # fmt: skip

# A request id is `client_no << CLIENT_SHIFT | n`, n counting up from 1: unique in the run, and a client
# cannot name another's. The coordinator's own requests have client_no 0.
CLIENT_SHIFT: Final = 40


def request_id_base(client_no: int) -> int:
    """Return the request id below the first one of this client."""
    return client_no << CLIENT_SHIFT
