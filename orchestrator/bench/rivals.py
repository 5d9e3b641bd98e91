"""The same DSPy call without dspool: in one process on one thread, and behind FastAPI with uvicorn's workers.

What they run is written here as their users write it: as scripts, for processes of their own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from orchestrator.bench.contender import WORKERS

SIGNATURE: Final = "question -> answer"
MODEL: Final = "offline/knn"
_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 10.0
_COMMON: Final = f"""
import dspy
from bridge.worker.lm import LanguageModels
from orchestrator.bench.contender import die_with_parent

die_with_parent()
dspy.configure(lm=LanguageModels({{"default": {{"model": {MODEL!r}}}}}).get())
"""
_ALONE: Final = f"""{_COMMON}
import sys, time

predict = dspy.Predict({SIGNATURE!r})
number = 0
for line in sys.stdin:
    calls, began = 0, time.perf_counter()
    until = began + float(line)
    while time.perf_counter() < until:
        number += 1
        calls += 1
        assert f" {{number}} " in predict(question=f"what is question {{number}} about?").answer
    print(calls / (time.perf_counter() - began), flush=True)
"""
# As DSPy's own tutorial on deployment has it.
_SERVED: Final = f"""{_COMMON}
import fastapi, pydantic

class Asked(pydantic.BaseModel):
    question: str

app = fastapi.FastAPI()
predict = dspy.asyncify(dspy.Predict({SIGNATURE!r}))

@app.post("/predict")
async def answer(asked: Asked) -> dict[str, str]:
    return {{"answer": (await predict(question=asked.question)).answer}}
"""
_SERVER: Final = """
import sys, uvicorn
from orchestrator.bench.contender import die_with_parent

die_with_parent()
sys.path.insert(0, sys.argv[1])
import served  # what cannot be imported ends this process, where uvicorn would try for ever

uvicorn.run("served:app", app_dir=sys.argv[1], uds=sys.argv[2], workers=int(sys.argv[3]), log_level="warning",
            access_log=False)
"""


def question(number: int) -> str:
    """Return a question like no other."""
    return f"what is question {number} about?"


class OneThread:
    """One process that calls `dspy.Predict` again and again. A context manager."""

    def __init__(self) -> None:
        self._process = _spawn(["-c", _ALONE], subprocess.PIPE, stdout=subprocess.PIPE)

    def rate(self, seconds: float) -> float:
        """Return the calls per second. Raises RuntimeError if the process ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended; its answer tells
            self._process.stdin.write(f"{seconds}\n".encode())
            self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the one process ended with {self._process.wait()}")
        return float(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        _stop(self._process)


class Served:
    """FastAPI behind uvicorn with WORKERS workers, asked over a Unix socket. A context manager."""

    def __init__(self) -> None:
        """Raises RuntimeError where a package is missing."""
        for name in ("fastapi", "uvicorn", "httpx"):
            if importlib.util.find_spec(name) is None:
                raise RuntimeError(f"{name} is not installed")
        self._folder = tempfile.TemporaryDirectory(prefix="dspool-bench-")
        folder = Path(self._folder.name)
        (folder / "served.py").write_text(_SERVED, encoding="utf-8")
        self._socket = str(folder / "http.sock")
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = _spawn(["-c", _SERVER, str(folder), self._socket, str(WORKERS)], stdout=log, stderr=log)
        self._next = 0

    def rate(self, seconds: float, in_flight: int) -> float:
        """Return the answers per second that a user of httpx has, with so many requests on their way.

        Raises RuntimeError where one fails.
        """
        return asyncio.run(self._by_httpx(seconds, in_flight))

    def bare_rate(self, seconds: float, in_flight: int) -> float:
        """Return the same, asked by a client that does no more than it must: near what the server can do at most."""
        return asyncio.run(self._barely(seconds, in_flight))

    async def _by_httpx(self, seconds: float, in_flight: int) -> float:
        import httpx

        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        transport = httpx.AsyncHTTPTransport(uds=self._socket, limits=limits)
        async with httpx.AsyncClient(transport=transport, base_url="http://served") as client:
            began = time.perf_counter()
            source = _Source(self._next, began + seconds)

            async def ask() -> None:
                while (number := source.more()) is not None:
                    reply = await client.post("/predict", json={"question": question(number)})
                    if reply.status_code != 200 or f" {number} " not in reply.json()["answer"]:
                        raise RuntimeError(f"question {number} was answered with {reply.text[:200]!r}")

            await asyncio.gather(*(ask() for _ in range(in_flight)))
            asked, self._next = source.number - self._next, source.number
            return asked / (time.perf_counter() - began)

    async def _barely(self, seconds: float, in_flight: int) -> float:
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        source = _Source(self._next, began + seconds)
        opened = [
            (await loop.create_unix_connection(lambda: _Asker(source, loop), self._socket))[1] for _ in range(in_flight)
        ]
        try:
            answers = sum(await asyncio.gather(*(asker.done for asker in opened)))
            return answers / (time.perf_counter() - began)
        finally:
            self._next = source.number
            for asker in opened:
                asker.close()

    def __enter__(self) -> Self:
        """Wait until it answers. Raises RuntimeError if it does not."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
                self.__exit__()
                raise RuntimeError(f"uvicorn does not serve: {' '.join(lines[-1:])}")
            time.sleep(0.05)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _stop(self._process)
        self._folder.cleanup()

    def _answers(self) -> bool:
        try:
            self.bare_rate(0.0, 1)
        except OSError:  # nobody listens yet
            return False
        return True


class _Source:
    """Numbers for the questions of all connections, until the time is up."""

    def __init__(self, number: int, until: float) -> None:
        self.number = number
        self._until = until

    def more(self) -> int | None:
        """Return the next number."""
        if time.perf_counter() >= self._until:
            return None
        self.number += 1
        return self.number


class _Asker(asyncio.Protocol):
    """One connection, one request at a time; the least of HTTP that does. done: how many answers came."""

    def __init__(self, source: _Source, loop: asyncio.AbstractEventLoop) -> None:
        self._source = source
        self._transport: Any = None
        self._read = b""
        self._number = self._answers = 0
        self.done: asyncio.Future[int] = loop.create_future()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def connection_made(self, transport: Any) -> None:
        """Ask at least one question."""
        self._transport = transport
        self._ask(self._source.more() or 1)

    def _ask(self, number: int) -> None:
        self._number = number
        body = json.dumps({"question": question(number)}).encode()
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    def data_received(self, data: bytes) -> None:
        """Take some of an answer; ask the next question where it is whole."""
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        if b" 200 " not in head or f" {self._number} " not in json.loads(body)["answer"]:
            self._fail(f"question {self._number} was answered with {self._read[:200]!r}")
            return
        self._read = b""
        self._answers += 1
        if (number := self._source.more()) is None:
            self.done.set_result(self._answers)
        else:
            self._ask(number)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail, if it was not closed here."""
        self._fail(f"the connection was lost: {exc}")

    def _fail(self, text: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(text))


def _spawn(words: list[str], stdin: int = subprocess.DEVNULL, **more: Any) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-P", *words], stdin=stdin, env=environ, start_new_session=True, **more)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Have a process end, and what it started."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # What a dead process has not read stays in the buffer, and closing would send it.
            with suppress(BrokenPipeError):
                pipe.close()
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # The group is its own; unreaped, its number cannot be another's yet.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
