"""What is checked before anything is sent, what methods look like, what outcomes mean."""

from __future__ import annotations

import inspect
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import signatures
import signatures.errors
from bridge.protocol.errors import BridgeError, encode_error
from bridge.protocol.messages import ERROR, Event, Reply
from bridge.protocol.values import Prediction, encode_value
from orchestrator import AsyncClient, Client
from orchestrator.client.api import Api
from orchestrator.client.calls import absolute_target
from orchestrator.client.dataset import read_rows
from orchestrator.client.future import CancelOutcome, Future, Ticket, final_outcome
from orchestrator.client.jobs import MAX_EVENTS, EventLog, OptimizationResult, read_result
from orchestrator.client.remote import Planned
from orchestrator.client.request import Call, encode_args, request_fields, request_terms
from orchestrator.client.signature_text import with_text
from orchestrator.errors import (
    Cancelled,
    DspoolError,
    InvalidRequest,
    SignatureError,
    TooLarge,
    Unavailable,
    WorkerLost,
)
from signatures.text.parser import read


class Line:
    """The part of a connection that a settled future needs."""

    nesting = 128

    def __init__(self) -> None:
        self.lock = threading.RLock()


def settled(reply: Reply | None, error: DspoolError | None = None) -> Future:
    future = Future(Line(), 1, None)  # type: ignore[arg-type]
    future.settle(reply, error)
    return future


def failed(code: str) -> Future:
    return settled(Reply(status=ERROR, payload=encode_error(BridgeError(code, "text"))))


# --- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["", "x" * 201, None, 7, b"echo", "\ud800"])
def test_an_operation_is_a_short_text(operation: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_fields(operation, None, None, None)
    assert caught.value.path == "operation"


@pytest.mark.parametrize("deadline_s", [0, -1, math.nan, math.inf, "5", True, [1]])
def test_a_deadline_is_a_number_above_zero(deadline_s: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_fields("echo", None, deadline_s, None)
    assert caught.value.path == "deadline_s"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pool", (7, None, None)),
        ("lm", (None, None, "")),
        ("pool", ("\ud800", None, None)),
        ("lm", (None, None, "a\udfff")),
    ],
    ids=["pool", "lm", "pool-surrogate", "lm-surrogate"],
)
def test_names_are_texts(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_fields("echo", *arguments)
    assert caught.value.path == name


@pytest.mark.parametrize("name", ["", "x" * 201, 7, "\ud800"])
def test_keys_and_sessions_are_texts(name: Any) -> None:
    for path in ("idempotency_key", "session"):
        with pytest.raises(InvalidRequest) as caught:
            request_terms("normal", **{path: name})
        assert caught.value.path == path
    assert request_terms("normal", session="Zürich 🏔").session == "Zürich 🏔"


def test_arguments_are_checked_where_they_are_sent() -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode_args({"docs": [1, {"x": object()}]}, 128, 1 << 20)
    assert caught.value.path == "docs[1].x"
    with pytest.raises(TooLarge):
        encode_args("x" * 100, 128, 50)


def test_fields_hold_what_was_given_and_no_more() -> None:
    assert request_fields("echo", None, 1, None) == {"operation": "echo"}
    assert request_fields("echo", "general", None, "gpt", 1) == {
        "operation": "echo", "pool": "general", "lm": "gpt", "flags": 1,
    }  # fmt: skip


# --- methods ----------------------------------------------------------------------------------


def test_both_clients_have_every_method_with_its_documentation() -> None:
    plans = {name: plan for kind in Api.__mro__ for name, plan in vars(kind).items() if isinstance(plan, Planned)}
    assert {"execute", "submit", "map", "deploy", "optimize", "embed", "ping", "stats", "sessions"} <= plans.keys()
    for name, plan in plans.items():
        for client in (Client, AsyncClient):
            method = vars(client)[name]
            assert inspect.isfunction(method)
            assert method.__doc__ == plan.plan.__doc__
            wanted, found = inspect.signature(plan.plan), inspect.signature(method)
            assert list(found.parameters) == list(wanted.parameters)
    assert inspect.signature(Client.ping).return_annotation == "dict[str, Any]"
    assert inspect.signature(AsyncClient.ping).return_annotation == "Awaitable[dict[str, Any]]"


def test_a_subclass_keeps_its_own_methods() -> None:
    class Mine(Client):
        def ping(self, *args: Any, **kwargs: Any) -> Any:
            return "mine"

    class Further(Mine):
        pass

    assert Further.ping is Mine.ping
    assert Further.execute is Client.execute
    assert vars(Mine).keys() & {"execute", "stats"} == set()


@pytest.mark.parametrize("text", ["question answer", "q -> a: os.system", "q -> ", "-> a -> b", "a: strng -> b: itn"])
def test_a_bad_signature_is_refused_where_it_is_sent(text: str) -> None:
    with pytest.raises(SignatureError) as caught:
        with_text({"signature": text, "inputs": {}})
    assert isinstance(caught.value, signatures.errors.SignatureError)
    with pytest.raises(signatures.errors.SignatureError) as wanted:
        read(text)
    error, found = wanted.value, caught.value
    assert (found.message, found.text, found.line, found.column) == (error.message, text, error.line, error.column)
    assert [one[0] for one in found.problems] == [one[0] for one in error.problems]
    assert str(found) == str(error)


@pytest.mark.parametrize("args", [None, 7, {}, {"signature": 7}, {"signature": "q -> a"}, ["signature"]])
def test_other_arguments_are_left_to_the_worker(args: Any) -> None:
    assert with_text(args) is args


def test_a_signature_is_sent_as_its_text() -> None:
    signature = signatures.parse("Answer briefly: question -> n: int[0..9]")
    for given in (signature, signature.spec):
        args = {"signature": given, "inputs": {"question": "?"}}
        assert with_text(args) == {"signature": str(signature), "inputs": {"question": "?"}}
        assert args["signature"] is given
        assert absolute_target({"module": "dspy.Predict", "signature": given})["signature"] == str(signature)


def test_a_signature_with_classes_of_its_own_is_not_sent() -> None:
    signature = signatures.parse("line: Line -> b", types={"Line": Line})
    with pytest.raises(SignatureError, match=r"'Line'.*deploy a program"):
        with_text({"signature": signature})


SAMPLE = """
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, assert_type
from bridge.protocol.values import Prediction
from orchestrator.client.aio import AsyncClient, AsyncFuture
from orchestrator.client.calls import ProgramVersion
from orchestrator.client.client import Client
from orchestrator.client.future import Future
from orchestrator.client.jobs import Job, OptimizationResult

def waiting(client: Client) -> None:
    assert_type(client.submit("echo", 1, deadline_s=2.0), Future)
    assert_type(client.predict("a -> b", a=1), Prediction)
    assert_type(client.module("dspy.Predict", "a -> b")(a=1), Prediction)
    assert_type(client.deploy("qa", "m:QA"), ProgramVersion)
    assert_type(client.map("echo", [1]), Iterator[Any])
    assert_type(client.optimize("qa", trainset=[], metric="exact:a"), Job[OptimizationResult[Any]])
    client.execute("echo", dedline_s=2)  # error

async def awaiting(client: AsyncClient) -> None:
    assert_type(await client.submit("echo", 1), AsyncFuture)
    assert_type(await client.predict("a -> b", a=1), Prediction)
    assert_type(await client.module("dspy.Predict", "a -> b")(a=1), Prediction)
    assert_type(await client.workers(), list[dict[str, Any]])
    assert_type(client.map("echo", [1]), AsyncIterator[Any])
    client.ping(7)  # error
"""


def test_methods_are_typed_for_both_clients(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(SAMPLE)
    root = Path(__file__).resolve().parents[2]
    cache = str(root / ".mypy_cache" / "tests")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache, str(sample)]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env={**os.environ})
    # What a cache keeps is told with the path that the file had.
    errors = re.findall(r"/sample\.py:(\d+): error:", found.stdout)
    wanted = [number for number, line in enumerate(SAMPLE.splitlines(), 1) if line.endswith("# error")]
    assert [int(line) for line in errors] == wanted, found.stdout + found.stderr


