"""The command `dspool`, as its users run it: processes, exit codes, standard output and standard error."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.client.client import Client
from orchestrator.rundir import process_ticks
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "orchestrator.cli"]
TIMEOUT_S = 60.0
Run = Callable[..., "Result"]


class Result:
    """What a command left: its exit code, its text, and its one JSON document."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __repr__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="module")
def run(here: Path) -> Run:
    """Run `dspool WORDS…` in a folder of this module's own."""

    def run(*words: str, stdin: str | None = None, cwd: Path | None = None, **environ: str) -> Result:
        done = subprocess.run(
            [*COMMAND, *words],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=cwd or here,
            env=_environment(**environ),
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


# --- without a coordinator ----------------------------------------------------------------------


def test_help_names_what_exists_and_nothing_else(run: Run) -> None:
    done = run("--help", COLUMNS="200", TERM="dumb")
    commands = re.findall(r"^[│|] +([a-z][a-z-]*) {2,}", done.out, re.MULTILINE)
    assert done.code == 0, done
    exist = {
        "up",
        "down",
        "status",
        "top",
        "resize",
        "drain",
        "restart",
        "call",
        "deploy",
        "undeploy",
        "programs",
        "optimize",
        "bench",
        "doctor",
        "logs",
    }
    assert set(commands) == {*exist, "demo", "config", "signatures", "dead-letter", "events", "sessions", "store"}


def test_the_command_line_loads_only_what_it_needs() -> None:
    script = "import sys, orchestrator.cli.app; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=_environment(), check=True, cwd="/"
    )
    assert not {"dspy", "numpy", "pydantic", "yaml", "structlog"} & set(json.loads(done.stdout.replace("'", '"')))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nonsense"], 2),
        (["call"], 2),
        (["status", "--nonsense"], 2),
        (["status"], 3),
        (["programs"], 3),
        (["call", "ping"], 3),
        (["call", "echo", "no-pair"], 2),
        (["logs", "general-1.1"], 3),
        (["down"], 3),
        (["logs", "--follow", "--json"], 2),
        (["up", "--json"], 2),
    ],
)
def test_exit_codes_without_a_coordinator(run: Run, tmp_path: Path, words: list[str], code: int) -> None:
    done = run(*words, DSPOOL_RUN_DIR=str(tmp_path / "run"))
    assert done.code == code, done
    assert bool(done.out) == ("--json" in words), done
    assert bool(done.err) != ("--json" in words), done
    assert "Traceback" not in done.err


def test_no_coordinator_says_what_to_run(run: Run, tmp_path: Path) -> None:
    environ = {"DSPOOL_RUN_DIR": str(tmp_path / "run")}
    assert "dspool up -d" in run("status", **environ).err
    told = run("status", "--json", **environ)
    assert told.code == 3
    assert told.err == ""
    assert told.json["error"]["code"] == "UNAVAILABLE"
    assert told.json["error"]["exit_code"] == 3


def test_an_endpoint_without_a_coordinator_is_no_coordinator(run: Run, tmp_path: Path) -> None:
    done = run("status", DSPOOL_ENDPOINT=f"ipc://{tmp_path}/none.sock")
    assert done.code == 3, done


# --- configuration ------------------------------------------------------------------------------


def test_config_check_tells_every_problem_with_its_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "dspool.yaml"
    file.write_text("pools:\n  general:\n    sise: 4\nfaults: maybe\n", encoding="utf-8")
    done = run("config", "check", cwd=tmp_path)
    assert done.code == 2, done
    assert "dspool.yaml:3" in done.err
    assert "size" in done.err
    assert "dspool.yaml:4" in done.err
    told = run("config", "check", "--json", cwd=tmp_path)
    assert told.code == 2
    assert len(told.json["error"]["details"]["problems"]) == 2
    assert run("up", "-d", cwd=tmp_path).code == 2


