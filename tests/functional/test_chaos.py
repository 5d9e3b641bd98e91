"""A system under fire keeps its promises: chaos by seed, every fault point with every action, a soak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bridge import faultpoints
from bridge.faultpoints import ACTIONS, POINTS
from orchestrator.chaos.census import Census
from orchestrator.chaos.run import playground
from tests.support.acceptance import ROOT
from tests.support.waiting import wait_until


def chaos(*words: str, module: str = "orchestrator.chaos", timeout_s: float = 55.0) -> Any:
    """Run the command in a process of its own; return its report. Fails where a promise was broken."""
    command = [sys.executable, "-m", module, *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, json.dumps(report, indent=1)[:8000]
    return report


def test_a_few_thousand_requests_under_fire() -> None:
    # Without its zygote a pool has no new workers for a second: too long for so short a run.
    kinds = ("kill_worker", "segv_worker", "kill_client", "stop_client", "hang", "malformed")
    report = chaos("--seed", "5", "--requests", "1500", "--every", "0.15", "--kinds", *kinds)
    assert report["good"]
    assert report["requests"] >= 1500
    assert report["outcomes"]["OK"] > 500
    assert sum(report["mischief"].values()) >= 3


def test_a_census_sees_what_is_left_over() -> None:
    with playground() as folder:
        before = Census.take(os.getpid(), folder)
        assert Census.take(os.getpid(), folder).more_than(before) == []
        ended = threading.Event()
        thread = threading.Thread(target=ended.wait)
        with (folder / "left").open("w"), subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
            thread.start()
            try:
                found = "\n".join(Census.take(os.getpid(), folder).more_than(before))
            finally:
                child.kill()
                ended.set()
                thread.join()
        (folder / "left").unlink()
        for what in ("file: left", "process: sleep #", "descriptor of the coordinator: ", "thread of this process"):
            assert f"1 more of {what}" in found, found
        # A thread that was joined may still be leaving.
        wait_until(lambda: not Census.take(os.getpid(), folder).more_than(before), 5.0, "nothing left over")


@pytest.mark.slow
def test_one_fault_at_its_point() -> None:
    (cell,) = chaos("--point", "worker.after_run", "--action", "kill")
    assert cell["fired"]
    assert cell["outcomes"]["WORKER_LOST"] >= 1


def test_fault_points_are_inert_without_faults(tmp_path: Path) -> None:
    """The schedule in the environment of a run without `faults: true` is ignored, and reaches no worker."""
    code = (
        "from orchestrator import Orchestrator\n"
        "with Orchestrator(pools={'general': {'size': 1}, 'optimizer': {'size': 0}, 'neural': {'size': 0}}) as one:\n"
        "    with one.client() as client: print(client.execute('echo', 7), client.execute('sleep', {'seconds': 0}))\n"
    )
    faults = [faultpoints.Fault(point, 1, "kill") for point in POINTS if not point.startswith("client.")]
    schedule = faultpoints.schedule(str(tmp_path), faults)
    faultpoints.begin(str(tmp_path))
    environ = {**os.environ, faultpoints.VARIABLE: schedule}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=55
    )
    assert done.stdout == "7 {'seconds': 0.0}\n", done.stderr
    assert faultpoints.fired(str(tmp_path)) == []
    assert [file.name for file in tmp_path.iterdir()] == [faultpoints.BEGUN_FILE]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("profile", ["bare", "full"])
def test_ten_thousand_requests_under_fire(profile: str) -> None:
    report = chaos("--seed", "9", "--requests", "10000", "--every", "0.15", "--profile", profile, timeout_s=280)
    assert report["requests"] >= 10_000
    assert report["late_s"] <= 1.0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", POINTS)
def test_every_action_at_a_point(point: str) -> None:
    cells = chaos("--point", point, timeout_s=280)
    assert [(cell["point"], cell["action"], cell["good"]) for cell in cells] == [(point, one, True) for one in ACTIONS]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_soak_leaves_nothing() -> None:
    report = chaos("--calls", "100000", module="orchestrator.chaos.soak", timeout_s=580)
    assert report["good"]
    assert report["calls"] >= 100_000
    assert report["kills"] >= 100
