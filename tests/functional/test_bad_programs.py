"""Programs that do not load, fail, or harm their process: a typed error at their own caller, and the pool serves on.

What only fails runs in the pool `general`, whose worker must outlive this module; what kills runs in the pool `frail`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, Orchestrator, errors
from tests.support import bad_programs
from tests.support.failures import failing
from tests.support.waiting import wait_until

FILE = bad_programs.__file__
GRACE_S = 0.3
POOLS = {
    "general": {"size": 1},
    "frail": {
        "size": 1, "slots": 1, "prefetch": 8, "grace_s": GRACE_S, "restart": {"max_restarts": 100}, "breaker": None,
    },
    "optimizer": {"size": 0},
    "neural": {"size": 0},
}  # fmt: skip
GENTLE = ("Raises", "Returns", "Floods", "Spoils", "Looks", "LosesAThread")
LETHAL = ("Leaves", "ClosesEverything", "Hangs")
REBIRTH_S = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def orchestrator(folder: Path) -> Iterator[Orchestrator]:
    # Its tests do the same deed more than once: whether that is poison is asked elsewhere.
    limits = {"message_bytes": 1 << 20, "poison_deaths": 0}
    with Orchestrator(pools=POOLS, faults=True, limits=limits, python_path=[folder]) as running:
        with running.client() as client:
            for name in GENTLE:
                client.deploy(name.lower(), f"{FILE}:{name}")
            for name in LETHAL:
                client.deploy(name.lower(), f"{FILE}:{name}", pool="frail")
        yield running


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client
        assert client.ping()["worker"] == "general-1.1", "a gentle failure cost a worker"
        assert client.predict("question -> answer", question="Who is there?").answer
        assert client.ping("frail", deadline_s=REBIRTH_S)["pong"]


def exit_of(client: Client, worker_id: str) -> dict[str, Any]:
    """Return how a worker ended, once it has."""

    def found() -> dict[str, Any] | None:
        return next((row["exit"] for row in client.workers() if row["id"] == worker_id), None)

    return wait_until(found, 10.0, f"the exit of {worker_id}") or {}


# --- loading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind", "said", "line"),
    [
        ("import no_such_package_of_ours", "ModuleNotFoundError", "python_path", "import no_such_package_of_ours"),
        ("def load():\n    raise KeyError('TEAM')\nload()", "KeyError", "'TEAM'", "line 2, in load"),
        ("class QA\n    pass", "SyntaxError", "expected ':'", "class QA"),
        ("import sys\nsys.exit('no thanks')", "SystemExit", "no thanks", "line 2, in <module>"),
        ("raise KeyboardInterrupt('stop')", "KeyboardInterrupt", "stop", "line 1, in <module>"),
        ("import dspy\nclass QA(dspy.Module):\n    def __init__(self):\n        open('/no/model')\n"
         "    def forward(self):\n        return 1", "FileNotFoundError", "/no/model", "line 4, in __init__"),
    ],
)  # fmt: skip
def test_a_program_that_does_not_load_shows_the_root(
    client: Client, folder: Path, source: str, kind: str, said: str, line: str
) -> None:
    file = folder / f"broken_{kind.lower()}.py"
    file.write_text(source)
    for target in (f"{file}:QA", f"{file.stem}:QA"):
        error = failing(
            errors.RemoteError, partial(client.deploy, "broken", target), f"{target} could not be loaded",
            said, type=kind, retryable=False,
        )  # fmt: skip
        assert line in error.remote_traceback
        assert str(file) in error.remote_traceback
        assert error.remote_traceback.rstrip() in error.__notes__[0]
        assert "bridge/worker" not in error.remote_traceback
    failing(errors.NotFound, lambda: client.program("broken")())


def test_the_root_of_a_broken_import_chain_is_inline(client: Client, folder: Path) -> None:
    (folder / "chain_outer.py").write_text("from chain_inner import QA")
    (folder / "chain_inner.py").write_text(
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise OSError('x') from e"
    )
    error = failing(errors.RemoteError, lambda: client.deploy("chain", "chain_outer:QA"), type="OSError")
    order = ["chain_inner.py", "ZeroDivisionError: ", "direct cause", "chain_outer.py", "OSError: x"]
    places = [error.remote_traceback.index(one) for one in order]
    assert places == sorted(places), error.remote_traceback


def test_an_import_that_hangs_ends_at_its_deadline(client: Client, folder: Path) -> None:
    (folder / "hanging.py").write_text("import time\ntime.sleep(600)")
    before = client.ping("frail")["worker"]
    started = time.monotonic()
    deployment = client.submit(
        "programs.deploy", {"name": "hanging", "target": "hanging:QA", "pool": "frail"}, deadline_s=0.5
    )
    assert client.predict("question -> answer", question="Do the others serve?").answer
    failing(errors.DeadlineExceeded, lambda: deployment.result(10), "hanging was not loaded in time", stage="running")
    assert time.monotonic() - started <= 1.0
    assert "did not stop within" in exit_of(client, before)["cause"]
    failing(errors.DeadlineExceeded, lambda: client.deploy("hanging", "hanging:QA", pool="frail", deadline_s=0.2))


def test_an_import_that_leaves_the_process_costs_a_worker(client: Client, folder: Path) -> None:
    (folder / "leaving.py").write_text("import os\nos._exit(5)")
    error = failing(
        errors.WorkerLost, lambda: client.deploy("leaving", "leaving:QA", pool="frail"), "exit code 5", signal=None
    )
    assert exit_of(client, error.worker)["code"] == 5
    assert "leaving" not in [row["name"] for row in client.programs()]


def test_a_program_whose_file_is_gone_is_loaded_again_as_it_was_deployed(client: Client, folder: Path) -> None:
    file = folder / "going.py"
    file.write_text("import dspy\nclass QA(dspy.Module):\n    def forward(self):\n        return 'here'")
    client.deploy("going", f"{file}:QA", pool="frail")
    assert client.program("going")() == "here"
    file.unlink()
    assert client.program("going")() == "here"
    failing(errors.WorkerLost, lambda: client.execute("fault.exit", {"code": 3}, pool="frail"), "exit code 3")
    assert client.program("going")() == "here"
    failing(errors.InvalidRequest, lambda: client.deploy("going", f"{file}:QA", pool="frail"), "No such file")


# --- raising ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("ValueError", "ValueError", "no such ticket: 7"),
        ("BaseException", "BaseException", "no such ticket: 7"),
        ("KeyboardInterrupt", "KeyboardInterrupt", "no such ticket: 7"),
        ("SystemExit", "SystemExit", "no such ticket: 7"),
        ("GeneratorExit", "GeneratorExit", "no such ticket: 7"),
        ("StopIteration", "StopIteration", "no such ticket: 7"),
        ("exit", "SystemExit", "bye"),
        ("recursion", "RecursionError", "maximum recursion depth"),
        ("memory", "MemoryError", ""),
        ("silent", "SilentError", "<its __str__ raised SystemExit>"),
    ],
)
def test_what_a_program_raises_reaches_its_caller(client: Client, how: str, kind: str, message: str) -> None:
    error = failing(errors.RemoteError, lambda: client.program("raises")(how=how), kind, message, retryable=False)
    assert error.type.rpartition(".")[2] == kind
    assert error.message.startswith(message)
    assert "bad_programs.py" in error.remote_traceback
    assert "in Raises" in error.remote_traceback
    assert error.remote_traceback.rstrip().splitlines()[-1].startswith(error.type)
    assert "in the worker" in error.__notes__[0]


def test_a_message_of_10_mb_is_cut(client: Client) -> None:
    error = failing(errors.RemoteError, lambda: client.program("raises")(how="long"), "left out", type="ValueError")
    assert 10_000 < len(error.message) < 30_000
    assert len(error.remote_traceback) < 30_000


@pytest.mark.parametrize(
    ("what", "path", "said"),
    [
        ("object", "rows[1].handle", "it is a object"),
        ("lock", "a[1]", "lock"),
        ("silent", "x", "Silent"),
        ("cycle", "loop[0][0]", "contains itself"),
        ("doubling cycle", "loop[0][0]", "contains itself"),
        ("deep", "deep[0][0]", "limits.nesting"),
    ],
)
def test_a_result_that_cannot_travel_is_told_with_its_path(client: Client, what: str, path: str, said: str) -> None:
    error = failing(
        errors.InvalidRequest, lambda: client.program("returns", deadline_s=20)(what=what),
        "the result of returns cannot be returned", "cannot travel", said,
    )  # fmt: skip
    assert error.path.startswith(path)


def test_a_result_above_the_limit_is_refused_by_the_worker(client: Client) -> None:
    error = failing(
        errors.TooLarge, lambda: client.program("returns")(what="big"), "the result of returns", "limits.message_bytes"
    )
    assert error.details["bytes"] > error.details["limit_bytes"] == 1 << 20


# --- harming its process ------------------------------------------------------------------------------


def test_a_flood_on_stdout_blocks_nobody(client: Client) -> None:
    assert client.program("floods", deadline_s=30)(mb=50) == 50
    wait_until(lambda: "discarded" in "".join(client.logs("general-1.1")[-1:]), 10.0, "the note of what is left out")
    tail = client.logs("general-1.1")
    assert len(tail) <= 200
    assert max(map(len, tail)) <= 8192 + len(" [cut]")


def test_what_a_process_has_once_is_put_back_for_the_next_call(client: Client, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = client.program("looks")(folder=str(tmp_path))
    refusal = client.program("spoils")(folder=str(elsewhere))
    elsewhere.rmdir()
    assert "main thread" in refusal  # signal handlers are out of a program's reach
    after = client.program("looks")(folder=str(tmp_path))
    assert after == before
    answer = client.predict("question -> answer", question="Whose language model is this?")
    assert answer.answer
    assert answer.meta is not None
    assert answer.meta.lm_calls == 1


def test_a_thread_that_a_program_loses_is_its_own_affair(client: Client) -> None:
    assert client.program("losesathread")() == "done"


@pytest.mark.parametrize(
    ("operation", "args", "code", "signal"),
    [
        ("leaves", {"code": 7}, 7, None),
        ("leaves", {"code": 0}, 0, None),
        ("fault.kill", {}, None, 9),
        ("fault.segv", {}, None, 11),
    ],
)
def test_a_worker_that_dies_is_told_to_its_caller(
    client: Client, operation: str, args: Any, code: int | None, signal: int | None
) -> None:
    before = client.ping("frail", deadline_s=REBIRTH_S)
    started = time.monotonic()
    error = failing(
        errors.WorkerLost, lambda: client.execute(operation, args, pool="frail"), before["worker"], str(before["pid"]),
        executed="maybe", worker=before["worker"], signal=signal, retryable=True,
    )  # fmt: skip
    assert time.monotonic() - started <= 3.0
    assert error.cause == (f"exit code {code}" if signal is None else f"signal {signal}")
    assert error.cause in str(error)
    ended = exit_of(client, before["worker"])
    assert (ended["code"], ended["signal"]) == (code, signal)


def test_a_worker_whose_descriptors_a_program_closed_is_replaced(client: Client) -> None:
    before = client.ping("frail", deadline_s=REBIRTH_S)
    error = failing(errors.WorkerLost, lambda: client.execute("closeseverything", {}, pool="frail"), executed="maybe")
    ended = exit_of(client, before["worker"])
    # Its lifeline goes too, which is exit code 1; ZeroMQ may notice first, and aborts.
    assert (ended["code"], ended["signal"]) in ((1, None), (None, 6))
    assert error.worker == before["worker"]


@pytest.mark.parametrize("poison", ["fault.kill", "fault.segv"])
def test_poison_hurts_only_its_own_caller(client: Client, poison: str) -> None:
    killed = set()
    for _ in range(3):
        poisoned = client.submit(poison, {}, pool="frail")
        behind = [client.submit("sleep", {"seconds": 0}, pool="frail") for _ in range(20)]
        killed.add(failing(errors.WorkerLost, partial(poisoned.result, REBIRTH_S), executed="maybe").worker)
        assert [future.result(REBIRTH_S) for future in behind] == [{"seconds": 0.0}] * 20
    assert len(killed) == 3
    requests = client.stats()["requests"]
    assert requests["accepted"] == requests["settled"] + requests["queued"] + requests["in_flight"]


def test_a_program_that_kills_its_parent_does_not_end_the_coordinator(orchestrator: Orchestrator) -> None:
    """The parent of every worker is the nanny. All workers go with it; all come again."""
    pools = {"general": {"size": 2, "slots": 1}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(pools=pools) as other, other.client() as client:
        client.deploy("kills", f"{FILE}:KillsItsParent")
        error = failing(errors.WorkerLost, lambda: client.program("kills", deadline_s=20)(), executed="maybe")
        assert error.worker.startswith("general-")
        assert client.execute("echo", 1, deadline_s=REBIRTH_S) == 1
        wait_until(lambda: client.stats()["pools"]["general"]["ready"] == 2, REBIRTH_S, "a full pool")
        assert os.getpgid(other.pid)


def test_a_hang_ends_at_its_deadline_and_the_slot_comes_back(client: Client) -> None:
    before = client.ping("frail", deadline_s=REBIRTH_S)["worker"]
    deadline_s = 0.5
    started = time.monotonic()
    hang = client.submit("hangs", {"seconds": 600}, deadline_s=deadline_s)
    behind = client.submit("sleep", {"seconds": 0}, pool="frail")
    failing(errors.DeadlineExceeded, lambda: hang.result(10), "hangs", "running", stage="running", retryable=False)
    assert time.monotonic() - started <= deadline_s + 0.5
    assert behind.result(REBIRTH_S) == {"seconds": 0.0}
    ended = exit_of(client, before)
    assert ended["signal"] == 9
    assert f"hangs did not stop within {GRACE_S:g} s" in ended["cause"]
    assert client.ping("frail")["worker"] != before
    assert math.isclose(client.execute("echo", 0.5), 0.5)
