"""What happens to the fleet beside wire messages, and what it asks for in return.

Wire messages are events themselves (`bridge.protocol.messages`) and arrive with the peer that sent them: on the hot
path a wrapper per message would cost more than the decision.
"""

from __future__ import annotations

import msgspec

from bridge.protocol.messages import Reply, Request

# --- how a worker ended -------------------------------------------------------------------------


class Exited(msgspec.Struct, frozen=True):
    """It left by itself, with this code."""

    code: int

    def __str__(self) -> str:
        return f"exit code {self.code}"


class Signalled(msgspec.Struct, frozen=True):
    """A signal ended it. out_of_memory: the kernel sent it, for want of memory."""

    number: int
    out_of_memory: bool = False

    def __str__(self) -> str:
        return "out of memory" if self.out_of_memory else f"signal {self.number}"


class BootFailed(msgspec.Struct, frozen=True):
    """It came up, could not boot, said why. `error`: an encoded error (`bridge.protocol.errors`)."""

    error: bytes

    def __str__(self) -> str:
        return "boot failed"


class LaunchFailed(msgspec.Struct, frozen=True):
    """No process could be started."""

    error: str

    def __str__(self) -> str:
        return f"launch failed: {self.error}"


class Vanished(msgspec.Struct, frozen=True):
    """It is gone, and nobody could say how in time."""

    def __str__(self) -> str:
        return "gone, no report of how"


ExitReason = Exited | Signalled | BootFailed | LaunchFailed | Vanished

# --- events ---------------------------------------------------------------------------------------


class WorkerLaunched(msgspec.Struct, frozen=True):
    """The launcher has started the process."""

    worker_id: str
    pid: int


class WorkerDied(msgspec.Struct, frozen=True):
    """The worker is dead; what it sent may still be on its way. It is given nothing more."""

    worker_id: str


class WorkerExited(msgspec.Struct, frozen=True):
    """The worker is gone and everything it sent has been handled; its started slots are final.

    stacks: lines of its threads' stacks, if it wrote any before it ended.
    """

    worker_id: str
    reason: ExitReason
    peak_rss_bytes: int = 0
    log_tail: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()


class ProtocolBroken(msgspec.Struct, frozen=True):
    """A worker sent what cannot be read: what else it meant to say is unknown, so it is replaced."""

    why: str


class ClientConnected(msgspec.Struct, frozen=True):
    """A client's Hello was accepted; `client_no` is the upper part of its request ids.

    worker_id: of the worker whose programs it serves, which it has proved; "" = none's.
    """

    client_no: int
    principal: str
    worker_id: str = ""


class ClientGone(msgspec.Struct, frozen=True):
    """A client cannot be reached any more: what it has queued is cancelled, what runs is asked to stop."""


class ServedVersion(msgspec.Struct, frozen=True):
    """A version of a program: the pool where it is at home, and what workers are sent of it."""

    version: int
    pool: str
    payload: bytes


class ProgramSet(msgspec.Struct, frozen=True):
    """What a program is from now on: the versions that workers are to know, and which of them each alias names.

    Without versions the program is gone.
    """

    name: str
    versions: tuple[ServedVersion, ...]
    aliases: dict[str, int]


class ProgramsSynced(msgspec.Struct, frozen=True):
    """Every program there is has been told: `names` are all of them."""

    names: frozenset[str]


class Tick(msgspec.Struct, frozen=True):
    """Time passed: deadlines, restarts, heartbeats and grace periods are looked at."""


class Resize(msgspec.Struct, frozen=True):
    """A pool is to have `size` workers, all its places in service. Refused: BridgeError NOT_FOUND, INVALID_REQUEST.

    max_size: with it, from `size` to so many, as the work asks for.
    """

    pool: str
    size: int
    max_size: int | None = None


class MemoryRead(msgspec.Struct, frozen=True):
    """used: the part of the machine's memory, or of what this coordinator may have of it, that is in use, 0 to 1."""

    used: float


class CpuRead(msgspec.Struct, frozen=True):
    """used: the part of the processors that was in use over the last 10 s, 0 to 1, as `MemoryRead` has it of memory."""

    used: float