def test_config_show_masks_secrets(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "lms.yaml"
    file.write_text("lms:\n  gpt: {model: openai/gpt-4o-mini, api_key: sk-secret}\n", encoding="utf-8")
    assert run("config", "check", "--config", str(file)).out == f"{file} is valid\n"
    shown = run("config", "show", "--config", str(file))
    assert shown.code == 0, shown
    assert "sk-secret" not in shown.out
    assert run("config", "show", "--config", str(file), "--json").json["lms"]["gpt"]["api_key"] == "****"


def test_config_schema_is_a_schema(run: Run) -> None:
    schema = run("config", "schema").json
    assert schema["title"] == "dspool.yaml"
    assert "pools" in schema["properties"]


# --- up and down --------------------------------------------------------------------------------


class Place:
    """A folder with a configuration whose runs and data are its own."""

    def __init__(self, folder: Path, run_dir: Path, **settings: Any) -> None:
        self.folder, self.run_dir = folder, run_dir
        pools = {name: {"size": 1} for name in ("general", "optimizer", "neural")}
        document = {"pools": pools, "run_dir": str(run_dir), "data_dir": str(folder / "data"), **settings}
        (folder / "dspool.yaml").write_text(json.dumps(document), encoding="utf-8")

    @property
    def current(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "current.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@pytest.fixture
def place(tmp_path: Path, run_dirs: Callable[[], Path], run: Run) -> Iterator[Place]:
    made = Place(tmp_path, run_dirs())
    yield made
    if (made.run_dir / "current.json").exists():
        run("down", "--force", cwd=tmp_path)


def _descendants(pid: int) -> list[tuple[int, int | None]]:
    import psutil

    return [(child.pid, process_ticks(child.pid)) for child in psutil.Process(pid).children(recursive=True)]


def _alive(processes: list[tuple[int, int | None]]) -> list[int]:
    return [pid for pid, ticks in processes if ticks is not None and process_ticks(pid) == ticks]


def test_up_detached_then_down_leaves_nothing(run: Run, place: Place) -> None:
    up = run("up", "-d", cwd=place.folder)
    assert up.code == 0, up
    for worker in ("general-1.1", "optimizer-1.1", "neural-1.1"):
        assert f"{worker} is ready" in up.out
    family = _descendants(place.current["pid"])
    assert len(_alive(family)) == 5  # the nanny, the zygote, three workers
    second = run("up", "-d", cwd=place.folder)
    assert second.code == 2, second
    assert str(place.current["pid"]) in second.err
    down = run("down", cwd=place.folder)
    assert down.code == 0, down
    assert "0 processes left (of 6)" in down.out
    assert _alive(family) == []
    assert run("down", cwd=place.folder).code == 3


def test_a_second_coordinator_on_the_same_data_says_who_holds_it(
    run: Run, place: Place, run_dirs: Callable[[], Path]
) -> None:
    assert run("up", "-d", "--json", cwd=place.folder).code == 0
    done = run("up", "-d", cwd=place.folder, DSPOOL_RUN_DIR=str(run_dirs()))
    assert done.code == 2, done
    assert f"in use by the coordinator with pid {place.current['pid']}" in done.err


def test_down_after_the_coordinator_was_killed_removes_what_it_left(run: Run, place: Place) -> None:
    started = run("up", "-d", "--json", cwd=place.folder).json
    family = _descendants(started["pid"])
    os.kill(started["pid"], signal.SIGKILL)
    wait_until(lambda: not _alive(family), 2.0, "the descendants of a killed coordinator end")
    assert run("status", cwd=place.folder).code == 3
    looked = run("doctor", "--json", cwd=place.folder).json["checks"]
    assert [each["status"] for each in looked if each["check"] == "leftovers"] == ["note"]
    down = run("down", "--json", cwd=place.folder)
    assert down.code == 0, down
    assert down.json["how"] == "dead"
    assert len(down.json["swept"]) == 1
    assert not (place.run_dir / "current.json").exists()
    again = run("up", "-d", "--json", cwd=place.folder)
    assert again.code == 0, again
    assert {row["state"] for row in again.json["workers"]} == {"ready"}


def test_doctor_removes_what_dead_coordinators_left(run: Run, place: Place) -> None:
    started = run("up", "-d", "--json", cwd=place.folder).json
    os.kill(started["pid"], signal.SIGKILL)
    wait_until(lambda: process_ticks(started["pid"]) is None, 5.0, "the coordinator to be gone")
    fixed = run("doctor", "--fix", "--json", cwd=place.folder)
    assert fixed.code == 0, fixed
    assert [each["status"] for each in fixed.json["checks"] if each["check"] == "leftovers"] == ["ok"]
    assert not [entry for entry in place.run_dir.iterdir() if re.fullmatch(r"[0-9a-f]{32}", entry.name)]


def test_down_ends_a_coordinator_that_does_not_answer(run: Run, place: Place) -> None:
    started = run("up", "-d", "--json", cwd=place.folder).json
    family = [*_descendants(started["pid"]), (started["pid"], process_ticks(started["pid"]))]
    os.kill(started["pid"], signal.SIGSTOP)
    down = run("down", "--force", "--json", cwd=place.folder)
    assert down.code == 0, down
    assert down.json["how"] == "killed"
    assert down.json["left"] == []
    assert _alive(family) == []


def test_a_pool_that_cannot_boot_ends_up_with_the_reason(run: Run, place: Place, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "dspy"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('broken on purpose')", encoding="utf-8")
    environ = {"DSPOOL_POOLS__NEURAL__ENV": json.dumps({"PYTHONPATH": str(broken.parent)})}
    done = run("up", "-d", cwd=place.folder, **environ)
    assert done.code == 1, done
    assert "pool neural cannot start its workers" in done.err
    assert "broken on purpose" in done.err
    assert run("status", cwd=place.folder).code == 3


class Foreground:
    """`dspool up`, watched line by line."""

    def __init__(self, place: Place) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "up"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=place.folder, env=_environment(PYTHONUNBUFFERED="1"), start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self._out = self.process.stdout
        self.text = ""

    def read_until(self, part: str) -> None:
        until = time.monotonic() + TIMEOUT_S
        while part not in self.text:
            readable, _, _ = select.select([self._out], [], [], max(until - time.monotonic(), 0))
            data = os.read(self._out.fileno(), 65536) if readable else b""
            assert data, f"no {part!r} in\n{self.text}"
            self.text += data.decode()

    def __enter__(self) -> Foreground:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._out.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_in_the_foreground_ends_in_order(place: Place, number: signal.Signals) -> None:
    with Foreground(place) as up:
        up.read_until("every pool is ready")
        family = _descendants(up.process.pid)
        assert len(family) == 6  # the coordinator, the nanny, the zygote, three workers
        up.process.send_signal(number)
        up.read_until("stopped; 0 processes left")
        assert up.process.wait(TIMEOUT_S) == 0
    assert _alive(family) == []


def test_a_second_signal_leaves_at_once(place: Place) -> None:
    with Foreground(place) as up:
        up.read_until("every pool is ready")
        with Client(place.current["endpoint"]) as client:
            client.submit("sleep", {"seconds": 30})
            wait_until(lambda: client.stats()["pools"]["general"]["busy"], 10.0, "the sleep to run")
            up.process.send_signal(signal.SIGINT)
            up.process.send_signal(signal.SIGTERM)
            up.read_until("stopped; 0 processes left")
            assert up.process.wait(TIMEOUT_S) == 130


def test_the_coordinator_goes_with_a_killed_dspool_up(place: Place) -> None:
    with Foreground(place) as up:
        up.read_until("every pool is ready")
        family = _descendants(up.process.pid)
        up.process.kill()
        wait_until(lambda: not _alive(family), 2.5, "everything below a killed `dspool up` to end")


# --- on a running coordinator -------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Iterator[Place]:
    import shutil
    import tempfile

    run_dir = Path(tempfile.mkdtemp(prefix="r"))
    folder = tmp_path_factory.mktemp("running")
    made = Place(folder, run_dir, faults=True)
    started = run("up", "-d", cwd=folder)
    assert started.code == 0, started
    yield made
    down = run("down", cwd=folder)
    shutil.rmtree(run_dir)
    assert down.code == 0, down


@pytest.fixture
def dspool(run: Run, running: Place) -> Run:
    """Run a command against the running coordinator."""
    return lambda *words, **more: run(*words, cwd=running.folder, **more)


def test_status_shows_pools_and_workers(dspool: Run) -> None:
    told = dspool("status")
    assert told.code == 0, told
    for part in ("general", "optimizer", "neural", "restarts", "p50 ms", "RSS MiB", "accepted", "malformed"):
        assert part in told.out
    document = dspool("status", "--json").json
    assert document["pools"]["general"]["size"] == 1
    assert {row["pool"] for row in document["workers"]} == {"general", "optimizer", "neural"}


def test_call_prints_the_value(dspool: Run) -> None:
    assert dspool("call", "echo", "n=5", "text=a b").out == '{\n  "n": 5,\n  "text": "a b"\n}\n'
    assert dspool("call", "echo", "--args", "-", stdin='["from", "stdin"]').out == '[\n  "from",\n  "stdin"\n]\n'
    told = dspool("call", "echo", "--args", '{"a": 1}', "a=2", "--json").json
    assert told["value"] == {"a": 2}
    assert told["meta"]["pool"] == "general"
    assert told["meta"]["worker"].startswith("general-")
    assert dspool("call", "echo", "--pool", "neural", "--json").json["meta"]["pool"] == "neural"


def test_call_says_how_it_is_to_be_treated(dspool: Run) -> None:
    told = dspool("call", "echo", "n=1", "--priority", "high", "--idempotent", "--idempotency-key", "one")
    assert (told.code, told.out) == (0, '{\n  "n": 1\n}\n')
    refused = dspool("call", "echo", "n=1", "--priority", "urgent", "--json")
    assert (refused.code, refused.json["error"]["details"]["path"]) == (2, "priority")
    assert dspool("call", "echo", "--idempotency-key", "").code == 2


def test_call_prints_a_prediction_field_by_field(dspool: Run) -> None:
    words = ["call", "dspy.Predict", "signature=text -> total: float", 'inputs={"text": "It costs 12.5 in all."}']
    assert dspool(*words).out == "total: 12.5\n"
    assert dspool(*words, "--lm", "default", "--json").json["value"] == {"total": 12.5}


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["nonsense"], 2, "unknown operation"),
        (["echo", "--pool", "genral"], 2, "general"),
        (["dspy.Predict", "signature=a -> b", "inputs={}"], 2, "inputs.a is missing"),
        (["dspy.Predict", "signature=a -> -> b", 'inputs={"a": "x"}'], 2, "line 1, column 6"),
        (["dspy.Predict", "signature=a -> b", 'inputs={"a": "x"}', "--lm", "nope"], 2, "nope"),
        (["echo", "--deadline", "0"], 2, "deadline_s"),
        (["echo", "--deadline", "nan"], 2, "deadline_s"),
        (["sleep", "seconds=20", "--deadline", "0.2"], 4, "deadline"),
        (["fault.raise", "message=on purpose"], 1, "RuntimeError: on purpose"),
        (["fault.kill"], 1, "general-"),
    ],
)
def test_a_failed_call_has_its_exit_code(dspool: Run, words: list[str], code: int, part: str) -> None:
    done = dspool("call", *words)
    assert done.code == code, done
    assert done.out == ""
    assert part in done.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nonsense"], 2),
        (["echo", "--deadline", "nan"], 2),
        (["sleep", "seconds=20", "--deadline", "0.2"], 4),
        (["fault.raise", "message=on purpose"], 1),
    ],
)
def test_a_failed_call_is_a_document_where_one_is_asked_for(dspool: Run, words: list[str], code: int) -> None:
    told = dspool("call", *words, "--json")
    assert told.code == code
    assert told.err == ""
    assert told.json["error"]["exit_code"] == code


