"""Programs in a running system: modules that workers are forked with, and files that do not load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client, Orchestrator, errors
from tests.support.waiting import wait_until

GRACE_S = 0.3
POOLS = {
    "general": {"size": 2, "preload": ["preloaded_acme.parts"], "grace_s": GRACE_S},
    "optimizer": {"size": 0},
    "neural": {"size": 0},
}
PROGRAM = """
import dspy
from preloaded_acme.parts import N, LOADED
from preloaded_acme import heavy
class QA(dspy.Module):
    def forward(self):
        return {"n": N, "own": OWN, "heavy": heavy.LOADED == LOADED}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs")
    (path / "preloaded_acme").mkdir()
    (path / "preloaded_acme" / "__init__.py").write_text("")
    (path / "preloaded_acme" / "heavy.py").write_text("import os\nLOADED = os.getpid()\n")
    (path / "preloaded_acme" / "parts.py").write_text("from .heavy import LOADED\nN = 1\n")
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    limits = {"poison_deaths": 0}
    with Orchestrator(pools=POOLS, limits=limits, python_path=[folder]) as running, running.client() as client:
        yield client


def test_an_edit_of_a_preloaded_module_takes_effect_in_every_worker(client: Client, folder: Path) -> None:
    package = folder / "preloaded_acme"
    for version in (1, 2, 3):
        (package / "parts.py").write_text(f"from .heavy import LOADED\nN = {version}\n")
        (package / "qa.py").write_text(PROGRAM.replace("OWN", str(version)))
        assert client.deploy("qa", "preloaded_acme.qa:QA").version == version
        # What the edits do not touch is what the zygote loaded: one for all workers and versions.
        told = list(client.map("qa", [{}] * 40, chunk=1))
        assert told == [{"n": version, "own": version, "heavy": True}] * 40


def load(client: Client, target: str, deadline_s: float) -> object:
    return client.execute("programs.load", {"target": target}, deadline_s=deadline_s)


def is_replaced(client: Client) -> bool:
    rows = [row for row in client.workers() if row["pool"] == "general"]
    return any(row["exit"] for row in rows) and sum(row["state"] == "ready" for row in rows) == 2


def test_an_import_that_hangs_ends_at_its_deadline(client: Client, folder: Path) -> None:
    (folder / "hangs.py").write_text("import time\nwhile True:\n    time.sleep(60)\n")
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        load(client, f"{folder}/hangs.py:QA", 0.5)
    assert time.monotonic() - started < 0.5 + GRACE_S + 2.0
    # What hangs is ended with its worker, which is replaced.
    wait_until(lambda: is_replaced(client), 20.0, "a worker in the place of the one that hung")


def test_an_import_that_ends_the_process(client: Client, folder: Path) -> None:
    (folder / "leaves.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(errors.WorkerLost):
        load(client, f"{folder}/leaves.py:QA", 20.0)
    (folder / "exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(errors.RemoteError, match="SystemExit: 3"):
        load(client, f"{folder}/exits.py:QA", 20.0)
    assert client.execute("qa", {}, deadline_s=20.0)["n"] == 3
