"""Programs of the configuration: deployed once in a run, where they have changed; what is done by hand stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client
from tests.support.coordinator import CoordinatorProcess
from tests.support.waiting import wait_until

SOURCE = """
import dspy
class QA(dspy.Module):
    def forward(self, question):
        return dspy.Prediction(answer={answer!r})
"""
PREDICT = {"module": "dspy.Predict", "signature": "question -> answer"}
POOLS = {"general": {"size": 1}, "optimizer": {"size": 0}, "neural": {"size": 0}}
WAIT_S = 20.0

Start = Callable[..., Client]


@pytest.fixture
def start(run_dirs: Callable[[], Path]) -> Iterator[Start]:
    """Give a function that starts a coordinator on the test's one data directory, in the place of the one before."""
    folder = run_dirs()
    with ExitStack() as stack:

        def begin(**programs: dict[str, Any]) -> Client:
            stack.close()
            coordinator = stack.enter_context(CoordinatorProcess(folder, pools=POOLS, programs=programs))
            assert coordinator.next_report()["event"] == "ready"
            return stack.enter_context(Client(coordinator.endpoint))

        yield begin


def write(file: Path, answer: str) -> str:
    file.write_text(SOURCE.format(answer=answer))
    return f"{file}:QA"


def answer(client: Client, name: str) -> str:
    return str(client.program(name)(question="?").answer)


def live(client: Client) -> dict[str, tuple[int, str]]:
    """Return of each program the version that is live and who has deployed it."""
    return {row["name"]: (row["version"], row["deployed_by"]) for row in client.programs()}


def not_deployed(client: Client) -> dict[str, str]:
    """Return the programs of the configuration that health says are not deployed, and why."""
    found = client.health()["issues"]
    return {issue["subject"]: issue["text"] for issue in found if issue["name"] == "program_not_deployed"}


def await_program(client: Client, name: str) -> None:
    wait_until(lambda: name in live(client), WAIT_S, f"{name}, of the configuration")


def test_a_new_services_process_deploys_only_what_the_one_before_could_not(start: Start, tmp_path: Path) -> None:
    edited, byhand = write(tmp_path / "edited.py", "as deployed"), write(tmp_path / "byhand.py", "by configuration")
    programs = {
        "edited": {"target": edited}, "byhand": {"target": byhand}, "gone": {"target": PREDICT},
        "last": {"target": PREDICT, "pool": "optimizer"},
    }  # fmt: skip
    client = start(**programs)
    wait_until(lambda: set(live(client)) == {"edited", "byhand", "gone"}, WAIT_S, "those whose pool is not off")
    assert client.deploy("byhand", write(tmp_path / "mine.py", "by hand")).version == 2
    client.undeploy("gone")
    write(tmp_path / "edited.py", "half of an edit")

    client.resize("optimizer", 1)
    os.kill(client.stats()["services"]["pid"], signal.SIGKILL)
    wait_until(lambda: client.stats()["services"]["worker"] == "services-1.2", WAIT_S, "its successor")
    wait_until(lambda: client.stats()["services"]["state"] == "ready", WAIT_S, "the store again")
    await_program(client, "last")
    assert live(client) == {
        "edited": (1, "configuration"), "byhand": (2, "default"), "last": (1, "configuration"),
    }  # fmt: skip
    assert [answer(client, name) for name in ("edited", "byhand")] == ["as deployed", "by hand"]


@pytest.mark.slow
def test_a_new_run_deploys_what_is_new_in_the_configuration(start: Start, tmp_path: Path) -> None:
    kept, changed = write(tmp_path / "kept.py", "kept"), write(tmp_path / "changed.py", "before")
    client = start(kept={"target": kept}, changed={"target": changed}, broken={"target": PREDICT})
    wait_until(lambda: len(live(client)) == 3, WAIT_S, "all three")
    assert client.deploy("kept", write(tmp_path / "mine.py", "learnt")).version == 2
    assert client.deploy("changed", f"{tmp_path}/mine.py:QA").version == 2

    write(tmp_path / "changed.py", "after")
    fails = tmp_path / "fails.py"
    fails.write_text("raise ValueError('at import')\n")
    client = start(kept={"target": kept}, changed={"target": changed}, broken={"target": f"{fails}:QA"})
    wait_until(lambda: "at import" in not_deployed(client).get("broken", ""), WAIT_S, "the issue")
    assert live(client) == {
        "kept": (2, "default"), "changed": (3, "configuration"), "broken": (1, "configuration"),
    }  # fmt: skip
    assert [answer(client, name) for name in ("kept", "changed")] == ["learnt", "after"]
    assert client.program("broken")(question="?").answer
    assert not_deployed(client).keys() == {"broken"}
