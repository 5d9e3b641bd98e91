"""The references of every run: a C proxy with the barest ends, and what the standard library offers.

The one place besides `bridge.transport` that opens ZeroMQ sockets: it shows what ZeroMQ itself costs.
"""

from __future__ import annotations

import multiprocessing
import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.pool import AsyncResult, Pool
from multiprocessing.process import BaseProcess
from typing import ClassVar, Final

import msgpack
import zmq

from orchestrator.bench.contender import WORKERS, Payload, die_with_parent, echo, window

_ANSWER_TIMEOUT_MS: Final = 20_000
_START_TIMEOUT_S: Final = 20.0


class ZmqProxy:
    """`zmq.proxy` in a process of its own, raw receive-send loops on both sides, one message per call.

    No futures, no threads, no supervision: the least that a broker between msgpack ends can cost.
    """

    name: ClassVar[str] = "zmq.proxy"

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None

    def start(self) -> None:
        """Start the proxy and its workers, connect, and echo until both sides are warm."""
        # Abstract addresses: nothing is left in the file system, whatever happens.
        frontend, backend = (f"ipc://@dspool-bench-{secrets.token_hex(8)}" for _ in range(2))
        self._launch(_proxy, frontend, backend)
        for _ in range(WORKERS):
            self._launch(_proxy_worker, backend)
        self._context = zmq.Context()
        self._socket = _unbounded(self._context, zmq.DEALER)
        self._socket.setsockopt(zmq.RCVTIMEO, _ANSWER_TIMEOUT_MS)
        self._socket.connect(frontend)
        self.echo({"n": 0})

    def _launch(self, target: object, *arguments: str) -> None:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context().Process(target=target, args=(theirs, *arguments), daemon=True)  # type: ignore[arg-type]
        process.start()
        self._processes.append(process)
        theirs.close()
        with ours:
            if not ours.poll(_START_TIMEOUT_S):
                raise TimeoutError(f"a process of {self.name} did not start within {_START_TIMEOUT_S:g} s")
            ours.recv()

    def echo(self, payload: Payload) -> Payload:
        """Send one message, wait for one."""
        assert self._socket is not None
        self._socket.send(msgpack.packb(payload))
        answer: Payload = msgpack.unpackb(self._socket.recv())
        return answer

    def flood(self, payloads: Iterator[Payload], in_flight: int) -> Iterator[Payload]:
        """Send ahead of what was received by at most `in_flight`."""
        assert self._socket is not None
        send, receive = self._socket.send, self._socket.recv
        pack, unpack = msgpack.Packer().pack, msgpack.unpackb
        waiting = 0
        for payload in payloads:
            send(pack(payload))
            waiting += 1
            if waiting >= in_flight:
                yield unpack(receive())
                waiting -= 1
        for _ in range(waiting):
            yield unpack(receive())

    def map(self, rows: list[Payload], chunk: int) -> list[Payload] | None:
        """Return None: a proxy forwards messages and knows no rows."""
        return None

    def stop(self) -> None:
        """Kill the processes and close the socket."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        self._processes.clear()
        if self._socket is not None and self._context is not None:
            self._socket.close(linger=0)
            self._context.term()
            self._socket = self._context = None


def _unbounded(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """Return a socket without high-water marks: with them a proxy drops replies at 1,000 in flight."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket


def _proxy(ready: Connection, frontend: str, backend: str) -> None:
    die_with_parent()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    clients, workers = _unbounded(context, zmq.ROUTER), _unbounded(context, zmq.DEALER)
    clients.bind(frontend)
    workers.bind(backend)
    ready.send(None)
    zmq.proxy(clients, workers)


def _proxy_worker(ready: Connection, backend: str) -> None:
    die_with_parent()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = _unbounded(context, zmq.DEALER)
    socket.connect(backend)
    ready.send(None)
    receive, send = socket.recv_multipart, socket.send_multipart
    pack, unpack = msgpack.Packer().pack, msgpack.unpackb
    while True:
        client, payload = receive()
        send([client, pack(unpack(payload))])


class MultiprocessingPool:
    """`multiprocessing.Pool` with the platform's default start method."""

    name: ClassVar[str] = "multiprocessing.Pool"

    def __init__(self) -> None:
        self._pool: Pool | None = None

    def start(self) -> None:
        """Start the pool and have it answer."""
        self._pool = multiprocessing.Pool(WORKERS, initializer=die_with_parent)
        self._pool.map(echo, [{}] * WORKERS, chunksize=1)

    def echo(self, payload: Payload) -> Payload:
        """Apply and wait."""
        assert self._pool is not None
        return self._pool.apply(echo, (payload,))

    def flood(self, payloads: Iterator[Payload], in_flight: int) -> Iterator[Payload]:
        """Apply asynchronously within a window."""
        pool = self._pool
        assert pool is not None

        def submit(payload: Payload) -> AsyncResult[Payload]:
            return pool.apply_async(echo, (payload,))

        return window(submit, lambda handle: handle.get(), payloads, in_flight)

    def map(self, rows: list[Payload], chunk: int) -> list[Payload] | None:
        """Map with the pool's own chunks."""
        assert self._pool is not None
        return self._pool.map(echo, rows, chunksize=chunk)

    def stop(self) -> None:
        """Terminate the pool."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None


class ExecutorContender:
    """What any `concurrent.futures` executor can be measured by. Subclasses make the executor."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None

    def _make(self) -> ProcessPoolExecutor:
        raise NotImplementedError

    def start(self) -> None:
        """Start the executor and have it answer as often as it has workers."""
        self._executor = self._make()
        list(self._executor.map(echo, [{}] * WORKERS))

    def echo(self, payload: Payload) -> Payload:
        """Submit and wait."""
        assert self._executor is not None
        return self._executor.submit(echo, payload).result()

    def flood(self, payloads: Iterator[Payload], in_flight: int) -> Iterator[Payload]:
        """Submit within a window."""
        executor = self._executor
        assert executor is not None

        def submit(payload: Payload) -> Future[Payload]:
            return executor.submit(echo, payload)

        return window(submit, lambda future: future.result(), payloads, in_flight)

    def map(self, rows: list[Payload], chunk: int) -> list[Payload] | None:
        """Map with the executor's own chunks."""
        assert self._executor is not None
        return list(self._executor.map(echo, rows, chunksize=chunk))

    def stop(self) -> None:
        """Shut the executor down; nothing is waiting in it any more."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None


class StandardExecutor(ExecutorContender):
    """`concurrent.futures.ProcessPoolExecutor` with the platform's default start method."""

    name: ClassVar[str] = "ProcessPoolExecutor"

    def _make(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(WORKERS, initializer=die_with_parent)