def test_a_call_reads_the_value_it_gets() -> None:
    future = settled(Reply(payload=encode_value({"n": 3})))
    assert Call("x", read=lambda found: found["n"] + 1).value(future) == 4


def test_a_file_target_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_target("a/qa.py:QA") == f"{tmp_path}/a/qa.py:QA"
    assert absolute_target("/x/qa.py:QA") == "/x/qa.py:QA"
    assert absolute_target("package.module:QA") == "package.module:QA"
    assert absolute_target({"module": "dspy.Predict"}) == {"module": "dspy.Predict"}


# --- futures ----------------------------------------------------------------------------------


def test_a_prediction_carries_its_meta() -> None:
    reply = Reply(request_id=9, payload=encode_value(Prediction({"answer": "x"})), worker="general-1.1", run_ms=2.5)
    future = settled(reply)
    assert future.result().meta == future.meta
    assert future.meta is not None
    assert (future.meta.request_id, future.meta.worker, future.meta.run_ms) == (9, "general-1.1", 2.5)


def test_a_reply_that_cannot_be_read_is_an_error_each_time() -> None:
    future = settled(Reply(payload=b"\xc1"))
    for _ in range(2):
        with pytest.raises(DspoolError):
            future.result()
    assert isinstance(future.exception(), DspoolError)


def test_a_failed_future_says_so_every_way() -> None:
    future = failed("CANCELLED")
    assert future.done()
    assert future.cancelled()
    assert isinstance(future.exception(), Cancelled)
    with pytest.raises(Cancelled):
        future.result()
    assert not failed("REMOTE_ERROR").cancelled()


@pytest.mark.parametrize(
    ("how", "truth"),
    [("dequeued", True), ("cooperative", True), ("killed", True), ("none", False), ("asked", False)],
)
def test_an_outcome_is_true_when_known_cancelled(how: str, truth: bool) -> None:
    assert bool(CancelOutcome("running", how)) is truth


