"""The demo, step by step. Every figure that it prints was measured in the run that prints it."""

from __future__ import annotations

import itertools
import signal
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import psutil

from orchestrator import Orchestrator
from orchestrator.cli.plain import mebibytes, milliseconds, readable
from orchestrator.cli.progress import follow
from orchestrator.cli.screen import fill, table
from orchestrator.demo.load import kill_under_load
from orchestrator.demo.tickets import Tickets, rows
from orchestrator.errors import DspoolError
from orchestrator.processes import Process, descendants, process, survivors

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from orchestrator.client.client import Client
    from orchestrator.client.future import Future

SEED: Final = 0
# The story is the same on every machine.
_POOLS: Final = {"general": {"size": 2}, "optimizer": {"size": 1}, "neural": {"size": 1}}
_SLOW_MS: Final = 40
_LOAD_CALLS: Final = 300
_QUESTIONS: Final = (
    ("text -> amount: float", "The invoice of last month says 129.50 euros.", {"amount": 129.5}),
    ("text -> team: Literal['billing', 'delivery']", "My parcel is late, who does delivery?", {"team": "delivery"}),
)
_OPTIMIZER: Final = "BootstrapFewShot"
_PARAMS: Final = {"max_bootstrapped_demos": 4, "max_labeled_demos": 16}
# Test accuracy, in percentage points.
_MIN_GAIN: Final = 20.0
_FLOOD_S: Final = 1.0
_FLOOD_IN_FLIGHT: Final = 100
_MAP_ROWS: Final = 20_000
_SEARCH: Final = "the parcel never arrived"
_LEFT_TIMEOUT_S: Final = 2.0


class StepFailed(Exception):
    """A step did not show what it is there to show."""


def tell(console: Console) -> bool:
    """Run the demo; print what happens; return whether every step did what it should."""
    story = Story(console)
    try:
        return story.run()
    except (StepFailed, DspoolError, TimeoutError) as exc:
        console.print(f"[bold red]step {story.step} failed:[/] ", end="")
        console.print(str(exc), markup=False)
        return False


