"""The benchmark of `dspy.Predict` measures every side and judges; calls that wait take no longer than they must."""

from __future__ import annotations

import importlib.util
import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator import Orchestrator
from orchestrator.bench import predicting
from orchestrator.bench.predicting import (
    DSPOOL,
    DSPOOL_MAP,
    ONE_THREAD,
    SERVED,
    SERVED_BARELY,
    PredictingReport,
    run_predicting,
)
from orchestrator.bench.rivals import OneThread
from orchestrator.cli.app import app
from orchestrator.cli.failure import Exit
from tests.support.openai_server import Answer, OpenAIServer


def report(dspool: float = 2.0, waiting_s: float = 2.7, **more: float) -> PredictingReport:
    rates = {DSPOOL: [dspool] * 3, ONE_THREAD: [1.0] * 3, **{name: [rate] * 3 for name, rate in more.items()}}
    return PredictingReport({}, {}, rates, [1.0, waiting_s, 9.0], {} if SERVED in more else {SERVED: "not installed"})


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        (report(), True),
        (report(1.4), False),
        (report(waiting_s=3.3), False),
        (report(**{SERVED: 1.0}), True),
        (report(**{SERVED: 1.1}), False),
        (report(**{SERVED: 1.0, SERVED_BARELY: 5.0}), True),
    ],
)
def test_what_a_run_must_show(found: PredictingReport, passed: bool) -> None:
    assert found.passed is passed
    assert found.as_json()["passed"] is passed
    screen = io.StringIO()
    found.print(Console(file=screen))
    assert ("FAIL" in screen.getvalue()) is not passed
    assert ("not installed" in screen.getvalue()) is (SERVED not in found.rates)


def test_one_thread_is_measured_and_what_fails_is_told() -> None:
    with OneThread() as alone:
        assert alone.rate(0.05) > 1
        alone._process.kill()
        with pytest.raises(RuntimeError, match="ended with -9"):
            alone.rate(0.05)


def test_the_command_measures_one_thing(capsys: pytest.CaptureFixture[str]) -> None:
    found = CliRunner().invoke(app, ["bench", "--dspy", "--native"])
    assert found.exit_code == Exit.USAGE
    assert "--native and --dspy are two measurements" in found.output + capsys.readouterr().err


@pytest.mark.slow
def test_every_side_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "WAITING_CALLS", 16)
    said: list[str] = []
    found = run_predicting(seconds=0.1, rounds=2, say=said.append)
    found.write_json(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    sides = {DSPOOL, DSPOOL_MAP, ONE_THREAD}
    if all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "httpx")):
        sides |= {SERVED, SERVED_BARELY}
        assert read["notes"] == {}
    else:
        assert "is not installed" in read["notes"][SERVED]
    assert set(read["rates"]) == sides
    assert all(rate > 0 for side in read["rates"].values() for rate in side["rounds"])
    assert said == ["starting all sides", "round 1 of 2", "round 2 of 2"]
    assert len(found.waiting_s) == 2
    assert all(0.2 < waiting_s < 2 for waiting_s in found.waiting_s)


@pytest.mark.slow
def test_calls_that_wait_for_their_model_wait_together() -> None:
    """200 calls of 0.2 s on 16 slots take 2.6 s at least; a machine that is busy with other things gets some more."""
    text = "[[ ## answer ## ]]\nblue\n\n[[ ## completed ## ]]"
    with OpenAIServer(Answer(text, latency_s=0.2)) as server:
        remote = {"model": "openai/gpt-4o-mini", "api_key": "k" * 12, "api_base": server.url}
        lms = {"default": remote, "offline": {"model": "offline/knn?latency_ms=200"}}
        pools = {"general": {"size": 2, "slots": 8}, "optimizer": {"size": 0}, "neural": {"size": 0}}
        with Orchestrator(pools=pools, lms=lms) as orchestrator, orchestrator.client() as client:
            for lm in ("default", "offline"):
                args = {"signature": "question -> answer", "inputs": {"question": "what colour is the sky?"}}
                client.execute("dspy.Predict", args, lm=lm)
                began = time.monotonic()
                futures = [client.submit("dspy.Predict", args, lm=lm) for _ in range(200)]
                answers = [future.result(30).answer for future in futures]
                took_s = time.monotonic() - began
                assert len(answers) == 200
                assert 2.5 < took_s < 4.5, lm
        assert server.peak == 16
