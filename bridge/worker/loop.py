"""The io loop: one thread that owns the worker's socket.

Each turn drains the socket, handles every message, and sends what there is to send in natural batches. It never runs
anything that may take long, so its heartbeats say that the process as a whole is alive. An idle loop sleeps in poll.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from typing import Any, Final

import zmq

from bridge import faultpoints
from bridge.protocol import codec
from bridge.protocol.errors import BridgeError, decode_error, encode_error
from bridge.protocol.messages import (
    BEAT_ATTEMPTS,
    BootFailed,
    Cancel,
    Credit,
    Heartbeat,
    Hello,
    Message,
    Program,
    Ready,
    Recall,
    Recalled,
    Refused,
    Reply,
    Request,
    SessionEnd,
    Started,
    Stop,
    ToolReply,
    Welcome,
)
from bridge.protocol.worker_spec import WorkerSpec
from bridge.shared_memory import Lendings
from bridge.transport import Dealer, Sent
from bridge.worker.attempt import Runner, expired, refuse
from bridge.worker.call import Call, InlineCall
from bridge.worker.executor import Executor
from bridge.worker.memory import FamilyMemory
from bridge.worker.version import package_version

log = logging.getLogger(__name__)

TURN_MESSAGES: Final = 256
# More rows than this are no work of under a millisecond, whatever the operation.
INLINE_ROWS: Final = 256
RETRY_S: Final = 0.01
# How long the coordinator may take to answer a Hello.
HELLO_LIMIT_S: Final = 30.0
# How long the last messages may take to leave.
LEAVE_S: Final = 1.0
LIFELINE_EXIT: Final = 9


class Loop:
    """The worker's end of the wire. `start`, then `ready` or `boot_failed`; `join` returns the exit code.

    The methods are for the main thread; everything below them runs on the loop's own.
    """

    def __init__(self, spec: WorkerSpec, lifeline_fd: int) -> None:
        self._spec = spec
        self._lifeline_fd = lifeline_fd
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._woken = False
        self._thread = threading.Thread(target=self._main, name="io", daemon=True)
        self._executor = Executor(spec.slots, self._post)
        self._runner: Runner | None = None
        # What runs here and now, and the call that it sees: nobody can cancel it, and it uses nothing that is counted.
        self._inline: dict[str, Call] = {}
        self._on_program: Any = None
        self._posted: deque[Message] = deque()  # from other threads; bounded by slots and the executor's event room
        self._out: list[Message] = []  # of this turn
        self._outbox: deque[list[bytes]] = deque()  # refused by a full pipe; bounded by what a worker is given
        self._welcomed = False
        self._booting = True
        self._stop_asked = False
        self._stopping = False
        self._exit_code: int | None = None
        self._leave_by_s = float("inf")
        self._lendings = Lendings(spec.shared_dir, spec.message_bytes)
        self._retry_at_s = float("inf")

    def start(self) -> None:
        """Say Hello; heartbeats follow once the coordinator has answered."""
        self._thread.start()

    def ready(self, runner: Runner, on_program: Any, boot_ms: float) -> None:
        """Begin to run attempts. on_program: takes Program messages, on the io thread."""
        self._executor.start(runner)
        self._on_program = on_program
        self._runner = runner
        self._inline = {name: InlineCall(0, 0, name) for name in runner.inline}
        self._booting = False
        faultpoints.hit("worker.before_ready")
        self._post(Ready(slots=self._spec.slots, boot_ms=boot_ms))

    def boot_failed(self, error: BridgeError) -> None:
        """Tell the coordinator why there will be no Ready, and leave with exit code 1."""
        self._booting = False
        self._post(BootFailed(payload=encode_error(error)))

    def stop(self) -> None:
        """Finish what has started, give the rest back, leave with exit code 0. Safe in a signal handler."""
        self._stop_asked = True
        os.eventfd_write(self._wake_fd, 1)

    def join(self) -> int:
        """Wait for the loop's end; return the exit code of the process."""
        self._thread.join()
        return self._exit_code or 0

    def _post(self, message: Message) -> None:
        """Have a message sent. From any thread."""
        self._posted.append(message)
        if not self._woken:
            self._woken = True
            os.eventfd_write(self._wake_fd, 1)

    # --- the io thread ----------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._run()
        except BaseException:
            log.critical("io_loop_failed", exc_info=True)
            self._exit_code = 1
        if self._booting:
            # The main thread is still importing, and nothing has run that could need an orderly end.
            sys.stdout.flush()
            logging.shutdown()
            os._exit(self._exit_code or 0)

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = Dealer(context, self._spec.endpoint, linger_ms=int(LEAVE_S * 1e3))
        self._memory = FamilyMemory()
        self._poller = select.poll()
        for fd in (self._dealer.fileno(), self._wake_fd, self._lifeline_fd):
            self._poller.register(fd, select.POLLIN)
        try:
            self._say_hello()
            while not self._is_done():
                self._turn()
        finally:
            self._executor.close()
            self._memory.close()
            self._dealer.close()
            context.term()

    def _say_hello(self) -> None:
        faultpoints.hit("worker.before_hello")
        spec = self._spec
        self._out.append(
            Hello(
                package_version=package_version(),
                run_id=spec.run_id,
                pid=os.getpid(),
                role="worker",
                token=spec.token,
                worker_id=spec.worker_id,
                pool=spec.pool,
                incarnation=spec.incarnation,
            )
        )
        # The first beat is due when the coordinator is overdue.
        self._beat_at_s = time.monotonic() + HELLO_LIMIT_S
        self._flush(time.monotonic())

    def _turn(self) -> None:
        # The socket's descriptor is edge-triggered: only when nothing is pending may the loop sleep on it. Woken from
        # sleep, the first frame is answered before anything else is looked at; what then still pends is drained.
        pending = self._dealer.pending()
        for fd, _ in self._poller.poll(0 if pending else self._timeout_ms()):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            elif fd == self._lifeline_fd and not os.read(fd, 512):
                os._exit(LIFELINE_EXIT)
        # Before the posted messages are taken: what comes later wakes the loop again.
        self._woken = False
        now = time.monotonic()
        self._receive(now, TURN_MESSAGES if pending else 1)
        if self._stop_asked and not self._stopping:
            self._begin_stop()
        self._take_posted()
        if now >= self._beat_at_s:
            self._beat(now)
        self._flush(now)

    def _timeout_ms(self) -> float:
        due_s = min(self._beat_at_s, self._retry_at_s, self._leave_by_s)
        return max(0.0, (due_s - time.monotonic()) * 1e3)

    def _is_done(self) -> bool:
        if self._exit_code is not None:
            return not self._outbox or time.monotonic() >= self._leave_by_s
        if self._stopping and self._executor.running == 0:
            self._leave(0)
            return not self._outbox
        return False

    def _leave(self, exit_code: int) -> None:
        self._exit_code = exit_code
        self._leave_by_s = time.monotonic() + LEAVE_S

    # --- what comes -------------------------------------------------------------------------------

    def _receive(self, now: float, left: int) -> None:
        """Handle frames until `left` messages have come, or no more are there; a full frame brings others along."""
        while left > 0 and (frames := self._dealer.receive()) is not None:
            decoded = codec.decode(frames)
            for message in decoded.messages:
                if type(message) is not Request:
                    self._on_message(message)
                    continue
                if message.segment:
                    taken = self._take_in(message)
                    if taken is None:
                        continue
                    message = taken
                if (call := self._inline.get(message.operation)) is not None and message.rows <= INLINE_ROWS:
                    self._out.append(self._run_inline(message, call))
                elif self._stopping:
                    self._out.append(Recalled(request_id=message.request_id, epoch=message.epoch))
                else:
                    self._executor.submit(message, now)
            if decoded.problem is not None:
                # Which attempts it held is unknown: only a new worker can be sure of what it was given.
                log.error("frame_unreadable: %s (request %d)", decoded.problem, decoded.request_id)
                self._leave(1)
            if left == 1 < len(decoded.messages):
                left = TURN_MESSAGES
            left -= len(decoded.messages) or 1

    def _take_in(self, request: Request) -> Request | None:
        """Return an attempt with its payload, from where it is shared; None: it is answered, for there is none."""
        try:
            return self._lendings.take_in(request)
        except BridgeError as error:
            self._out.append(refuse(request, error))
            return None

    def _run_inline(self, request: Request, call: Call) -> Reply:
        if request.deadline_ms is not None and request.deadline_ms <= 0:
            return expired(request)
        assert self._runner is not None
        return self._runner.run_in_session(request) if request.session else self._runner.run(request, call)

    def _on_message(self, message: Message) -> None:
        match message:
            case Recall():
                kind = Recalled if self._executor.recall(message.epoch) else Started
                self._out.append(kind(request_id=message.request_id, epoch=message.epoch))
            case Cancel():
                reply = self._executor.cancel(message.epoch)
                if reply is not None:
                    self._out.append(reply)
            case ToolReply():
                self._executor.tool_reply(message)
            case Credit():
                self._executor.credit(message)
            case Program():
                self._change_program(message)
            case SessionEnd():
                if self._runner is not None:
                    self._runner.sessions.forget(message.session, message.generation)
            case Stop():
                self._stop_asked = True
            case Welcome():
                self._welcomed = True
                self._beat_at_s = time.monotonic()
            case Refused():
                log.error("hello_refused: %s", decode_error(message.payload or b"").message)
                self._leave(1)
            case _:
                log.warning("message_unexpected: %s", type(message).__name__)

    def _change_program(self, message: Program) -> None:
        if self._on_program is None:
            log.error("program_before_ready: %s", message.name)
            return
        try:
            self._on_program(message)
        except Exception:
            log.exception("program_refused: %s version %d", message.name, message.program_version)

    def _begin_stop(self) -> None:
        self._stopping = True
        self._inline = {}
        for request in self._executor.recall_all():
            self._out.append(Recalled(request_id=request.request_id, epoch=request.epoch))

    # --- what leaves ------------------------------------------------------------------------------

    def _take_posted(self) -> None:
        # While the pipe is full the rest stays posted: events then hold back the programs that emit them.
        if not self._welcomed or self._outbox:
            return
        for _ in range(len(self._posted)):
            message = self._posted.popleft()
            if type(message) is Ready:
                self._tell_beat(time.monotonic())  # what it was born with, before anything is asked of it
            self._executor.settled(message)
            self._out.append(message)
            if type(message) is BootFailed:
                self._leave(1)

    def _beat(self, now: float) -> None:
        if not self._welcomed:
            log.error("hello_unanswered: for %.0f s, endpoint %s", HELLO_LIMIT_S, self._spec.endpoint)
            self._outbox.clear()
            self._leave(1)
            return
        self._beat_at_s = now + self._spec.heartbeat_interval_s
        if not self._outbox:  # a beat that waits in line says nothing
            self._tell_beat(now)

    def _tell_beat(self, now: float) -> None:
        faultpoints.hit("worker.in_heartbeat")
        executor = self._executor
        beat = Heartbeat(
            rss_bytes=self._memory.rss_bytes(),
            running=executor.running,
            queued=executor.queued,
            attempts=executor.progress(now, BEAT_ATTEMPTS),
        )
        self._out.append(beat)

    def _flush(self, now: float) -> None:
        if self._out:
            if self._lendings:
                self._out = [self._lendings.give_out(message) for message in self._out]
            self._outbox.extend(codec.encode_frames(self._out))
            self._out.clear()
        self._retry_at_s = float("inf")
        while self._outbox:
            if self._dealer.send(self._outbox[0]) is not Sent.YES:
                self._retry_at_s = now + RETRY_S
                return
            self._outbox.popleft()
