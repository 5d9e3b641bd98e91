"""The examples as a user runs them: each by its one command, with what it prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client, Orchestrator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TIMEOUT_S = 50.0


@pytest.fixture(scope="module")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    # Of two models, so that it shows which one was asked for. Without a PATH there is no Deno.
    lms = {"default": {"model": "offline/knn"}, "broken": {"model": "offline/knn?error_rate=1"}}
    general = {"size": 1, "env": {"PATH": str(tmp_path_factory.mktemp("empty"))}}
    with Orchestrator(pools={"general": general, "optimizer": {"size": 1}, "neural": {"size": 1}}, lms=lms) as started:
        yield started


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client


def started(orchestrator: Orchestrator, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"examples/{name}/main.py", *words],
        cwd=ROOT,
        env={**os.environ, "DSPOOL_ENDPOINT": orchestrator.endpoint, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def shown(orchestrator: Orchestrator, name: str) -> str:
    """Run an example and return what it prints."""
    done = started(orchestrator, name)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_every_example_has_its_three_files_and_says_how_it_is_run() -> None:
    folders = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "tickets")
    assert folders == ["agent", "classification", "code", "image", "multihop", "rag", "streaming"]
    for name in folders:
        readme = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
        assert f"\n    python examples/{name}/main.py\n" in readme
        assert (EXAMPLES / name / "program.py").exists()
        assert len((EXAMPLES / name / "main.py").read_text(encoding="utf-8").splitlines()) < 80


def test_classification(orchestrator: Orchestrator) -> None:
    out = shown(orchestrator, "classification")
    before, after = (int(found) for found in re.findall(r"^  (\d) of 8 are right$", out, re.MULTILINE))
    assert before <= 4
    assert after >= 6
    assert "  + parking    Can I leave my car in the garage on Sunday?" in out.partition("(version 2 ")[2]


def test_rag(orchestrator: Orchestrator, client: Client) -> None:
    assert [line for line in shown(orchestrator, "rag").splitlines() if not line.startswith("  from: ")] == [
        "When does the ferry to Sandholm leave Nordhavn?",
        "  The ferry to Sandholm leaves Nordhavn at 8, 13 and 18 o'clock and takes forty minutes.",
        "What does it cost to rent bicycles at the harbour?",
        "  Bicycles can be rented at the harbour for nine euros a day; children's bicycles are free.",
        "Where may tents be put up?",
        "  Tents may be put up on the meadow behind the school, for two nights at most.",
    ]
    assert client.stats()["pools"]["neural"]["completed"] > 0  # that is where it was embedded
    assert client.programs() == []


def test_agent(orchestrator: Orchestrator) -> None:
    out = shown(orchestrator, "agent")
    assert "\n  There are 3 pieces of lamp left.\n  by stock -> finish, on general-1.1, with 3 LM calls\n" in out
    assert "\n  A parcel to Oslo takes 2 days.\n  by delivery_days -> finish, on general-1.1, with 3 LM calls\n" in out
    assert re.findall(r"^stock\('(\w+)'\) ran in process \d+, this one$", out, re.MULTILINE) == ["lamp"]


def test_code_is_refused_without_a_sandbox(orchestrator: Orchestrator) -> None:
    out = shown(orchestrator, "code")
    assert out.startswith("refused (SANDBOX_MISSING): ")
    assert "`pip install 'dspool[sandbox]'`" in out


def test_multihop(orchestrator: Orchestrator) -> None:
    assert shown(orchestrator, "multihop").splitlines()[1:] == [
        "  hop 1: The painter Ida Brandt was born in the village of Kelm.",
        "  hop 2: The village of Kelm lies on the river Auve.",
        "  answer: The village of Kelm lies on the river Auve.   (3 LM calls)",
    ]


def test_image(orchestrator: Orchestrator) -> None:
    assert shown(orchestrator, "image") == "the worker got a picture of 16 by 16 pixels; it is red\n"


def test_streaming(orchestrator: Orchestrator) -> None:
    out = shown(orchestrator, "streaming")
    assert "\noutline: A fox finds a lantern" in out
    assert "\nstory: A fox finds a lantern" in out
    pieces = int(re.search(r"in (\d+) pieces; the whole at the end: \['outline', 'story'\]", out)[1])  # type: ignore[index]
    assert pieces > 10


def test_the_model_is_the_one_that_is_named(orchestrator: Orchestrator, client: Client) -> None:
    done = started(orchestrator, "image", "--lm", "broken")
    assert done.returncode == 1
    assert "LMError" in done.stderr
    client.undeploy("image")  # it was left, as the script ended before it took it back


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("deno") is None, reason="there is no deno on PATH (pip install 'dspool[sandbox]')")
def test_code_runs_in_a_sandbox() -> None:
    cache = Path(os.environ["HOME"]) / ".cache" / "deno"
    pools = {"general": {"size": 1, "env": {"DENO_DIR": str(cache)}}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(pools=pools) as orchestrator:
        assert shown(orchestrator, "code").endswith("\n  413, computed in a sandbox\n")