def test_a_remote_error_shows_where_it_was_raised(dspool: Run) -> None:
    done = dspool("call", "fault.raise", "message=on purpose")
    assert "Traceback" in done.err
    assert "faults.py" in done.err


def test_an_interrupted_call_is_cancelled(running: Place) -> None:
    with Client(running.current["endpoint"]) as client:
        cancelled = client.stats()["requests"]["cancelled"]
        caller = subprocess.Popen(
            [*COMMAND, "call", "sleep", "seconds=60"], cwd=running.folder, env=_environment(), stdout=subprocess.PIPE
        )
        wait_until(lambda: client.stats()["requests"]["in_flight"], 20.0, "the call to be in flight")
        caller.send_signal(signal.SIGINT)
        out, _ = caller.communicate(timeout=TIMEOUT_S)
        assert (caller.returncode, out) == (130, b"")
        wait_until(lambda: client.stats()["requests"]["cancelled"] > cancelled, 5.0, "the request to be cancelled")
        wait_until(lambda: not client.stats()["requests"]["in_flight"], 5.0, "nothing to be in flight")


def test_a_program_is_deployed_called_optimized_and_removed(dspool: Run, running: Place) -> None:
    tickets = ROOT / "examples" / "tickets"
    told = dspool("deploy", "route", f"{tickets}/program.py:TicketRouter", "--json")
    assert told.code == 0, told
    assert told.json["version"] == 1
    assert dspool("programs", "--json").json[0]["inputs"] == ["ticket"]
    assert "TicketRouter" in dspool("programs").out
    assert re.fullmatch(r"team: \w+\n", dspool("call", "route", "ticket=the parcel is late").out)
    made = running.folder / "route.yaml"
    optimized = dspool(
        "optimize", "route", "--data", f"{tickets}/train.jsonl", "--valset", f"{tickets}/validation.jsonl", "--metric",
        "exact:team", "--optimizer", "LabeledFewShot", "--param", "k=60", "--deploy", "--output", str(made), "--json",
    )  # fmt: skip
    assert optimized.code == 0, optimized
    assert optimized.json["score"] > optimized.json["baseline_score"]
    assert optimized.json["deployed"] == {"name": "route", "version": 2}
    assert made.stat().st_size > 1000
    # Where standard error is no terminal the progress is plain lines.
    assert "LabeledFewShot: score" in optimized.err
    assert "\x1b" not in optimized.err
    assert dspool("undeploy", "route").code == 0
    assert dspool("call", "route", "ticket=x").code == 2
    assert dspool("programs", "--json").json == []