class DropLetter(msgspec.Struct, frozen=True):
    """A dead letter is to be forgotten: equal requests are like any other. Refused: BridgeError NOT_FOUND."""

    letter_id: str


class PardonLetter(msgspec.Struct, frozen=True):
    """A dead letter leaves the quarantine; equal requests run alone, until the next death. Refused: BridgeError."""

    letter_id: str


class ReturnLetter(msgspec.Struct, frozen=True):
    """What left the quarantine did not run after all: it goes back, unless an equal one ended well meanwhile.

    pool, principal, requests: as its row had them.
    """

    message: Request
    pool: str
    principal: str
    requests: int


class DrainWorker(msgspec.Struct, frozen=True):
    """A worker is to finish what it runs and stop; its place stays empty. Refused: BridgeError."""

    worker_id: str


class Restart(msgspec.Struct, frozen=True):
    """A worker, or all of a pool, is to be replaced, each by a spare that is ready first. Refused: BridgeError.

    target: a worker's id or a pool's name. grace_s: how long running work has to end; None = as long as it takes.
    """

    target: str
    grace_s: float | None = None


class Drain(msgspec.Struct, frozen=True):
    """Nothing new from now on. What is accepted has `budget_s` to finish, then it is cancelled; then workers stop."""

    budget_s: float


class OpenSession(msgspec.Struct, frozen=True):
    """Somebody opens a session, or attaches to it; None = as it is, or by default. Refused: BridgeError."""

    principal: str
    id: str
    ttl_s: float | None = None
    affinity: str | None = None
    on_loss: str | None = None


class ExpireSession(msgspec.Struct, frozen=True):
    """A session is to end, now. generation: of the one that is meant, 0 = any. Refused: BridgeError.

    answer: for who asks, when the end is kept where sessions are.
    """

    principal: str
    id: str
    generation: int = 0
    answer: Reply | None = None


class SessionImage(msgspec.Struct, frozen=True):
    """A session as it is kept. state: None = as it was kept before. turns: (number, bytes) of those since then.

    first_turn: those before it are forgotten. stats: packed `calls.Calls`. idle_s: since anybody used it. ended: it is
    not to be kept any more.
    """

    principal: str
    id: str
    generation: int
    seq: int
    ttl_s: float
    affinity: str
    on_loss: str
    state: bytes | None = None
    turns: tuple[tuple[int, bytes], ...] = ()
    first_turn: int = 0
    calls: int = 0
    stats: bytes = b""
    idle_s: float = 0.0
    ended: bool = False


class SaveBatch(msgspec.Struct, frozen=True):
    """Sessions that are to be kept together. token: names the batch in SessionsSaved and SessionsUnsaved."""

    token: int
    images: tuple[SessionImage, ...]


class SessionRestored(msgspec.Struct, frozen=True):
    """A session was kept by a run before."""

    image: SessionImage


class SessionUnrestored(msgspec.Struct, frozen=True):
    """A session was kept by a run before, and cannot be restored."""

    why: str


class SessionsSynced(msgspec.Struct, frozen=True):
    """All that was kept is restored. problem: nothing could be, and why."""

    problem: str = ""


class SessionsSaved(msgspec.Struct, frozen=True):
    """A batch of sessions is kept."""

    token: int


class SessionsUnsaved(msgspec.Struct, frozen=True):
    """A batch of sessions could not be kept."""

    token: int
    why: str = ""


# --- effects --------------------------------------------------------------------------------------


class Launch(msgspec.Struct, frozen=True):
    """Start a worker process."""

    worker_id: str
    pool: str
    place: int
    incarnation: int


class Dump(msgspec.Struct, frozen=True):
    """Have a worker write its threads' stacks. A Kill follows, whether it could or not."""

    worker_id: str


class Kill(msgspec.Struct, frozen=True):
    """Send SIGKILL to a worker."""

    worker_id: str
    why: str


class Log(msgspec.Struct, frozen=True):
    """Something to know: an event of the event log. event: a constant name; fields: plain values.

    quiet: it is not for the operator's log.
    """

    event: str
    fields: dict[str, object]
    level: str = "info"
    quiet: bool = False


Effect = Launch | Dump | Kill | Log
