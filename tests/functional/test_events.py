"""The event log of a real coordinator: who follows it misses nothing, whoever leaves and whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import Client, FleetEvent, Orchestrator, errors
from orchestrator.cli.app import app
from tests.support.acceptance import ROOT, SOON_S, pools
from tests.support.coordinator import CoordinatorProcess
from tests.support.waiting import wait_until

BROKEN = """
import dspy

class Broken(dspy.Module):
    def forward(self, question):
        raise ValueError("it cannot " + question)
"""


class Follower(threading.Thread):
    """Reads the event log until the client's end."""

    def __init__(self, client: Client, after: int = 0) -> None:
        super().__init__(daemon=True)
        self._source = client.events(after)
        self.events: list[FleetEvent] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            for event in self._source:
                self.events.append(event)
        except errors.DspoolError as error:
            self.error = error

    def await_event(self, name: str, **fields: Any) -> FleetEvent:
        def find() -> list[FleetEvent]:
            return [
                event for event in list(self.events) if event.event == name and fields.items() <= event.fields.items()
            ]

        wait_until(lambda: bool(find()), SOON_S, f"{name} {fields} among {self.events}")
        return find()[0]


@pytest.fixture(scope="module")
def orc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    with Orchestrator(pools=pools(2)) as orchestrator:
        yield orchestrator


@pytest.fixture
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client(principal="ann") as client:
        yield client


def test_followers_hear_what_happens_as_it_happens(orc: Orchestrator, client: Client, tmp_path: Path) -> None:
    source = tmp_path / "broken.py"
    source.write_text(BROKEN)
    with orc.client() as first, orc.client() as second:
        followers = [Follower(first), Follower(first), Follower(second)]
        client.deploy("broken", f"{source}:Broken")
        with pytest.raises(errors.RemoteError):
            client.execute("broken", {"question": "answer"})
        victim = next(row for row in client.workers() if row["state"] == "ready")
        os.kill(victim["pid"], signal.SIGKILL)
        for follower in followers:
            follower.await_event("coordinator_started", run=1)
            follower.await_event("worker_ready", worker="general-1.1")
            follower.await_event("program_deployed", program="broken", version=1)
            failed = follower.await_event("request_failed", operation="broken").fields
            assert (failed["code"], failed["principal"], failed["pool"]) == ("REMOTE_ERROR", "ann", "general")
            assert failed["type"] == "ValueError"
            assert not [event for event in follower.events if "it cannot answer" in str(event)], "the caller's alone"
            exited = follower.await_event("worker_exited", worker=victim["id"])
            assert (exited.level, exited.fields["intended"]) == ("warning", False)
        ready = followers[0].await_event("worker_ready", worker=victim["id"].replace(".1", ".2"))
        for follower in followers:
            wait_until(lambda one=follower: one.events[-1].seq >= ready.seq, SOON_S, "the last event")  # type: ignore[misc]
            known = [event for event in follower.events if event.seq <= ready.seq]
            assert [event.seq for event in known] == list(range(known[0].seq, ready.seq + 1))
        state = client.stats()["events"]
        assert state["first"] == followers[0].events[0].seq
        wait_until(lambda: client.stats()["events"]["saved"] >= ready.seq, SOON_S, "what is saved")
    for follower in followers:
        follower.join(SOON_S)
        assert isinstance(follower.error, errors.Cancelled)


def test_who_comes_again_with_the_last_number_misses_nothing(orc: Orchestrator, client: Client) -> None:
    with orc.client() as gone:
        seen = list(gone.events(follow=False))
    worker = next(row["id"] for row in client.workers() if row["state"] == "ready")
    client.restart(worker)
    follower = Follower(client, seen[-1].seq)
    last = follower.await_event("worker_exited", worker=worker)
    assert [event.seq for event in follower.events[:2]] == [seen[-1].seq + 1, seen[-1].seq + 2]
    assert [event.seq for event in client.events(follow=False)][: len(seen)] == [event.seq for event in seen]
    assert last in list(client.events(last.seq - 1, follow=False))


def test_an_event_loop_follows_too(orc: Orchestrator) -> None:
    async def read() -> list[str]:
        async with orc.async_client() as client:
            past = [event async for event in client.events(follow=False)]
            found = []
            async for event in client.events(past[-1].seq):
                found.append(event.event)
                if event.event == "request_failed":
                    return found
        return []

    async def fail() -> None:
        async with orc.async_client() as client:
            with pytest.raises(errors.NotFound):
                await client.execute("nobody_knows_it")

    async def both() -> list[str]:
        reader = asyncio.create_task(read(), name="reader")
        while not reader.done():
            await fail()
            await asyncio.wait([reader], timeout=0.2)
        return await reader

    assert asyncio.run(asyncio.wait_for(both(), SOON_S))[-1] == "request_failed"


def test_a_number_of_nowhere_is_told_of(client: Client) -> None:
    events = list(client.events(77 << 32, follow=False))
    assert [event.event for event in events[:2]] == ["events_lost", "coordinator_started"]
    with pytest.raises(errors.InvalidRequest, match="after"):
        client.events(-1)


def test_what_saves_events_is_not_for_clients(client: Client) -> None:
    with pytest.raises((errors.NotFound, errors.Unauthenticated)):
        client.execute("events.save", [[1, 1.0, "invented", "info", {}]])


