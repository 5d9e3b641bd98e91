"""Deployments: versions and aliases, what may not be deployed, what is left of one that fails, warm ones."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Orchestrator, errors
from tests.support.acceptance import SOON_S, pools
from tests.support.failures import failing
from tests.support.waiting import wait_until

SOURCE = """
import dspy
class QA(dspy.Module):
    def __init__(self, size=1):
        super().__init__()
        self.answer = dspy.Predict(dspy.Signature("question -> answer", {instructions!r}))
    def forward(self, question):
        return dspy.Prediction(answer={answer!r})
"""
PREDICT = {"module": "dspy.Predict", "signature": "question -> answer"}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Orchestrator(pools=pools(2)) as orchestrator, orchestrator.client() as client:
        yield client


@pytest.fixture
def target(tmp_path: Path) -> str:
    return write(tmp_path, "one")


def write(folder: Path, answer: str, instructions: str = "Answer.") -> str:
    file = folder / "qa.py"
    file.write_text(SOURCE.format(answer=answer, instructions=instructions))
    return f"{file}:QA"


def answer(client: Client, name: str) -> str:
    return str(client.program(name)(question="?").answer)


# --- versions and aliases ---------------------------------------------------------------------------


def test_versions_are_named_by_aliases_and_numbers(client: Client, tmp_path: Path) -> None:
    first = client.deploy("qa", write(tmp_path, "one"), note="the first")
    assert (first.version, first.alias, first.created, first.previous) == (1, "live", True, None)
    again = client.deploy("qa", write(tmp_path, "one"))
    assert (again.version, again.created, again.sha256) == (1, False, first.sha256)
    second = client.deploy("qa", write(tmp_path, "two"), alias="canary")
    assert (second.version, second.created) == (2, True)
    names = ("qa", "qa@live", "qa@1", "qa@canary", "qa@2")
    assert [answer(client, name) for name in names] == ["one", "one", "one", "two", "two"]
    assert client.alias("qa", "live", "canary") == {"name": "qa", "alias": "live", "version": 2, "previous": 1}
    assert answer(client, "qa") == "two"
    failing(errors.NotFound, lambda: answer(client, "qa@1"), "give the version one")
    assert client.rollback("qa")["version"] == 1
    assert answer(client, "qa") == "one"
    assert client.rollback("qa", 2)["previous"] == 1
    client.unalias("qa", "canary")
    failing(errors.NotFound, lambda: answer(client, "qa@canary"))
    rows = client.versions("qa")
    assert [(row["version"], row["aliases"], row["note"]) for row in rows] == [(1, [], "the first"), (2, ["live"], "")]
    assert all(row["deployed_by"] == "default" and time.time() - row["deployed_at"] < 60.0 for row in rows)
    client.undeploy("qa")
    failing(errors.NotFound, lambda: answer(client, "qa"))
    third = client.deploy("qa", write(tmp_path, "three"))
    assert third.version == 3  # a number is never given twice
    client.undeploy("qa")


def test_the_listing_tells_what_is_live(client: Client, target: str) -> None:
    client.deploy("qa", target, config={"size": 2})
    client.deploy("only", PREDICT, alias="canary")
    only, qa = client.programs()
    assert (qa["name"], qa["version"], qa["config"], qa["inputs"]) == ("qa", client.versions("qa")[-1]["version"],
                                                                        {"size": 2}, ["question"])  # fmt: skip
    assert (only["aliases"], only["signature"]) == ({"canary": 1}, "question -> answer")
    failing(errors.NotFound, lambda: client.program("only")(question="?"), "only@canary")
    for name in ("qa", "only"):
        client.undeploy(name)


def test_a_diff_tells_what_differs_and_nothing_else(client: Client, target: str) -> None:
    client.deploy("qa", target)
    state = client.program_version("qa")["state"] or predictor("Answer.")
    changed = {"answer": {**state["answer"], "demos": [{"question": "a", "answer": "b"}]}}
    changed["answer"]["signature"] = {**state["answer"]["signature"], "instructions": "Answer at length."}
    client.deploy("qa", target, state=state)
    client.deploy("qa", target, state=changed, alias="canary", config={"size": 3})
    found = client.diff("qa", "live", "canary")
    assert set(found) == {"name", "a", "b", "same", "instructions", "demos", "config"}
    assert found["instructions"] == {"answer": ["Answer.", "Answer at length."]}
    assert found["demos"] == {"answer": {"added": [{"question": "a", "answer": "b"}], "removed": []}}
    assert found["config"] == [None, {"size": 3}]
    assert client.diff("qa", "live", "live")["same"]
    client.undeploy("qa")


def predictor(instructions: str) -> dict[str, Any]:
    fields = [{"prefix": "Question:", "description": "${question}"}, {"prefix": "Answer:", "description": "${answer}"}]
    return {
        "answer": {
            "traces": [], "train": [], "demos": [], "lm": None,
            "signature": {"instructions": instructions, "fields": fields},
        }
    }  # fmt: skip


def test_the_asynchronous_client_has_the_same_methods(client: Client, target: str) -> None:
    async def use() -> None:
        async with AsyncClient(client.endpoint) as other:
            version = await other.deploy("later", target, alias="canary", note="n")
            assert [row["aliases"] for row in await other.versions("later")] == [["canary"]]
            assert (await other.alias("later", "live", version.version))["previous"] is None
            assert (await other.program_version("later", "canary"))["note"] == "n"
            assert (await other.diff("later", 1, "canary"))["same"]
            await other.undeploy("later")

    asyncio.run(use())


def test_what_runs_ends_as_it_would_when_its_program_is_undeployed(client: Client, tmp_path: Path) -> None:
    go_on = tmp_path / "go_on"
    (tmp_path / "slow.py").write_text(
        "import dspy, os, time\nclass P(dspy.Module):\n    def forward(self):\n"
        f"        open({str(go_on)!r} + '.begun', 'w').close()\n"
        f"        while not os.path.exists({str(go_on)!r}): time.sleep(0.01)\n        return 'done'\n"
    )
    client.deploy("slow", f"{tmp_path}/slow.py:P")
    running = client.submit("slow", {})
    wait_until(lambda: Path(f"{go_on}.begun").exists(), SOON_S, "the run")
    client.undeploy("slow")
    failing(errors.NotFound, lambda: client.program("slow")())
    assert "slow" not in [row["name"] for row in client.programs()]
    go_on.touch()
    assert running.result(SOON_S) == "done"


def test_a_state_of_megabytes_is_deployed_and_one_beyond_the_limit_is_not(client: Client) -> None:
    demos = [{"question": "q" * 1000, "answer": "a" * 1000}] * 1000
    client.deploy("large", PREDICT, state={**predictor("Answer.")["answer"], "demos": demos})
    assert len(client.program_version("large")["state"]["demos"]) == 1000
    assert client.program("large")(question="?").answer
    too_large = {**predictor("Answer.")["answer"], "demos": demos * 9}
    failing(errors.TooLarge, lambda: client.deploy("large", PREDICT, state=too_large), "16,777,216")
    assert client.program_version("large")["version"] == 1
    client.undeploy("large")


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": "echo"}, "name"), ({"name": "programs.mine"}, "name"), ({"name": "session.x"}, "name"),
        ({"name": "qa@7"}, "name"), ({"name": "a b"}, "name"), ({"name": "x" * 101}, "name"), ({"name": 5}, "name"),
        ({"alias": "7"}, "alias"), ({"alias": "a.b"}, "alias"), ({"alias": ""}, "alias"), ({"alias": 7}, "alias"),
        ({"config": [1]}, "config"), ({"config": {1: 2}}, "config"), ({"state": "s"}, "state"),
        ({"target": 5}, "target"), ({"target": "no target"}, "target"), ({"note": "n" * 1001}, "note"),
        ({"warm": 1}, "warm"), ({"pool": 5}, "pool"), ({"colour": "red"}, "colour"),
        ({"target": {"pickled": "/tmp/p", "sha256": "0" * 64}}, "target"),
    ],
)  # fmt: skip
def test_a_deployment_that_says_what_it_may_not(client: Client, changes: dict[str, Any], path: str) -> None:
    args = {"name": "bad", "target": PREDICT, **changes}
    failing(errors.InvalidRequest, lambda: client.execute("programs.deploy", args), path=path)


@pytest.mark.parametrize("pool", ["gneral", "services"])
def test_pools_that_are_not_there_are_named(client: Client, pool: str) -> None:
    failing(errors.NotFound, lambda: client.deploy("bad", PREDICT, pool=pool), f"'{pool}'")


def test_what_does_not_load_or_does_not_fit_changes_nothing(client: Client, tmp_path: Path) -> None:
    target = write(tmp_path, "one")
    client.deploy("kept", target)
    before = client.versions("kept")
    (tmp_path / "broken.py").write_text("1 / 0")
    failing(errors.RemoteError, lambda: client.deploy("kept", f"{tmp_path}/broken.py:QA"), "division by zero")
    of_another = {"other": predictor("Answer.")["answer"]}
    failing(errors.InvalidRequest, lambda: client.deploy("kept", target, state=of_another), "another program")
    of_more = predictor("Answer.")
    of_more["answer"]["signature"]["fields"].append({"prefix": "More:", "description": "${more}"})
    failing(errors.InvalidRequest, lambda: client.deploy("kept", target, state=of_more), path="state.answer")
    assert client.versions("kept") == before
    assert answer(client, "kept") == "one"
    for call in (
        lambda: client.alias("kept", "canary", 99), lambda: client.alias("kept", "canary", "nowhere"),
        lambda: client.unalias("kept", "nowhere"), lambda: client.rollback("kept"), lambda: client.undeploy("nobody"),
        lambda: client.diff("kept", 1, 99), lambda: client.program_version("kept", "nowhere"),
        lambda: client.versions("nobody"), lambda: client.program("kept@nowhere")(question="?"),
    ):  # fmt: skip
        failing(errors.NotFound, call)
    failing(errors.InvalidRequest, lambda: client.unalias("kept", "live"), "undeploy")
    assert client.versions("kept") == before
    client.undeploy("kept")


def test_deployments_of_one_name_at_once_are_done_one_after_the_other(client: Client, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(12)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        write(folder, str(number))
    futures = [
        client.submit("programs.deploy", {"name": "busy", "target": f"{folder}/qa.py:QA", "note": folder.name})
        for folder in folders
    ]
    found = sorted(future.result(SOON_S)["version"] for future in futures)
    assert found == list(range(1, 13))
    live = client.program_version("busy")
    assert live["version"] == 12
    assert answer(client, "busy") == live["note"]
    client.undeploy("busy")


# --- warm ---------------------------------------------------------------------------------------------


def test_a_warm_deployment_has_loaded_it_everywhere_before_its_name_leads_to_it(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "loads"
    program = (
        f"import dspy, os\nLOG = {str(log)!r}\n"
        "class P(dspy.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        open(LOG, 'a').write(f'{os.getpid()}\\n')\n    def forward(self): return VERSION\n"
    )
    (tmp_path / "p.py").write_text(program.replace("VERSION", "1"))
    client.deploy("warm", f"{tmp_path}/p.py:P", warm=True)
    mine = {row["pid"] for row in client.workers() if row["pool"] == "general" and row["state"] != "exited"}
    assert len(mine) == 2
    assert mine <= {int(pid) for pid in log.read_text().split()}
    loads = len(log.read_text().split())
    assert [client.program("warm")() for _ in range(20)] == [1] * 20
    assert client.deploy("warm", f"{tmp_path}/p.py:P", warm=True).created is False
    assert len(log.read_text().split()) == loads + 1  # what the deployment itself looked at
    client.undeploy("warm")


def test_a_version_that_some_worker_cannot_load_is_not_deployed_where_it_is_to_be_warm(
    client: Client, tmp_path: Path
) -> None:
    (tmp_path / "p.py").write_text("import dspy\nclass P(dspy.Module):\n    def forward(self): return 'good'\n")
    client.deploy("some", f"{tmp_path}/p.py:P", warm=True)
    once = tmp_path / "once"
    (tmp_path / "p.py").write_text(
        "import dspy, os\nclass P(dspy.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        os.close(os.open({str(once)!r}, os.O_CREAT | os.O_EXCL))\n    def forward(self): return 'bad'\n"
    )
    failing(errors.RemoteError, lambda: client.deploy("some", f"{tmp_path}/p.py:P", warm=True), "FileExistsError")
    assert client.program("some")() == "good"
    assert [row["version"] for row in client.versions("some")] == [1]
    failing(errors.NotFound, lambda: client.program("some@2")())
    (tmp_path / "p.py").write_text("import dspy\nclass P(dspy.Module):\n    def forward(self): return 'mended'\n")
    assert client.deploy("some", f"{tmp_path}/p.py:P").version == 3  # workers may have known another one as 2
    assert client.program("some")() == "mended"
    client.undeploy("some")


def test_what_could_not_be_committed_by_its_deadline_is_not_deployed(client: Client, tmp_path: Path) -> None:
    client.deploy("late", PREDICT)
    store = client.stats()["services"]["store"]["where"]
    with closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # whoever writes waits for a second
        futures = [
            client.submit("programs.deploy", {"name": "late", "target": write(tmp_path, "late")}, deadline_s=0.4),
            client.submit("programs.undeploy", {"name": "late"}, deadline_s=0.4),
        ]
        errors_of = [future.exception(SOON_S) for future in futures]
        other.execute("ROLLBACK")
    assert [type(error) for error in errors_of] == [errors.DeadlineExceeded] * 2
    # In its turn: whatever those before it do is done by then.
    assert client.deploy("late", write(tmp_path, "in time")).previous == 1
    assert answer(client, "late") == "in time"
    assert [row["deployed_by"] for row in client.versions("late")] == ["default"] * 2
    client.undeploy("late")


def test_a_load_of_many_deployments_leaves_room_for_looking(client: Client, tmp_path: Path) -> None:
    go_on = tmp_path / "go_on"
    (tmp_path / "slow.py").write_text(
        "import os, time, dspy\n"
        f"while not os.path.exists({str(go_on)!r}): time.sleep(0.01)\n"
        "class P(dspy.Module):\n    def forward(self): return 1\n"
    )
    args = {"name": "many", "target": f"{tmp_path}/slow.py:P"}
    futures = [client.submit("programs.deploy", args) for _ in range(40)]
    refused = threading.Event()
    for future in futures:
        future.add_done_callback(lambda future: refused.set() if future.exception() else None)
    assert refused.wait(SOON_S), "more than the services process takes at once"
    assert isinstance(client.programs(), list)
    go_on.touch()
    outcomes = [future.exception(SOON_S) for future in futures]
    assert {type(one) for one in outcomes} == {type(None), errors.Overloaded}
    assert sum(one is None for one in outcomes) == 32
    assert [row["version"] for row in client.versions("many")] == [1]
    client.undeploy("many")
