"""Contenders of `--peers`: other people's pools, each measured as its own manual says, where it is installed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ClassVar, cast

from orchestrator.bench.contender import WORKERS, Payload, echo, window
from orchestrator.bench.references import ExecutorContender


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for what a peer would leave in the temporary folder."""
    return tempfile.TemporaryDirectory(prefix="dspool-bench-", ignore_cleanup_errors=True)


class Loky(ExecutorContender):
    """loky's executor."""

    name: ClassVar[str] = "loky"

    def _make(self) -> ProcessPoolExecutor:
        import loky

        # Not a subclass of the standard one, but of the same shape.
        return cast(ProcessPoolExecutor, loky.ProcessPoolExecutor(WORKERS))


class Ray:
    """Ray actors, called in turn."""

    name: ClassVar[str] = "ray"

    def __init__(self) -> None:
        self._ray: Any = None
        self._scratch = _scratch()
        self._actors: list[Any] = []

    def start(self) -> None:
        """Start a local Ray and its actors."""
        import ray

        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=self._scratch.name,
        )
        self._ray = ray
        actor = ray.remote(_Echo)
        self._actors = [actor.remote() for _ in range(WORKERS)]
        self._next = itertools.cycle(self._actors)
        ray.get([each.echo.remote({}) for each in self._actors])

    def echo(self, payload: Payload) -> Payload:
        """Call an actor and wait."""
        answer: Payload = self._ray.get(next(self._next).echo.remote(payload))
        return answer

    def flood(self, payloads: Iterator[Payload], in_flight: int) -> Iterator[Payload]:
        """Call actors within a window."""
        return window(lambda payload: next(self._next).echo.remote(payload), self._ray.get, payloads, in_flight)

    def map(self, rows: list[Payload], chunk: int) -> list[Payload] | None:
        """Give every actor its calls at once: actors know no chunks."""
        answers: list[Payload] = self._ray.get([next(self._next).echo.remote(row) for row in rows])
        return answers

    def stop(self) -> None:
        """Shut Ray down."""
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None
        self._scratch.cleanup()


class _Echo:
    def echo(self, payload: Payload) -> Payload:
        return payload


class Distributed:
    """dask.distributed with one thread per worker process."""

    name: ClassVar[str] = "dask.distributed"

    def __init__(self) -> None:
        self._client: Any = None
        self._cluster: Any = None
        self._scratch = _scratch()

    def start(self) -> None:
        """Start a local cluster and its client."""
        import dask
        import distributed

        dask.config.set({"temporary-directory": self._scratch.name})
        self._cluster = distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        )
        self._client = distributed.Client(self._cluster)
        self._client.gather(self._client.map(echo, [{"n": number} for number in range(WORKERS)], pure=False))

    def echo(self, payload: Payload) -> Payload:
        """Submit and wait."""
        answer: Payload = self._submit(payload).result()
        return answer

    def _submit(self, payload: Payload) -> Any:
        return self._client.submit(echo, payload, pure=False)

    def flood(self, payloads: Iterator[Payload], in_flight: int) -> Iterator[Payload]:
        """Submit within a window."""
        return window(self._submit, lambda future: cast(Payload, future.result()), payloads, in_flight)

    def map(self, rows: list[Payload], chunk: int) -> list[Payload] | None:
        """Map in batches of a chunk, and gather."""
        answers: list[Payload] = self._client.gather(self._client.map(echo, rows, pure=False, batch_size=chunk))
        return answers

    def stop(self) -> None:
        """Close client and cluster."""
        for each in (self._client, self._cluster):
            if each is not None:
                each.close()
        self._client = self._cluster = None
        self._scratch.cleanup()


class IPyParallel:
    """ipyparallel's load-balanced view over local engines."""

    name: ClassVar[str] = "ipyparallel"

    def __init__(self) -> None:
        self._cluster: Any = None
        self._view: Any = None

    def start(self) -> None:
        """Start a controller and its engines."""
        import ipyparallel

        self._cluster = ipyparallel.Cluster(n=WORKERS, log_level=logging.ERROR)
        client = self._cluster.start_and_connect_sync(activate=False)
        self._view = client.load_balanced_view()
        self._view.map_sync(echo, [{}] * WORKERS)

    def echo(self, payload: Payload) -> Payload:
        """Apply and wait."""
        answer: Payload = self._view.apply_sync(echo, payload)
        return answer

    def flood(self, payloads: Iterator[Payload], in_flight: int) -> Iterator[Payload]:
        """Apply asynchronously within a window."""
        return window(
            lambda payload: self._view.apply_async(echo, payload),
            lambda handle: cast(Payload, handle.get()),
            payloads,
            in_flight,
        )

    def map(self, rows: list[Payload], chunk: int) -> list[Payload] | None:
        """Map with the view's own chunks."""
        return list(self._view.map_sync(echo, rows, chunksize=chunk))

    def stop(self) -> None:
        """Stop engines and controller."""
        if self._cluster is not None:
            with contextlib.closing(self._view.client) if self._view is not None else contextlib.nullcontext():
                self._cluster.stop_cluster_sync()
            self._cluster = self._view = None
