"""Payloads that go through shared memory: a client's segments, and what a worker reads from and writes to them.

A segment is a file in memory (`/dev/shm`) that belongs to one client: `<folder of the run>/<client_no>/<name>`. A
request whose payload is large has it in a segment, from byte 0 on. The worker copies it out, and writes a large outcome
into the same segment, behind it. So a segment is written by one side at a time, nothing but the client's folder owns
it, and the coordinator, which never looks into it, removes that folder when the client is gone, and the run's when the
run is.

A segment is used again only after an answer that its worker gave itself: after any other end of a request (out of time,
cancelled, lost) an attempt may still write to it. Pages that are used again cost a tenth of fresh ones.

Nothing is mapped: a file that somebody cuts off gives a short read, never a signal.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import zlib
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.protocol.large import LARGE_BYTES, Part
from bridge.protocol.messages import CLIENT_SHIFT, Message, Recalled, Reply, Request
from bridge.protocol.sessions import cut_tail

# Segments have sizes of powers of two, so that one that has become free fits the next payload of its kind.
_LEAST_BYTES: Final = 1 << 18
# What a client keeps for later.
_IDLE_BYTES: Final = 64 << 20
# This part of the memory file system stays free.
_FREE_PART: Final = 8
_NAME: Final = re.compile(r"[0-9]{1,12}")
_SAMPLE_BYTES: Final = 4096
_ALIGN: Final = 64
_PARTS_AT_ONCE: Final = 512  # the kernel takes 1,024


class Segment:
    """One file of a client. size_bytes: what it was made for; used_bytes: of them the request's payload."""

    __slots__ = ("fd", "name", "size_bytes", "used_bytes")

    def __init__(self, name: str, fd: int, size_bytes: int) -> None:
        self.name = name
        self.fd = fd
        self.size_bytes = size_bytes
        self.used_bytes = 0


class Segments:
    """The segments of one client. Thread-safe.

    folder: made when it is first needed; the one above it exists, or nothing is shared. most_bytes: of payloads out at
    once; beyond that they travel in frames.
    """

    def __init__(self, folder: str, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._idle: dict[int, list[Segment]] = {}
        self._out: set[Segment] = set()
        self._idle_bytes = self._out_bytes = 0
        self._names = 0
        self._closed = False

    def lend(self, parts: Sequence[Part], size_bytes: int) -> Segment | None:
        """Return a segment that holds the parts, for one request; None if the payload is better sent in frames."""
        segment = self.take(size_bytes)
        if segment is None:
            return None
        try:
            write(segment.fd, parts, 0)
        except OSError:  # the memory is full
            self.drop(segment)
            return None
        segment.used_bytes = size_bytes
        return segment

    def take(self, size_bytes: int) -> Segment | None:
        """Return an empty segment for so many bytes; None if there is to be none."""
        wanted = max(_LEAST_BYTES, 1 << (size_bytes - 1).bit_length())
        with self._lock:
            if self._closed or self._out_bytes + wanted > self._most_bytes:
                return None
            idle = self._idle.get(wanted)
            if idle:
                segment: Segment | None = idle.pop()
                self._idle_bytes -= wanted
            else:
                segment = self._make(wanted)
            if segment is None:
                return None
            segment.used_bytes = 0
            self._out_bytes += wanted
            self._out.add(segment)
            return segment

    def give_back(self, segment: Segment) -> None:
        """A request with this segment has been answered by its worker: the segment may be used again."""
        with self._lock:
            if segment not in self._out:
                return
            if self._idle_bytes + segment.size_bytes > _IDLE_BYTES:
                self._remove(segment)
                return
            self._out.discard(segment)
            self._out_bytes -= segment.size_bytes
            self._idle_bytes += segment.size_bytes
            self._idle.setdefault(segment.size_bytes, []).append(segment)

    def drop(self, segment: Segment) -> None:
        """A request with this segment has ended otherwise: nobody finds it any more."""
        with self._lock:
            if segment in self._out:
                self._remove(segment)

    def close(self) -> None:
        """Remove all and the folder; nothing is lent any more."""
        with self._lock:
            self._closed = True
            for segment in [*self._out, *(one for idle in self._idle.values() for one in idle)]:
                self._remove(segment)
            self._idle.clear()
        with contextlib.suppress(OSError):  # there is none, or something is in it: the coordinator removes it
            os.rmdir(self._folder)

    def _make(self, size_bytes: int) -> Segment | None:
        self._names += 1
        name = str(self._names)
        try:
            if self._names == 1:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._folder, 0o700)
            room = os.statvfs(self._folder)
            if room.f_bavail * room.f_frsize < size_bytes + room.f_blocks * room.f_frsize // _FREE_PART:
                return None
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            return Segment(name, os.open(os.path.join(self._folder, name), flags, 0o600), size_bytes)
        except OSError:  # no such folder, no descriptor, no memory: frames do as well
            return None

    def _remove(self, segment: Segment) -> None:
        if segment in self._out:
            self._out.discard(segment)
            self._out_bytes -= segment.size_bytes
        os.close(segment.fd)
        with contextlib.suppress(OSError):  # its folder may be gone
            os.unlink(os.path.join(self._folder, segment.name))