def test_versions_of_a_program_are_listed_compared_and_rolled_back(dspool: Run) -> None:
    for number, signature in ((1, "question -> answer"), (2, "question -> answer, why")):
        target = json.dumps({"module": "dspy.Predict", "signature": signature})
        options = ("--note", "the second\x1b[2J", "--warm") if number == 2 else ()
        told = dspool("deploy", "ask", target, *options, "--json")
        assert (told.json["version"], told.json["previous"]) == (number, number - 1 or None), told
    assert "was deployed already" in dspool("deploy", "ask", target).out
    assert [row["aliases"] for row in dspool("programs", "versions", "ask", "--json").json] == [[], ["live"]]
    assert "the second\\x1b[2J" in dspool("programs", "versions", "ask").out
    assert dspool("programs", "diff", "ask", "1", "--json").json["outputs"] == [["answer"], ["answer", "why"]]
    assert "  + question -> answer, why" in dspool("programs", "diff", "ask", "1", "2").out
    assert dspool("programs", "diff", "ask", "2").out == "ask versions 2 and 2 are the same\n"
    assert dspool("programs", "rollback", "ask").out == "ask@live is version 1 (before: 2)\n"
    assert dspool("programs", "alias", "ask", "next", "2", "--json").json["version"] == 2
    assert "next=2" in dspool("programs", "ls").out
    assert "why: " in dspool("call", "ask@next", "question=why?").out
    assert "why: " not in dspool("call", "ask", "question=why?").out
    assert "note: the second\\x1b[2J" in dspool("programs", "show", "ask", "next").out
    assert dspool("programs", "alias", "ask", "next", "--remove").code == 0
    for words in (("alias", "ask", "next"), ("show", "ask", "next"), ("rollback", "ask", "9"), ("versions", "nobody")):
        assert dspool("programs", *words).code == 2, words
    assert dspool("programs", "undeploy", "ask").code == 0
    assert dspool("programs", "--json").json == []


