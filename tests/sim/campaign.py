"""Many histories: by how many processes, for how long, and what they came to."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

from tests.sim.history import Failure, play_seeds

_CHUNK: Final = 250
_PROGRESS_S: Final = 10.0


@dataclass
class Campaign:
    """What a run of many histories has come to."""

    seed: int
    histories: int = 0
    seconds: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    failure: Failure | None = None

    def add(self, histories: int, seen: Counter[str], failure: Failure | None) -> None:
        """Count a chunk in."""
        self.histories += histories
        self.seen.update(seen)
        self.failure = self.failure or failure


def _play_chunk(seeds: range) -> tuple[int, Counter[str], Failure | None]:
    seen: Counter[str] = Counter()
    failure = play_seeds(seeds, seen)
    played = len(seeds) if failure is None else seeds.index(failure.schedule.seed) + 1
    return played, seen, failure


def _chunks(seed: int, histories: int | None) -> Iterator[range]:
    end = None if histories is None else seed + histories
    while end is None or seed < end:
        upper = seed + _CHUNK if end is None else min(end, seed + _CHUNK)
        yield range(seed, upper)
        seed = upper


def run(seed: int, histories: int | None, seconds: float | None, jobs: int, *, quiet: bool) -> Campaign:
    """Play histories from a seed on, until there were so many, so long, or one failed."""
    campaign = Campaign(seed)
    began = time.monotonic()
    told = began
    for chunk in _results(_chunks(seed, histories), jobs):
        campaign.add(*chunk)
        now = time.monotonic()
        campaign.seconds = now - began
        if now - told >= _PROGRESS_S and not quiet:
            told = now
            rate = campaign.histories / campaign.seconds
            print(f"{campaign.histories:>10,} histories  {campaign.seconds:7.0f} s  {rate:6.0f}/s", flush=True)
        if campaign.failure is not None or (seconds is not None and campaign.seconds >= seconds):
            break
    return campaign


def _results(chunks: Iterator[range], jobs: int) -> Iterator[tuple[int, Counter[str], Failure | None]]:
    if jobs == 1:
        yield from map(_play_chunk, chunks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: set[Future[tuple[int, Counter[str], Failure | None]]] = set()
        try:
            while True:
                while len(waiting) < 2 * jobs and (chunk := next(chunks, None)) is not None:
                    waiting.add(pool.submit(_play_chunk, chunk))
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