class Story:
    """One run of the demo."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tickets = Tickets.find()
        self.step = 0

    def run(self) -> bool:
        """Tell everything."""
        began = time.monotonic()
        self._say("The language model in this demo is offline/knn: no network and no LLM. With demonstrations in the")
        self._say("prompt it answers like the nearest one, without them by simple rules. The processes are real.")
        lms = {"default": {"model": "offline/knn"}, "slow": {"model": f"offline/knn?latency_ms={_SLOW_MS}"}}
        self._head("Three pools of worker processes come up")
        started = time.monotonic()
        with Orchestrator(lms=lms, pools=_POOLS) as orchestrator:
            took_s = time.monotonic() - started
            with orchestrator.client() as client:
                self._pools(client, orchestrator.pid, took_s)
                self._questions(client)
                self._death(client)
                self._optimization(client)
                self._embedding(client)
                self._throughput(client)
            self._head("Everything stops")
            pid, home = orchestrator.pid, orchestrator.log_file.parent
            family = [found for found in [process(pid), *descendants(pid)] if found is not None]
            stopping = time.monotonic()
        self._nothing_left(family, home, time.monotonic() - stopping)
        self._say(f"\nThat took {time.monotonic() - began:.1f} s.")
        return True

    # --- the steps ----------------------------------------------------------------------------

    def _pools(self, client: Client, pid: int, took_s: float) -> None:
        workers = client.workers()
        made = table("pool", "worker", ">pid", ">boot ms", ">RSS MiB")
        self._console.print(
            fill(
                made,
                (
                    [
                        row["pool"],
                        row["id"],
                        row["pid"],
                        milliseconds(row["boot_ms"]),
                        mebibytes(_rss_bytes(row["pid"])),
                    ]
                    for row in workers
                ),
            )
        )
        _demand({row["pool"] for row in workers} >= {"general", "optimizer", "neural"}, "a pool has no worker")
        self._say(f"{len(workers)} workers of coordinator {pid} are ready after {took_s:.1f} s.")

    def _questions(self, client: Client) -> None:
        self._head("Questions are answered: dspy.ChainOfThought in the general pool, on offline/knn")
        for signature, text, expected in _QUESTIONS:
            prediction = client.module("dspy.ChainOfThought", signature)(text=text)
            self._say(f"  {signature}")
            self._say(f"  text: {text}")
            self._say("  " + readable(prediction).replace("\n", "\n  "))
            if (meta := prediction.meta) is not None:
                used = f"{meta.lm_calls} LM call, {meta.tokens} words as tokens"
                self._say(f"  ({meta.worker}, {meta.total_ms:.0f} ms, {used})\n")
            _demand(expected.items() <= dict(prediction).items(), f"expected {expected}, got {prediction}")

    def _death(self, client: Client) -> None:
        self._head(f"A general worker is killed while {_LOAD_CALLS} calls are under way")
        self._say(f"  each call: dspy.ChainOfThought on offline/knn with {_SLOW_MS} ms of latency added")
        args = {"signature": _QUESTIONS[0][0], "inputs": {"text": _QUESTIONS[0][1]}}
        victim, seen = kill_under_load(client, "dspy.ChainOfThought", args, calls=_LOAD_CALLS, lm="slow")
        self._say(f"  SIGKILL to {victim.worker_id} (pid {victim.pid})")
        self._say(
            f"  {seen.answered} callers got their answer, {seen.answered_meanwhile} of them while it was replaced"
        )
        if seen.lost:
            error = seen.lost[0]
            name = signal.Signals(error.signal).name if error.signal else error.cause
            executed = ", ".join(sorted({one.executed for one in seen.lost}))
            self._say(
                f"  {len(seen.lost)} got WorkerLost(signal={name}, worker={error.worker}, executed={executed}), "
                f"at most {seen.told_s * 1000:.0f} ms after the kill"
            )
        for what, count in seen.other.items():
            self._say(f"  {count} got {what}")
        self._say(
            f"  {seen.replacement} took its place: ready after {seen.ready_s * 1000:.0f} ms, its first answer after "
            f"{seen.answered_s * 1000:.0f} ms, {_SLOW_MS} of them the model's"
        )
        _demand(not seen.other, "callers saw errors other than WorkerLost")
        _demand(bool(seen.lost), "the worker was killed, but nobody was told")
        _demand(seen.answered + len(seen.lost) == _LOAD_CALLS, "a call was not settled")

    def _optimization(self, client: Client) -> None:
        self._head(f"A program learns: {_OPTIMIZER} in the optimizer pool, bundled support tickets, seed {SEED}")
        self._say(f"  on offline/knn with {_SLOW_MS} ms of latency added, so that there is something to watch")
        tickets = self._tickets
        client.deploy("tickets", tickets.program)
        before = _accuracy(client, tickets.test)
        job = client.optimize(
            "tickets", optimizer=_OPTIMIZER, trainset=str(tickets.train), valset=str(tickets.validation),
            metric="exact:team", params=dict(_PARAMS), seed=SEED, lm="slow",
        )  # fmt: skip
        follow(job, self._console)
        result = job.result()
        version = result.deploy()
        after = _accuracy(client, tickets.test)
        self._say(f"  validation score {result.baseline_score:.0f} % → {result.score:.0f} %")
        self._say(
            f"  test accuracy    {before:.0f} % → {after:.0f} %, of {len(rows(tickets.test))} tickets never trained on "
            f"(version {version.version} is deployed)"
        )
        _demand(after - before >= _MIN_GAIN, f"optimization did not lift the accuracy by {_MIN_GAIN:g} points")

    def _embedding(self, client: Client) -> None:
        self._head("Texts are embedded in the neural pool (offline/hash: hashed words and letters, no neural network)")
        texts = [str(row["ticket"]) for row in rows(self._tickets.train)]
        began = time.monotonic()
        vectors = client.embed(texts)
        took_s = time.monotonic() - began
        nearest = int((vectors @ client.embed([_SEARCH])[0]).argmax())
        self._say(f"  {len(texts)} texts → {vectors.dtype} array of shape {vectors.shape} in {took_s * 1000:.0f} ms")
        self._say(f"  nearest to {_SEARCH!r}: {texts[nearest]!r}")
        _demand(vectors.shape[0] == len(texts), "a text has no vector")

    def _throughput(self, client: Client) -> None:
        self._head("How fast is a call? Operation echo, executed in the general pool")
        calls_per_s = _flood(client)
        began = time.monotonic()
        echoed = list(client.map("echo", range(_MAP_ROWS)))
        items_per_s = _MAP_ROWS / (time.monotonic() - began)
        _demand(echoed == list(range(_MAP_ROWS)), "map returned other rows than it was given")
        self._say(f"  {calls_per_s:,.0f} calls/s with {_FLOOD_IN_FLIGHT} in flight; map: {items_per_s:,.0f} items/s")

    def _nothing_left(self, family: list[Process], home: Path, took_s: float) -> None:
        left = survivors(family, _LEFT_TIMEOUT_S)
        for each in left:
            self._say(f"  still there: {each}")
        gone = "left behind" if home.exists() else "gone"
        self._say(f"  stopped in {took_s:.1f} s; {len(left)} processes left of {len(family)}; {home} is {gone}")
        _demand(not left, "a process outlived the coordinator")
        _demand(not home.exists(), f"{home} was not removed")

    # --- printing -----------------------------------------------------------------------------

    def _head(self, text: str) -> None:
        self.step += 1
        self._console.print()
        self._console.print(f"{self.step}. {text}", style="bold", markup=False)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StepFailed(otherwise)


def _rss_bytes(pid: int) -> int:
    # The worker's own figure comes with its first heartbeat.
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _accuracy(client: Client, path: Path) -> float:
    """Return the share of a file's tickets that the deployed program routes as labelled, in percent."""
    data = rows(path)
    found = client.map("tickets", [{"ticket": row["ticket"]} for row in data])
    right = sum(bool(prediction["team"] == row["team"]) for prediction, row in zip(found, data, strict=True))
    return 100.0 * right / len(data)


def _flood(client: Client) -> float:
    """Return calls per second with a constant number of calls in flight."""
    waiting: deque[tuple[int, Future]] = deque()
    began = time.monotonic()
    for number in itertools.count():
        if len(waiting) >= _FLOOD_IN_FLIGHT:
            _demand_echo(*waiting.popleft())
        if time.monotonic() - began >= _FLOOD_S:
            break
        waiting.append((number, client.submit("echo", number)))
    for sent, future in waiting:
        _demand_echo(sent, future)
    return number / (time.monotonic() - began)


def _demand_echo(sent: int, future: Future) -> None:
    _demand(future.result() == sent, "an echo returned something else than it was sent")
