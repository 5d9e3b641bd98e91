"""A store that is ahead of this data directory's count of runs, and is gone for a while under its coordinator."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.protocol.kept import write_state
from bridge.wallclock import unix_now
from orchestrator import Client, errors
from orchestrator.services.store import EventRow, SessionSave, Store, store_path
from tests.support.coordinator import CoordinatorProcess
from tests.support.waiting import wait_until

TALKER = f"{Path(__file__).parents[1] / 'support' / 'programs' / 'talker.py'}:Talker"
POOLS = {"general": {"size": 1, "slots": 2}, "optimizer": {"size": 0}, "neural": {"size": 0}}
SOON_S = 15.0
EVENTS = [EventRow(3 << 32 | number, 1.0, "happened", "info", {}) for number in (1, 2)]


def fill(file: Path) -> None:
    """Make a store as run 3 of a coordinator elsewhere has left it."""
    file.parent.mkdir(mode=0o700)
    session = SessionSave(
        principal="default", id="s", generation=3 << 32 | 1, seq=4, ttl_s=600.0,
        options={"affinity": "hint", "on_loss": "restore"}, state=write_state({"count": 9}, 4, 1000),
        touched_at=unix_now(),
    )  # fmt: skip
    with Store.open(file) as store:
        store.events.append(EVENTS)
        store.sessions.save([session])


def services(client: Client) -> Any:
    return client.stats()["services"]


def move(folder: Path, name: str, other: str) -> None:
    """Give a store, with its journal, another name."""
    for file in folder.glob(f"{name}*"):
        file.rename(str(file).replace(name, other))


def test_numbers_go_on_behind_the_store_s_and_without_it_what_is_deployed_is_served(
    run_dirs: Callable[[], Path],
) -> None:
    folder = run_dirs()
    file = store_path(folder / "d")
    fill(file)
    with CoordinatorProcess(folder, pools=POOLS, sessions={"durable": True}) as coordinator:
        assert coordinator.next_report()["event"] == "ready"
        with Client(coordinator.endpoint) as client:
            wait_until(lambda: services(client)["state"] == "ready", SOON_S, "the store")
            events = list(client.events(after=0, follow=False))
            assert [event.seq for event in events[:2]] == [row.seq for row in EVENTS]
            assert {event.seq >> 32 for event in events[2:]} == {4}
            assert events[2].event == "coordinator_started"
            assert "run_renumbered" in [event.event for event in events[3:]]
            client.deploy("talker", TALKER)
            session = client.session("s")
            assert session.call("talker", question="a").count == 10
            session.expire()
            assert client.session("s").info()["generation"] >> 32 == 4

            move(file.parent, file.name, "aside")
            os.kill(services(client)["pid"], signal.SIGKILL)
            wait_until(lambda: str(file) in (services(client)["problem"] or ""), SOON_S, "a word of the file")
            wait_until(lambda: "store_failed" in issues(client), SOON_S, "the issue")
            with pytest.raises(errors.StorageError) as refused:
                client.programs()
            assert refused.value.reason == "corrupt"
            assert not file.exists(), "none is made anew"
            assert client.program("talker")(question="c").answer
            assert client.session("s").call("talker", question="d").count == 1
            move(file.parent, "aside", file.name)
            wait_until(lambda: services(client)["store"], SOON_S, "the store that was put back")
            assert [program["name"] for program in client.programs()] == ["talker"]


def issues(client: Client) -> list[str]:
    return [issue["name"] for issue in client.health()["issues"]]
