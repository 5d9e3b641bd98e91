"""Versions that change under load, and processes that die while they do: nothing is lost, mixed, or half there."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, Final, Orchestrator, Token, errors
from tests.support.acceptance import SOON_S, pools
from tests.support.coordinator import CoordinatorProcess
from tests.support.failures import failing
from tests.support.waiting import wait_until

SWAPS = 20
CALLERS = 50
SOURCE = """
import time
import dspy
VERSION = {version}
class P(dspy.Module):
    def forward(self, x):
        first = VERSION
        time.sleep(0.01)
        return {{"x": x, "first": first, "last": VERSION, "made": MADE}}
MADE = {version}
"""
LONG = """
import time
from pathlib import Path
import dspy
from bridge.sessions import current_session
from orchestrator import connect

class P(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first_{version} = dspy.Predict("question -> answer")
        self.second_{version} = dspy.Predict("question -> answer")

    def forward(self, question, begun="", gate="", ask=""):
        told = [{version}, *self.asked(ask), self.first_{version}(question=question).answer]
        if begun:
            Path(begun).touch()
        while gate and not Path(gate).exists():
            time.sleep(0.002)
        told += [*self.asked(ask), self.second_{version}(question=question).answer]
        if (session := current_session()) is not None:
            session.state["ran"] = [*session.state.get("ran", []), {version}]
        return {{"told": told, "version": {version}}}

    def asked(self, name):
        if not name:
            return []
        with connect() as client:
            return [client.program(name)(question="nested")["version"]]
"""


def write(folder: Path, version: int) -> str:
    (folder / "swapped.py").write_text(SOURCE.format(version=version))
    return f"{folder}/swapped.py:P"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    settings: dict[str, Any] = {
        "pools": pools(2),
        "limits": {"poison_deaths": 2},
        "lms": {"default": {"model": "offline/knn"}},
    }
    with Orchestrator(**settings) as orchestrator, orchestrator.client() as client:
        yield client


# --- under load ---------------------------------------------------------------------------------------


class Load:
    """Callers that call a program again and again, alone and by rows; what they saw, and what was wrong with it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self.live = 0
        self.answered = 0
        self.rows = 0
        self.wrong: list[str] = []
        self._numbers = itertools.count()
        callers: list[Callable[[], None]] = [self._call] * CALLERS + [self._rows] * 2
        self._pool = ThreadPoolExecutor(len(callers))
        self._callers = [self._pool.submit(self._repeat, caller) for caller in callers]

    def _repeat(self, caller: Callable[[], None]) -> None:
        while not self._stop.is_set():
            caller()

    def _call(self) -> None:
        number, live = next(self._numbers), self.live
        self._look(number, self._client.program("swapped")(x=number), live)
        self.answered += 1

    def _rows(self) -> None:
        numbers, live = [next(self._numbers) for _ in range(16)], self.live
        found = list(self._client.map("swapped", [{"x": number} for number in numbers], chunk=16))
        for number, one in zip(numbers, found, strict=True):
            self._look(number, one, live)
        if len({one["first"] for one in found}) != 1:
            self.wrong.append(f"rows of one request of {sorted({one['first'] for one in found})}")
        self.rows += len(found)

    def _look(self, number: int, found: Any, live: int) -> None:
        if found["x"] != number:
            self.wrong.append(f"asked {number}, was answered {found}")
        if not found["first"] == found["last"] == found["made"]:
            self.wrong.append(f"mixed: {found}")
        if found["first"] < live:
            self.wrong.append(f"version {found['first']} for a call that began when {live} was live")

    def has_answered(self, number: int) -> bool:
        return self.answered >= number

    def end(self) -> None:
        """Let the callers end. Raises what a call of theirs raised."""
        self._stop.set()
        for caller in self._callers:
            caller.result(SOON_S)
        self._pool.shutdown()


def test_twenty_hot_swaps_under_fifty_calls_lose_and_mix_none(client: Client, tmp_path: Path) -> None:
    client.deploy("swapped", write(tmp_path, 0))
    load = Load(client)
    try:
        for version in range(1, SWAPS + 1):
            assert client.deploy("swapped", write(tmp_path, version), warm=version % 2 == 0).created
            load.live = version
            wait_until(partial(load.has_answered, load.answered + CALLERS // 2), SOON_S, "calls between two swaps")
    finally:
        load.end()
    assert load.wrong == []
    assert load.answered > SWAPS * CALLERS // 2
    assert load.rows > 0
    assert client.program("swapped")(x=1)["made"] == SWAPS
    requests = client.stats()["requests"]
    assert requests["accepted"] == requests["settled"] + requests["queued"] + requests["in_flight"]
    client.undeploy("swapped")


# --- what runs while it changes -----------------------------------------------------------------------


@pytest.fixture
def swap(client: Client, tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Deploy version 1 of `long`; give what deploys another. A call of it waits for the file `gate`."""

    def deploy(version: int) -> None:
        (tmp_path / "long.py").write_text(LONG.format(version=version))
        assert client.deploy("long", f"{tmp_path}/long.py:P", warm=True).created

    deploy(1)
    yield deploy
    client.undeploy("long")


def test_a_stream_ends_on_the_version_that_it_began_with(
    client: Client, swap: Callable[[int], None], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    stream = client.stream("long", {"question": "how?", "gate": str(gate)})
    items = [next(stream), next(stream)]
    assert Token("answer", "how?", "first_1") in items
    swap(2)
    assert client.program("long")(question="and now?")["version"] == 2
    gate.touch()
    *rest, final = stream
    assert [one for one in rest if isinstance(one, Token)] == [Token("answer", "how?", "second_1")]
    assert isinstance(final, Final)
    assert final.value == {"told": [1, "how?", "how?"], "version": 1}
    with client.stream("long", {"question": "how?"}) as stream:
        assert {one.predictor for one in stream if isinstance(one, Token)} == {"first_2", "second_2"}


def test_a_nested_call_runs_what_is_live_when_it_is_made(
    client: Client, swap: Callable[[int], None], tmp_path: Path
) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    outer = client.submit("long", {"question": "q", "begun": str(begun), "gate": str(gate), "ask": "long"})
    wait_until(begun.exists, SOON_S, "the first half")
    swap(2)
    gate.touch()
    found = outer.result(SOON_S)
    assert found["version"] == 1
    assert [one for one in found["told"] if isinstance(one, int)] == [1, 1, 2]


def test_a_session_goes_on_with_the_next_version(client: Client, swap: Callable[[int], None], tmp_path: Path) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    with client.session("swapped") as session:
        session.call("long", question="one")
        home = session.worker
        running = session.submit("long", {"question": "two", "begun": str(begun), "gate": str(gate)})
        wait_until(begun.exists, SOON_S, "its second call")
        swap(2)
        gate.touch()
        assert running.result(SOON_S)["version"] == 1
        assert session.call("long", question="three")["version"] == 2
        assert session.state["ran"] == [1, 1, 2]
        assert session.worker == home
        assert [turn["inputs"]["question"] for turn in session.history()] == ["one", "two", "three"]
        session.expire()


# --- processes that die ---------------------------------------------------------------------------------


def outcome(future: Future[Any]) -> BaseException | None:
    return future.exception(SOON_S)


def whole(client: Client, before: int, wanted: int, error: BaseException | None) -> int:
    """Return the version that is live after a deployment: the one wanted, all of it, or the one before it."""
    live = client.program_version("swapped")
    assert client.program("swapped")(x=1)["made"] == int(live["note"])
    assert int(live["note"]) in (before, wanted)
    assert error is None or isinstance(error, errors.Unavailable), error
    if error is None:
        assert int(live["note"]) == wanted, "it was answered, and is gone"
    numbers = [row["version"] for row in client.versions("swapped")]
    assert numbers == sorted(set(numbers))
    return int(live["note"])


def ask(client: Client, call: Callable[[], Any]) -> Any:
    """Return what is answered once the services process is there."""
    until = time.monotonic() + SOON_S
    while True:
        try:
            return call()
        except errors.Unavailable:
            assert time.monotonic() < until
            time.sleep(0.05)


def kill_services(client: Client, folder: Path, delays_s: Iterable[float]) -> None:
    client.deploy("swapped", write(folder, 0), note="0")
    now, outcomes = 0, set()
    for version, delay_s in enumerate(delays_s, start=1):
        pid = client.stats()["services"]["pid"]
        args = {"name": "swapped", "target": write(folder, version), "note": str(version), "warm": version % 3 == 0}
        deployment = client.submit("programs.deploy", args)
        time.sleep(delay_s)  # the moment is what varies
        os.kill(pid, signal.SIGKILL)
        error = outcome(deployment)
        outcomes.add(type(error))
        assert client.program("swapped")(x=1)["made"] in (now, version)  # calls go on meanwhile
        ask(client, client.programs)
        now = whole(client, now, version, error)
    assert errors.Unavailable in outcomes
    assert client.deploy("swapped", write(folder, 9999), note="9999").created
    assert client.program("swapped")(x=1)["made"] == 9999
    client.undeploy("swapped")


def test_a_deployment_whose_services_process_is_killed_is_whole_or_absent(client: Client, tmp_path: Path) -> None:
    kill_services(client, tmp_path, (0.0, 0.008, 0.016))


@pytest.mark.slow
def test_however_often_the_services_process_is_killed_deployments_are_whole_or_absent(
    client: Client, tmp_path: Path
) -> None:
    kill_services(client, tmp_path, [number * 0.0015 for number in range(40)])


def test_a_deployment_whose_worker_is_killed_changes_nothing(client: Client, tmp_path: Path) -> None:
    client.deploy("swapped", write(tmp_path, 0), note="0")
    before = client.versions("swapped")
    begun = tmp_path / "begun"
    hanging = f"import os, time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    for _ in range(3):  # as often as it takes to be thought poison, were it a request of a user's
        (tmp_path / "hanging.py").write_text(hanging)
        deployment = client.submit("programs.deploy", {"name": "swapped", "target": f"{tmp_path}/hanging.py:P"})
        pid = wait_until(lambda: begun.exists() and begun.read_text(), SOON_S, "the load")
        os.kill(int(pid), signal.SIGKILL)
        assert isinstance(outcome(deployment), errors.WorkerLost)
        begun.unlink()
    assert client.versions("swapped") == before
    assert client.program("swapped")(x=1)["made"] == 0
    (tmp_path / "hanging.py").write_text((tmp_path / "swapped.py").read_text().replace("= 0", "= 5"))
    assert client.deploy("swapped", f"{tmp_path}/hanging.py:P").created
    assert client.program("swapped")(x=1)["made"] == 5
    client.undeploy("swapped")


def kill_coordinators(tmp_path: Path, delays_s: Iterable[float]) -> None:
    (tmp_path / "kept.py").write_text("import dspy\nclass P(dspy.Module):\n    def forward(self): return 'kept'\n")
    settings = {"refused": {"target": f"{tmp_path}/missing.py:P"}, "kept": {"target": f"{tmp_path}/kept.py:P"}}
    now, error = 0, None
    with tempfile.TemporaryDirectory(prefix="h") as folder:
        for version, delay_s in enumerate((*delays_s, None), start=1):
            with coordinator(Path(folder), programs=settings) as (pid, client):
                if version == 1:
                    client.deploy("swapped", write(tmp_path, 0), note="0")
                else:
                    now = whole(client, now, version - 1, error)
                configured(client)
                if delay_s is not None:
                    args = {"name": "swapped", "target": write(tmp_path, version), "note": str(version)}
                    deployment = client.submit("programs.deploy", args)
                    time.sleep(delay_s)  # the moment is what varies
                    os.kill(pid, signal.SIGKILL)
                    error = outcome(deployment)


def test_programs_are_there_after_the_coordinator_was_killed_in_the_middle_of_a_deployment(tmp_path: Path) -> None:
    kill_coordinators(tmp_path, [0.016])


@pytest.mark.slow
def test_however_often_the_coordinator_is_killed_deployments_are_whole_or_absent(tmp_path: Path) -> None:
    kill_coordinators(tmp_path, [number * 0.004 for number in range(10)])


@contextmanager
def coordinator(folder: Path, **settings: Any) -> Iterator[tuple[int, Client]]:
    with CoordinatorProcess(folder, **settings) as found:
        assert found.next_report() == {"event": "ready"}
        with Client(found.endpoint) as client:
            yield found.process.pid, client


def configured(client: Client) -> None:
    """Assert that the programs of the configuration are there, and that the one that cannot be is told."""

    def answers() -> bool:
        with suppress(errors.NotFound):  # a version is committed a moment before the coordinator is told of it
            return bool(client.program("kept")() == "kept")
        return False

    wait_until(answers, SOON_S, "the configured program")
    assert client.versions("kept")[0]["deployed_by"] == "configuration"
    assert [row["version"] for row in client.versions("kept")] == [1]
    failing(errors.NotFound, lambda: client.versions("refused"))
    issues = wait_until(
        lambda: [one for one in client.health()["issues"] if one["subject"] == "refused"], SOON_S, "the issue"
    )
    assert "missing.py" in issues[0]["text"]
