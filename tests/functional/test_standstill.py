"""A coordinator that stood still (SIGSTOP, a suspended machine) begins nothing that is out of time."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from bridge.protocol.messages import Reply
from tests.support.acceptance import MARKER, SOON_S, mark, marks, pools
from tests.support.coordinator import ROOT, CoordinatorProcess, WireClient, code_of, value_of
from tests.support.waiting import wait_until

# Nothing but the answer lies at the backend: a coordinator with little to do reads one frame a turn.
QUIET = {"size": 1, "slots": 1, "prefetch": 0, "heartbeat_interval_s": 30.0, "heartbeat_limit_s": 60.0}


def test_what_ran_out_of_time_meanwhile_is_not_dispatched() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="s") as folder,
        CoordinatorProcess(Path(folder), pools=pools(QUIET), python_path=[ROOT]) as coordinator,
    ):
        assert coordinator.next_report() == {"event": "ready"}
        evidence = Path(folder) / "marks"
        with WireClient(coordinator.endpoint) as client:
            client.call("dspool.deploy", {"name": "marker", "target": MARKER, "pool": "general"})
            running = client.request("marker", mark(evidence, 1, 0.3))
            wait_until(lambda: marks(evidence) == [1], SOON_S, "the call's start")
            late = client.request("marker", mark(evidence, 2), deadline_ms=400.0)
            assert client.call("dspool.stats")["requests"]["queued"] == 1
            os.kill(coordinator.process.pid, signal.SIGSTOP)
            # The worker answers, and the other call runs out of time: both lie there when the coordinator wakes up.
            until = time.monotonic() + 0.8
            wait_until(lambda: time.monotonic() > until, SOON_S, "the end of both")
            os.kill(coordinator.process.pid, signal.SIGCONT)
            replies = {reply.request_id: reply for reply in (client.expect(Reply), client.expect(Reply))}
            assert value_of(replies[running]).number == 1
            assert replies[late].attempt == 0  # nobody was given it
            error = value_of(replies[late])
            assert code_of(error) == "DEADLINE_EXCEEDED"
            assert error.details["stage"] == "queued"
            assert client.call("ping")["worker"] == "general-1.1"
            assert marks(evidence) == [1]
