"""`dspool demo`: it tells the truth, quickly, and leaves nothing; where a step fails it says so."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.demo import story
from orchestrator.demo.tickets import Tickets, rows
from orchestrator.errors import Unavailable

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 100.0


def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    out = done.stdout
    assert done.returncode == 0, out + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in out  # plain lines where there is no terminal
    assert [int(number) for number in re.findall(r"^(\d)\. ", out, re.MULTILINE)] == [1, 2, 3, 4, 5, 6, 7]
    assert "offline/knn" in out.splitlines()[0]
    for worker in ("general-1.1", "general-2.1", "optimizer-1.1", "neural-1.1"):
        assert re.search(rf"{worker} +\d+ +[\d,]+ +\d+ *$", out, re.MULTILINE), out
    assert "WorkerLost(signal=SIGKILL, worker=general-" in out
    answered = int(re.search(r"(\d+) callers got their answer", out)[1])  # type: ignore[index]
    lost = int(re.search(r"(\d+) got WorkerLost", out)[1])  # type: ignore[index]
    assert answered + lost == story._LOAD_CALLS
    ready_ms, answered_ms = map(
        int,
        re.search(r"general-\d\.2 took its place: ready after (\d+) ms, its first answer after (\d+) ms", out).groups(),  # type: ignore[union-attr]
    )
    assert 0 < ready_ms < answered_ms  # a call takes 40 ms
    before, after = map(int, re.search(r"test accuracy +(\d+) % → (\d+) %", out).groups())  # type: ignore[union-attr]
    assert after - before >= 20
    assert "shape (90, 256)" in out
    assert re.search(r"[\d,]+ calls/s with 100 in flight; map: [\d,]+ items/s", out)
    assert "0 processes left of 8" in out
    assert float(re.search(r"That took ([\d.]+) s", out)[1]) < 60  # type: ignore[index]


def test_a_step_that_fails_ends_the_demo_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "_QUESTIONS", (("text -> amount: float", "It costs 3 euros.", {"amount": 4.0}),))
    screen = io.StringIO()
    assert story.tell(Console(file=screen, width=200)) is False
    assert "step 2 failed: expected {'amount': 4.0}, got Prediction(" in screen.getvalue()


def test_the_tickets_are_split_without_overlap() -> None:
    tickets = Tickets.find()
    parts = [{row["ticket"] for row in rows(path)} for path in (tickets.train, tickets.validation, tickets.test)]
    assert [len(part) for part in parts] == [90, 30, 30]
    assert len(set.union(*parts)) == 150


def test_an_installation_without_the_tickets_says_where_it_looked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("orchestrator.demo.tickets._places", lambda: iter([tmp_path / "examples" / "tickets"]))
    with pytest.raises(Unavailable, match="examples/tickets"):
        Tickets.find()