def test_the_command_line_shows_them(client: Client) -> None:
    def dspool(*words: str) -> str:
        done = CliRunner().invoke(app, ["events", *words], env={"DSPOOL_ENDPOINT": client.endpoint})
        assert done.exit_code == 0, done.output
        return done.stdout

    lines = dspool().splitlines()
    assert any("coordinator_started" in line and "run=1" in line for line in lines)
    told = [json.loads(line) for line in dspool("--json").splitlines()]
    assert [line.partition(" ")[0] for line in lines] == [str(event["seq"]) for event in told][: len(lines)]
    assert set(told[0]) == {"seq", "at", "event", "level", "fields"}
    assert dspool("--after", str(told[-1]["seq"])).count("\n") <= 1
    refused = CliRunner().invoke(app, ["events", "--after", "-5"], env={"DSPOOL_ENDPOINT": client.endpoint})
    assert refused.exit_code == 2


# --- over restarts ----------------------------------------------------------------------------------


@pytest.fixture
def start(run_dirs: Callable[[], Path], tmp_path: Path) -> Callable[[], CoordinatorProcess]:
    """Return a function that starts a coordinator, always with the same data directory and a store in it."""
    folder = run_dirs()
    (folder / "r").mkdir(mode=0o700)
    source = tmp_path / "broken.py"
    source.write_text(BROKEN)
    programs = {"broken": {"target": f"{source}:Broken", "pool": "general"}}

    def starting() -> CoordinatorProcess:
        coordinator = CoordinatorProcess(folder, programs=programs)
        assert coordinator.next_report() == {"event": "ready"}
        return coordinator

    return starting


def test_over_restarts_and_crashes_nothing_is_missed_unsaid(start: Callable[[], CoordinatorProcess]) -> None:
    with start() as coordinator, Client(coordinator.endpoint) as client:
        follower = Follower(client)
        follower.await_event("program_deployed", program="broken")
        coordinator.process.terminate()
        assert coordinator.process.wait(SOON_S) == 0
        follower.join(SOON_S)
        assert isinstance(follower.error, errors.Unavailable)
        first = follower.events
    with start() as coordinator, Client(coordinator.endpoint) as client:
        follower = Follower(client, first[-1].seq)
        assert follower.await_event("coordinator_started").fields["run"] == 2
        follower.await_event("worker_ready", worker="general-1.1")
        everything = list(client.events(follow=False))
        assert "coordinator_stopped" in [event.event for event in everything if event.seq < 2 << 32]
        assert [event.seq for event in follower.events] == [
            event.seq for event in everything if first[-1].seq < event.seq <= follower.events[-1].seq
        ]
        assert [event.seq for event in everything[: len(first)]] == [event.seq for event in first]
        assert len({event.seq for event in everything}) == len(everything)
        wait_until(lambda: client.stats()["events"]["saved"] >= follower.events[-1].seq, SOON_S, "what is saved")
        saved = client.stats()["events"]["saved"]
        coordinator.process.kill()
        coordinator.process.wait(SOON_S)
        follower.join(SOON_S)
        assert isinstance(follower.error, errors.Unavailable)
    with start() as coordinator, Client(coordinator.endpoint) as client:
        events = list(client.events(saved, follow=False))
        after = [event for event in events if event.seq >= 3 << 32]
        assert [event.event for event in after[:2]] == ["coordinator_started", "events_lost"]
        assert after[1].fields["of_run"] == 2
        kept = [event.seq for event in client.events(follow=False) if event.seq < 3 << 32]
        seen = {event.seq for event in [*first, *everything, *follower.events]}
        assert kept == sorted(seq for seq in seen if seq <= kept[-1])
        assert kept[-1] >= saved


@pytest.mark.slow
def test_the_command_line_follows_over_a_restart(run_dirs: Callable[[], Path]) -> None:
    folder = run_dirs()
    settings = {"run_dir": str(folder / "r"), "data_dir": str(folder / "d"), "pools": pools(1)}
    config = folder / "dspool.yaml"
    config.write_text(json.dumps(settings))
    environ = {**os.environ, "DSPOOL_CONFIG": str(config)}

    def dspool(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "orchestrator.cli", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT)

    def done(*words: str) -> None:
        process = dspool(*words)
        process.communicate(timeout=60)
        assert process.returncode == 0

    done("up", "-d")
    try:
        follower = dspool("events", "--follow", "--after", "0", "--json")
        lines: list[dict[str, Any]] = []
        reader = threading.Thread(
            target=lambda: lines.extend(map(json.loads, follower.stdout or [])), daemon=True
        )  # fmt: skip
        reader.start()
        wait_until(lambda: any(line["event"] == "worker_ready" for line in lines), SOON_S, "the first run")
        done("down")
        done("up", "-d")
        wait_until(lambda: sum(line["event"] == "worker_ready" for line in lines) == 2, SOON_S, "the second run")
        follower.send_signal(signal.SIGINT)
        assert follower.wait(SOON_S) == 130
        reader.join(SOON_S)
        follower.communicate()
        runs = [divmod(line["seq"], 1 << 32) for line in lines]
        last = max(number for run, number in runs if run == 1)
        assert runs == [*((1, number) for number in range(1, last + 1)), *runs[last:]]
        assert runs[last:] == [(2, number) for number in range(1, len(runs) - last + 1)]
    finally:
        done("down")