def write(fd: int, parts: Sequence[Part], offset: int) -> None:
    """Write parts one behind the other. Raises OSError."""
    left = [part for part in parts if len(part)]
    while left:
        written = os.pwritev(fd, left[:_PARTS_AT_ONCE], offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left[0])
            del left[0]
        if written:
            left[0] = memoryview(left[0])[written:]


def read(fd: int, size_bytes: int, offset: int) -> bytes:
    """Return so many bytes. Raises OSError; BridgeError(INVALID_REQUEST) where the file has fewer."""
    found = os.fstat(fd).st_size - offset
    data = b""
    # Whoever said the size may be wrong: no memory is asked for what is not there.
    while found >= size_bytes:  # the kernel returns at most 2 GiB at once
        more = os.pread(fd, size_bytes - len(data), offset + len(data))
        data = data + more if data else more
        if len(data) == size_bytes:
            return data
        if not more:
            found = len(data)
    text = f"a shared payload of {size_bytes:,} bytes ends after {max(found, 0):,}"
    raise BridgeError(INVALID_REQUEST, text, details={"path": ""})


def behind(used_bytes: int) -> int:
    """Return where in a segment an outcome begins."""
    return used_bytes + -used_bytes % _ALIGN


def sample(parts: Sequence[Part]) -> bytes:
    """Return a few bytes by which large payloads can be told apart: their size, and of each part the ends."""
    total = check = 0
    for part in parts:
        view = memoryview(part)
        total += len(view)
        check = zlib.crc32(view[:_SAMPLE_BYTES], check)
        check = zlib.crc32(view[-_SAMPLE_BYTES:], check)
    return total.to_bytes(8, "big") + check.to_bytes(4, "big")


class Lent:
    """A worker's hold on the segment of an attempt. used_bytes: of the request's payload, 0 = it came in a frame."""

    __slots__ = ("_path", "used_bytes")

    def __init__(self, run_folder: str, client_no: int, name: str, used_bytes: int) -> None:
        """Raises BridgeError(INVALID_REQUEST) for a name that is none."""
        if not _NAME.fullmatch(name):
            raise BridgeError(INVALID_REQUEST, f"{name[:40]!r} is no name of a shared segment", details={"path": ""})
        self._path = os.path.join(run_folder, str(client_no), name)
        self.used_bytes = used_bytes

    def payload(self) -> bytes:
        """Return the request's payload. Raises BridgeError(INVALID_REQUEST) if it is not there any more."""
        try:
            # Not blocking: were it a pipe, this would wait for a writer.
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                return read(fd, self.used_bytes, 0)
            finally:
                os.close(fd)
        except OSError as exc:
            text = f"the arguments were in shared memory, and are there no more ({exc.strerror})"
            raise BridgeError(INVALID_REQUEST, text, details={"path": ""}) from None

    def answer(self, parts: Sequence[Part]) -> bool:
        """Write an outcome behind the payload; return whether it is there: if not, it is sent in frames."""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            write(fd, parts, behind(self.used_bytes))
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


class Lendings:
    """A worker's attempts that have a segment. Used by its io thread alone. most_bytes: that a payload may have."""

    def __init__(self, run_folder: str, most_bytes: int) -> None:
        self._run_folder = run_folder
        self._most_bytes = most_bytes
        self._lent: dict[int, Lent] = {}  # by epoch

    def __bool__(self) -> bool:
        return bool(self._lent)

    def take_in(self, request: Request) -> Request:
        """Return an attempt with its payload, wherever that was. Raises BridgeError(INVALID_REQUEST)."""
        if not 0 <= request.shared_bytes <= self._most_bytes:
            text = f"a shared payload of {request.shared_bytes:,} bytes; at most {self._most_bytes:,} are possible"
            raise BridgeError(INVALID_REQUEST, text, details={"path": ""})
        lent = Lent(self._run_folder, request.request_id >> CLIENT_SHIFT, request.segment, request.shared_bytes)
        payload = request.payload
        if request.shared_bytes:
            payload = lent.payload()
            if request.in_session is not None and request.in_session.tail:  # what its session holds came in the frame
                payload += (request.payload or b"")[-request.in_session.tail :]
        self._lent[request.epoch] = lent
        return replace(request, payload=payload)

    def give_out(self, message: Message) -> Message:
        """Return what is sent for a message of an attempt: the payload of a large reply stays in the segment."""
        if type(message) is Recalled:
            self._lent.pop(message.epoch, None)
        if type(message) is not Reply:
            return message
        lent = self._lent.pop(message.epoch, None)
        payload, rest = message.payload, b""
        if lent is None or payload is None:
            return message
        if message.session is not None:  # what changed in its session is the coordinator's
            payload, rest = cut_tail(payload, message.session.tail)
        if len(payload) < LARGE_BYTES or not lent.answer([payload]):
            return message
        return replace(message, payload=rest, shared_bytes=len(payload))