def test_deploy_takes_a_module_and_a_signature(dspool: Run) -> None:
    target = json.dumps({"module": "dspy.ChainOfThought", "signature": "question -> answer"})
    assert dspool("deploy", "cot", target).code == 0
    assert "reasoning: " in dspool("call", "cot", "question=why?").out
    assert dspool("undeploy", "cot").code == 0


def test_a_program_that_does_not_load_shows_its_traceback(dspool: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise LookupError('nothing to find')\n", encoding="utf-8")
    done = dspool("deploy", "broken", f"{tmp_path}/broken.py:Program")
    assert done.code == 1, done
    assert "LookupError: nothing to find" in done.err
    assert "broken.py" in done.err
    assert dspool("deploy", "echo", "mod:Program").code == 2
    assert dspool("deploy", "x", "{no json").code == 2
    assert dspool("optimize", "nothing", "--data", "/no/file.jsonl", "--metric", "exact:a").code == 2


def test_logs_of_a_worker_and_of_the_coordinator(dspool: Run, running: Place) -> None:
    workers = dspool("status", "--json").json["workers"]
    worker = next(row for row in workers if row["pool"] == "general" and row["state"] in ("ready", "busy"))
    assert dspool("call", "fault.stdout_flood", "mb=1").code == 0
    shown = dspool("logs", worker["id"], "-n", "3")
    assert shown.out == ("x" * 127 + "\n") * 3
    assert len(dspool("logs", worker["id"], "-n", "3", "--json").json) == 3
    assert dspool("logs", "general-99.1").code == 2
    assert "worker_ready" in dspool("logs").out
    entries = dspool("logs", "--json").json
    assert {"event", "level", "timestamp"} <= next(one for one in entries if one.get("event") == "worker_ready").keys()
    # Who has written nothing is told of where it does not mix with what others wrote.
    silent = next(row for row in dspool("status", "--json").json["workers"] if row["pool"] == "neural")
    told = dspool("logs", silent["id"])
    assert (told.code, told.out, told.err) == (0, "", f"{silent['id']} has written nothing\n")
    assert dspool("logs", silent["id"], "--json").json == []
    follower = subprocess.Popen(
        [*COMMAND, "logs", worker["id"], "--follow"], cwd=running.folder, env=_environment(), stdout=subprocess.PIPE
    )
    assert follower.stdout is not None
    os.read(follower.stdout.fileno(), 10)  # it has begun
    os.kill(worker["pid"], signal.SIGKILL)
    follower.communicate(timeout=TIMEOUT_S)
    assert follower.returncode == 0  # a dead worker's log is at its end


def test_config_show_is_that_of_the_running_coordinator(dspool: Run, running: Place) -> None:
    told = dspool("config", "show", "--json", DSPOOL_LOG_LEVEL="error")
    assert told.json["log_level"] == "info"
    assert told.json["run_dir"] == str(running.run_dir)


def test_an_endpoint_is_enough(run: Run, running: Place, tmp_path: Path) -> None:
    endpoint = running.current["endpoint"]
    assert run("call", "ping", cwd=tmp_path, DSPOOL_ENDPOINT=endpoint).code == 0


# --- doctor -------------------------------------------------------------------------------------


def test_doctor_tries_every_pool(run: Run, tmp_path: Path) -> None:
    done = run("doctor", "--live", "--json", cwd=tmp_path)
    assert done.code == 0, done
    assert done.json["healthy"] is True
    statuses = {each["check"]: each["status"] for each in done.json["checks"]}
    live = ["live: start", "live: ping general", "live: ping optimizer", "live: ping neural", "live: dspy.Predict"]
    for check in (
        "Python",
        "libzmq",
        "pidfd",
        "memfd",
        "subreaper",
        "configuration",
        *live,
        "live: embed",
        "live: stop",
    ):
        assert statuses[check] == "ok", done


def test_doctor_fails_on_what_it_finds(run: Run, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    done = run("doctor", cwd=tmp_path, DSPOOL_RUN_DIR=str(tmp_path / "open"))
    assert done.code == 1, done
    assert "chmod 700" in done.out
    bad = run("doctor", "--json", cwd=tmp_path, DSPOOL_FAULTS="maybe")
    assert bad.code == 1, bad
    assert bad.json["healthy"] is False