@pytest.mark.parametrize(
    ("future", "force", "wanted"),
    [
        (failed("CANCELLED"), False, ("running", "cooperative")),
        (failed("WORKER_LOST"), True, ("running", "killed")),
        (failed("WORKER_LOST"), False, ("finished", "none")),
        (settled(Reply(payload=encode_value(1))), False, ("finished", "none")),
        (settled(None, Unavailable("died")), False, ("running", "asked")),
    ],
)
def test_after_asking_the_end_of_the_request_tells(future: Future, force: bool, wanted: tuple[str, str]) -> None:
    ticket = Ticket(1, future)
    ticket.force = force
    assert not ticket.settled()
    ticket.answer = CancelOutcome("running", "asked")
    assert ticket.settled()
    found = final_outcome(ticket)
    assert (found.stage, found.how) == wanted


def test_an_answer_tells_before_the_request_ends() -> None:
    ticket = Ticket(1, Future(Line(), 1, None))  # type: ignore[arg-type]
    ticket.answer = CancelOutcome("queued", "dequeued")
    assert ticket.settled()
    assert final_outcome(ticket) == CancelOutcome("queued", "dequeued")
    assert isinstance(failed("WORKER_LOST").exception(), WorkerLost)


# --- jobs -------------------------------------------------------------------------------------


def test_a_log_forgets_the_oldest_events_of_a_long_job() -> None:
    log = EventLog()
    for number in range(1, MAX_EVENTS + 6):
        log.add(Event(kind="progress", sequence=number))
    assert len(log.after(0)) == MAX_EVENTS
    assert [event.sequence for event in log.after(MAX_EVENTS + 3)] == [MAX_EVENTS + 4, MAX_EVENTS + 5]
    assert log.after(MAX_EVENTS + 5) == []


FOUND = {"program": {"demos": ["é"]}, "score": 80.0, "baseline_score": 30.0, "candidates": [{"score": 80.0}],
         "usage": {"lm_calls": 4}, "seconds": 1.5}  # fmt: skip


def result_of(source: Any, answers: list[Any]) -> tuple[OptimizationResult[Any], list[Call[Any]]]:
    asked: list[Call[Any]] = []

    def run(steps: Any) -> Any:
        value: Any = None
        while True:
            try:
                asked.append(steps.send(value))
            except StopIteration as stop:
                return stop.value
            value = answers.pop(0)

    return read_result(FOUND, source, run), asked


def test_a_result_is_deployed_in_the_place_of_its_program() -> None:
    rows = [{"name": "other", "target": "x:Y", "pool": "general"}, {"name": "qa", "target": "m:QA", "pool": "fast"}]
    result, asked = result_of("qa", [rows, {"name": "qa", "version": 2, "sha256": "s"}])
    assert result.improvement == 50.0
    assert result.deploy().version == 2
    assert asked[1].args == {"name": "qa", "target": "m:QA", "pool": "fast", "state": FOUND["program"], "config": None}


def test_a_result_is_deployed_with_the_config_of_its_program() -> None:
    row = {"name": "qa", "target": "m:QA", "pool": "fast", "config": {"size": 3}}
    result, asked = result_of("qa", [[row], {"name": "best", "version": 1, "sha256": "s"}])
    result.deploy("best")
    assert (asked[1].args["name"], asked[1].args["config"]) == ("best", {"size": 3})


def test_a_result_of_a_bare_target_needs_a_name() -> None:
    result, _ = result_of("m:QA", [])
    with pytest.raises(InvalidRequest) as caught:
        result.deploy()
    assert caught.value.path == "name"
    result, asked = result_of("m:QA", [{"name": "best", "version": 1, "sha256": "s"}])
    assert result.deploy("best").name == "best"
    assert asked[0].args["target"] == "m:QA"


def test_a_result_is_written_as_yaml(tmp_path: Path) -> None:
    import yaml

    result_of("qa", [])[0].to_yaml(tmp_path / "best.yaml")
    assert yaml.safe_load((tmp_path / "best.yaml").read_text(encoding="utf-8")) == FOUND


# --- data sets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [("d.jsonl", '{"q": "1"}\n\n{"q": "2"}\n'), ("d.json", '[{"q": "1"}, {"q": "2"}]'), ("d.csv", "q\n1\n2\n")],
)
def test_rows_are_read_from_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_rows(tmp_path / name, "trainset") == [{"q": "1"}, {"q": "2"}]


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [("d.txt", "", ".jsonl"), ("d.jsonl", "{}\n{", "line 2"), ("d.json", "{}", "list"), ("none.csv", None, "read")],
)
def test_a_file_that_is_no_data_set_is_refused(tmp_path: Path, name: str, text: str | None, word: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidRequest, match=word) as caught:
        read_rows(str(tmp_path / name), "valset")
    assert caught.value.path == "valset"


@pytest.mark.parametrize("rows", [7, [1, 2], ["ab"]])
def test_rows_are_mappings(rows: Any) -> None:
    with pytest.raises(InvalidRequest):
        read_rows(rows, "trainset")
