"""A coordinator that stood still (SIGSTOP, a suspended machine) begins nothing out of time, and kills for cause."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bridge.protocol.messages import Reply
from tests.support.acceptance import MARKER, ROOT, SOON_S, mark, marks, pools
from tests.support.coordinator import CoordinatorProcess, WireClient, code_of, value_of
from tests.support.waiting import wait_until

# Nothing but the answer lies at the backend: a coordinator with little to do reads one frame a turn.
QUIET = {"size": 1, "prefetch": 0, "heartbeat_interval_s": 30.0, "heartbeat_limit_s": 60.0}
GATE = f"{ROOT}/tests/support/programs/marker.py:Gate"


@contextmanager
def serving(folder: Path, **general: Any) -> Iterator[tuple[int, WireClient]]:
    """A coordinator with one worker, and a client of it that has deployed `marker` and `gate`."""
    with CoordinatorProcess(folder, pools=pools({**QUIET, **general}), python_path=[str(ROOT)]) as coordinator:
        assert coordinator.next_report() == {"event": "ready"}
        with WireClient(coordinator.endpoint) as client:
            for name, target in (("marker", MARKER), ("gate", GATE)):
                client.call("programs.deploy", {"name": name, "target": target, "pool": "general"})
            yield coordinator.process.pid, client


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def gate(folder: Path, number: int) -> dict[str, Any]:
    """Return the arguments of a call of `gate`: it marks its begin and its end, and ends once `open` exists."""
    return {"path": str(folder / "marks"), "number": number, "opened": str(folder / "open")}


def passed(moment: float) -> bool:
    return time.monotonic() >= moment


def test_what_ran_out_of_time_meanwhile_is_not_dispatched() -> None:
    with tempfile.TemporaryDirectory(prefix="s") as name, serving(Path(name), slots=1) as (pid, client):
        folder = Path(name)
        running = client.request("gate", gate(folder, 1))
        wait_until(lambda: marks(folder / "marks") == [1], SOON_S, "the call's start")
        out_of_time = time.monotonic() + 0.4
        late = client.request("marker", mark(folder / "marks", 2), deadline_ms=400.0)
        assert client.call("dspool.stats")["requests"]["queued"] == 1
        with standing_still(pid):
            # The worker answers, and the other call runs out of time: both lie there when the coordinator wakes up.
            (folder / "open").touch()
            wait_until(lambda: marks(folder / "marks") == [1, -1], SOON_S, "the call's end")
            wait_until(lambda: passed(out_of_time + 0.1), SOON_S, "the other's deadline")
        replies = {reply.request_id: reply for reply in (client.expect(Reply), client.expect(Reply))}
        assert value_of(replies[running]).number == 1
        assert replies[late].attempt == 0  # nobody was given it
        error = value_of(replies[late])
        assert code_of(error) == "DEADLINE_EXCEEDED"
        assert error.details["stage"] == "queued"
        assert client.call("ping")["worker"] == "general-1.1"
        assert marks(folder / "marks") == [1, -1]


def test_a_worker_that_answered_meanwhile_lives_on_and_so_does_what_it_runs() -> None:
    with tempfile.TemporaryDirectory(prefix="s") as name, serving(Path(name), slots=2, grace_s=0.5) as (pid, client):
        folder = Path(name)
        late = client.request("gate", gate(folder, 1), deadline_ms=300.0)
        beside = client.request("gate", {**gate(folder, 2), "opened": str(folder / "later")})
        wait_until(lambda: sorted(marks(folder / "marks")) == [1, 2], SOON_S, "both calls' start")
        reply = client.expect(Reply)
        asked = time.monotonic()
        assert (reply.request_id, code_of(value_of(reply))) == (late, "DEADLINE_EXCEEDED")
        with standing_still(pid):
            (folder / "open").touch()
            wait_until(lambda: -1 in marks(folder / "marks"), SOON_S, "the late call's end")
            wait_until(lambda: passed(asked + 0.7), SOON_S, "the end of the grace period")
        (folder / "later").touch()
        reply = client.expect(Reply)
        assert reply.request_id == beside
        assert value_of(reply).number == 2
        assert client.call("ping")["worker"] == "general-1.1"
