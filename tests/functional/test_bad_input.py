"""What a caller can get wrong in a call: each is a typed error at the caller, and the same worker serves on."""

from __future__ import annotations

import asyncio
import math
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Orchestrator, errors
from tests.support import bad_programs
from tests.support.bad_programs import Silent
from tests.support.failures import failing

FILE = bad_programs.__file__
# Whole numbers of this many digits have no text in Python.
HUGE = 10**5000
MESSAGE_BYTES = 1 << 20
POOLS = {
    "general": {"size": 1},
    "tiny": {"size": 1, "slots": 1, "prefetch": 0, "max_queue": 2},
    "optimizer": {"size": 0},
    "neural": {"size": 0},
}
NESTING = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="module")
def orchestrator(folder: Path) -> Iterator[Orchestrator]:
    limits = {"message_bytes": MESSAGE_BYTES, "nesting": NESTING}
    with Orchestrator(pools=POOLS, limits=limits, python_path=[folder]) as running:
        with running.client() as client:
            client.deploy("asks", f"{FILE}:Asks")
            client.deploy("imported", f"{FILE}:Imported")
        yield running


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client
        assert client.execute("echo", {"still": "here"}) == {"still": "here"}
        assert client.ping()["worker"] == "general-1.1", "a worker was lost"


def kind(value: object) -> str:
    """Return a test's id for a value that has no text."""
    return type(value).__name__


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# --- names --------------------------------------------------------------------------------------------

Act = Callable[[Client], object]


def predict(options: dict[str, Any] | None = None, **more: Any) -> Act:
    return lambda client: client.module("dspy.Predict", "q -> a", options=options, **more)(q="x")


@pytest.mark.parametrize(
    ("act", "nearest"),
    [
        (lambda c: c.execute("ecko"), "echo"),
        (lambda c: c.submit("dspy.ChainOfThougt").result(10), "dspy.ChainOfThought"),
        (lambda c: c.execute("echo", 1, pool="optimiser"), "optimizer"),
        (predict(lm="defalt"), "default"),
        (lambda c: c.program("askz")(question="x"), "asks"),
        (lambda c: c.undeploy("askz"), "asks"),
        (lambda c: c.deploy("qa", f"{FILE}:Asks", pool="genral"), "general"),
        (lambda c: c.deploy("qa", {"module": "dspy.Predcit", "signature": "q -> a"}), "dspy.Predict"),
        (lambda c: c.execute("dspool.stat"), "dspool.stats"),
        (lambda c: c.logs("general-1.2"), "general-1.1"),
    ],
)
def test_unknown_names_suggest_the_nearest(client: Client, act: Act, nearest: str) -> None:
    error = failing(errors.NotFound, lambda: act(client), "unknown", "did you mean", repr(nearest), retryable=False)
    assert error.suggestions[0] == nearest
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), str(twin), twin.suggestions) == (errors.NotFound, str(error), error.suggestions)


def test_a_name_like_no_other_is_answered_with_the_known_ones(client: Client) -> None:
    error = failing(errors.NotFound, lambda: client.execute("zzz"), "'zzz'", "echo", "asks", "dspy.Predict")
    assert error.suggestions == []


def test_a_pool_that_is_off_says_how_to_turn_it_on(client: Client) -> None:
    failing(errors.Unavailable, lambda: client.embed(["a"]), "neural", "size 0", "pools.neural.size")


@pytest.mark.parametrize(
    ("act", "path", "said"),
    [
        (predict({"temprature": 1}), "options.temprature", "did you mean temperature?"),
        (predict({"config": {"temprature": 1}}), "options.config.temprature", "did you mean temperature?"),
        (predict({"reward": "exact:a"}), "options.reward", "it takes adapter, config"),
        (lambda c: c.execute("sleep", {"secs": 1}), "seconds", "did you mean seconds?"),
        (lambda c: c.execute("sleep", {"seconds": "1"}), "seconds", "got str ('1')"),
        (lambda c: c.execute("sleep", {"seconds": HUGE}), "seconds", "at least 0"),
        (lambda c: c.execute("sleep", [1]), "", "takes a mapping"),
        (lambda c: c.execute("dspy.Predict", {"signature": "q -> a"}), "inputs", "needs inputs"),
        (lambda c: c.execute("echo", 1, pool=""), "pool", "1 to 200 characters"),
        (lambda c: c.execute("echo", 1, lm=Silent()), "lm", "<Silent>"),
        (lambda c: c.execute("", 1), "operation", "1 to 200 characters"),
        (lambda c: c.execute("x" * 201, 1), "operation", "1 to 200 characters"),
        (lambda c: c.execute(HUGE, 1), "operation", "<int>"),
        (
            lambda c: c.execute("programs.load", {"target": "x:y", "size": 1}),
            "size",
            "name, pool, sha256, state, target, v",
        ),
        (lambda c: c.execute("\ud800", 1), "operation", "lone surrogates"),
        (lambda c: c.execute("echo", 1, session="\ud800"), "session", "lone surrogates"),
        (lambda c: c.session("\ud800"), "session", "lone surrogates"),
        (lambda c: type(c)(c.endpoint, principal="\ud800"), "principal", "lone surrogates"),
        (lambda c: c.execute("fault.exit", {"code": 1}), "", "`faults: true`"),
        (lambda c: c.deploy("echo", f"{FILE}:Asks"), "name", "built-in"),
        (lambda c: c.deploy("a b", f"{FILE}:Asks"), "name", "letters, digits"),
        (lambda c: c.deploy("qa", "no-colon"), "target", "package.module:Class"),
        (lambda c: c.deploy("qa", f"{FILE}:Askz"), "target", "did you mean Asks?"),
        (lambda c: c.deploy("qa", f"{FILE}:number"), "target", "of type int"),
        (lambda c: c.deploy("qa", f"{FILE}:Needs"), "target", "'model_file'"),
        (lambda c: c.deploy("qa", f"{FILE}:Asks", config={"size": 1}), "target", "'size'"),
        (lambda c: c.deploy("qa", "/no/such/file.py:QA"), "target", "No such file"),
        (lambda c: c.deploy("qa", {"module": "dspy.Predict"}), "target.signature", "is missing"),
        (lambda c: c.deploy("qa", f"{FILE}:Asks", state={"x": {}}), "state", "'answer'"),
    ],
)
def test_wrong_arguments_are_named(client: Client, act: Act, path: str, said: str) -> None:
    failing(errors.InvalidRequest, lambda: act(client), said, path=path, retryable=False)
    assert [row["name"] for row in client.programs()] == ["asks", "imported"]


@pytest.mark.parametrize(
    ("operation", "args", "path"),
    [
        ("programs.deploy", {"name": HUGE, "target": "x:y"}, "name"),
        ("programs.deploy", {"name": "x", "target": HUGE}, "target"),
        ("programs.deploy", {"name": "x", "target": "x:y", "pool": HUGE}, "pool"),
        ("programs.deploy", {"name": "x", "target": "x:y", "pool": [1]}, "pool"),
        ("programs.deploy", {1: 2, "x": 3}, "name"),
        ("programs.deploy", {"name": "\ud800", "target": "x:y"}, "name"),
        ("programs.undeploy", {"name": HUGE}, "name"),
        ("programs.undeploy", {"name": [1]}, "name"),
        ("dspool.logs", {"worker": HUGE}, "worker"),
        ("dspool.logs", {"worker": "general-1.1", "lines": math.nan}, "lines"),
        ("dspool.down", {"drain_s": math.nan}, "drain_s"),
        ("dspool.down", {"drain_s": HUGE}, "drain_s"),
        ("dspool.stats", [1], ""),
    ],
)
def test_no_argument_ends_the_coordinator(client: Client, operation: str, args: Any, path: str) -> None:
    failing(errors.InvalidRequest, lambda: client.execute(operation, args), path=path)


# --- signatures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("question answer", 10, "put a comma between"),
        ("question", 9, "needs '->'"),
        ("question -> a -> b", 15, "exactly one '->'"),
        ("question: -> answer", 11, "a type is missing here"),
        ("question: strr -> answer", 11, "did you mean 'str'?"),
        ("question: list[int -> answer", 15, "the '[' is not closed"),
        ("question, question -> answer", 11, "named twice"),
        ("question -> answer: Literal", 21, "needs arguments"),
        ("question: Image -> answer", 11, "did you mean 'dspy.Image'?"),
        ("question: mypkg.Ticket -> answer", 11, "unknown type 'mypkg.Ticket'"),
        ("question: os.system -> answer", 11, "unknown type 'os.system'"),
        ("question -> answer: subprocess.Popen", 21, "unknown type 'subprocess.Popen'"),
        ("question: (lambda: 1)() -> answer", 12, "is no type"),
        ("__import__('os') -> answer", 1, "starts with an underscore"),
    ],
)
def test_a_signature_that_does_not_parse_is_told_with_a_caret(
    client: Client, text: str, column: int, said: str
) -> None:
    error = failing(
        errors.SignatureError, lambda: client.predict(text, question="x"), said, text=text, line=1, column=column
    )
    # Of the first problem; others follow.
    shown, caret = str(error).splitlines()[1:3]
    assert shown.strip() == text
    assert caret.index("^") - shown.index(text) == column - 1
    failing(errors.SignatureError, lambda: client.deploy("qa", {"module": "dspy.Predict", "signature": text}), said)


def test_a_type_in_a_signature_imports_nothing(client: Client, folder: Path) -> None:
    marker = folder / "imported"
    (folder / "canary.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Ticket: pass\n")
    for text in ("q: canary.Ticket -> a", "q -> a: list[canary.Ticket]", "q: 'canary.Ticket' -> a", "q: canary -> a"):
        failing(errors.SignatureError, partial(client.predict, text, q="x"))
        for module in ("dspy.ChainOfThought", "dspy.ReAct"):
            failing(errors.SignatureError, partial(client.module(module, text), q="x"))
    assert client.program("imported")(names=["canary", "json"]) == ["json"]
    assert not marker.exists()
    # The canary sings where somebody who may do so imports it.
    failing(errors.InvalidRequest, lambda: client.deploy("qa", "canary:Ticket"), "the class Ticket")
    assert marker.exists()


# --- inputs -------------------------------------------------------------------------------------------

TYPED = "question: str, n: int, tags: list[int] -> answer"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"n": 1, "tags": []}, ["inputs.question is missing"]),
        ({"question": "x", "n": 1, "tags": [], "tgas": []}, ["takes no inputs.tgas; did you mean tags?"]),
        ({"question": 3, "n": 1, "tags": []}, ["inputs.question must be a string, got int (3)"]),
        ({"question": HUGE, "n": 1, "tags": []}, ["inputs.question must be a string, got int ("]),
        ({"question": "x", "n": 1, "tags": [1, "x"]}, ["inputs.tags[1] must be an integer, got str ('x')"]),
        ({"question": None, "m": 1, "tags": "x"}, [
            "inputs.n is missing", "takes no inputs.m", "inputs.question must be a string, got None",
            "inputs.tags must be a list of integers, got str ('x')",
        ]),
    ],
)  # fmt: skip
def test_inputs_are_checked_and_every_problem_is_told(client: Client, inputs: dict[str, Any], said: list[str]) -> None:
    error = failing(errors.InvalidRequest, lambda: client.predict(TYPED, **inputs), *said)
    assert error.path.startswith("inputs.")
    assert len(error.details["problems"]) == len(said)
    assert error.path in error.details["problems"][0]


def test_a_programs_inputs_are_those_of_its_forward(client: Client) -> None:
    ask = client.program("asks")
    failing(errors.InvalidRequest, lambda: ask(), "inputs.question is missing", path="inputs.question")
    failing(errors.InvalidRequest, lambda: ask(question="x", time=2), "did you mean times?", path="inputs.time")
    failing(errors.InvalidRequest, lambda: client.execute("asks", ["x"]), "are a mapping", path="inputs")
    assert ask(question="What is it?").answer


def test_a_bad_row_fails_alone(client: Client) -> None:
    rows = [{"seconds": 0}, {"seconds": "x"}, {"seconds": 0, "x": object()}, {"seconds": 0}]
    good, mistyped, unfit, last = client.map("sleep", rows, on_error="yield", chunk=2)
    assert good == last == {"seconds": 0.0}
    assert (type(mistyped), mistyped.path) == (errors.InvalidRequest, "seconds")
    assert (type(unfit), unfit.path) == (errors.InvalidRequest, "x")


# --- values -------------------------------------------------------------------------------------------


def cycle() -> list[Any]:
    loop: list[Any] = [1]
    loop.append({"again": (loop, loop)})
    return loop


@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        (object(), "", "it is a object"),
        ({"docs": [1, {"x": object()}]}, "docs[1].x", "send plain data"),
        ({"a b": {2: (1, {3, len})}}, "['a b'][2][1]{item}", "builtin_function_or_method"),
        ({"rows": [Silent()]}, "rows[0]", "Silent"),
        ({Silent(): 1}, "{key}", "Silent"),
        ({"loop": cycle()}, "loop[1].again[0]", "contains itself"),
        ({"deep": nested(NESTING)}, "deep[0][0]", "limits.nesting"),
        ({"deep": nested(100_000)}, "deep[0][0]", "limits.nesting"),
        (errors.DspoolError, "", "cannot travel"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_travel_is_told_with_its_path(client: Client, value: Any, path: str, said: str) -> None:
    """At the sender: `submit` itself raises."""
    before = client.stats()["requests"]["accepted"]
    error = failing(errors.InvalidRequest, lambda: client.submit("echo", value), "cannot travel", said)
    assert error.path == path or (path and error.path.startswith(path))
    assert client.stats()["requests"]["accepted"] == before


@pytest.mark.parametrize(
    "value", [nested(NESTING), 2**63, 2**64, -(2**63) - 1, HUGE, "\ud800", {1: {"2": None}}], ids=kind
)
def test_odd_values_that_can_travel_do(client: Client, value: Any) -> None:
    assert client.execute("echo", value) == value


def test_not_a_number_travels(client: Client) -> None:
    found = client.execute("echo", [math.nan, math.inf, -math.inf])
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf]


def test_a_message_above_the_limit_is_refused_before_it_is_sent(client: Client) -> None:
    head = len(b"\xc6....")  # of a long bytes value
    fits = bytes(MESSAGE_BYTES - head)
    assert client.execute("echo", fits) == fits
    error = failing(errors.TooLarge, lambda: client.submit("echo", fits + b"x"), "limits.message_bytes", "1,048,577")
    assert error.details == {"bytes": MESSAGE_BYTES + 1, "limit_bytes": MESSAGE_BYTES}


# --- deadlines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "deadline_s",
    [0, -1, -0.0, math.nan, math.inf, -math.inf, 1e308, HUGE, "5", True, False, [1], 1j, Silent()],
    ids=kind,
)
def test_a_deadline_that_is_none_is_refused(client: Client, deadline_s: Any) -> None:
    for act in (client.execute, client.submit):
        error = failing(errors.InvalidRequest, partial(act, "echo", 1, deadline_s=deadline_s), path="deadline_s")
        assert str(error).startswith("deadline_s must be a number of seconds above 0")


def test_work_whose_deadline_passes_is_told_where_it_was(client: Client) -> None:
    blocking = client.submit("sleep", {"seconds": 0.5}, pool="tiny")
    waiting = client.submit("sleep", {"seconds": 0}, pool="tiny", deadline_s=0.1)
    running = client.submit("sleep", {"seconds": 60}, deadline_s=0.1)
    failing(errors.DeadlineExceeded, lambda: waiting.result(10), "sleep", stage="queued")
    failing(errors.DeadlineExceeded, lambda: running.result(10), "sleep", stage="running")
    assert blocking.result(10) == {"seconds": 0.5}


# --- a full queue -------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(orchestrator: Orchestrator, client: Client) -> None:
    clients = [orchestrator.client() for _ in range(6)]
    futures = [one.submit("sleep", {"seconds": 1.0}, pool="tiny") for one in clients]
    refused = [future for future in futures if future.exception(10) is not None]  # whoever came late
    assert len(refused) == 3
    for future in refused:
        error = failing(
            errors.Overloaded, partial(future.result, 10), "pool tiny", "limit 2", "try again in",
            retryable=True,
        )  # fmt: skip
        assert error.retry_after_s is not None
        assert 0 < error.retry_after_s <= 60
    for one in clients:
        one.close()
    assert client.execute("sleep", {"seconds": 0}, pool="tiny") == {"seconds": 0.0}


# --- asyncio ------------------------------------------------------------------------------------------


def test_asyncio_raises_the_same(orchestrator: Orchestrator) -> None:
    async def failure(client: AsyncClient, *args: Any, **options: Any) -> errors.DspoolError:
        with pytest.raises(errors.DspoolError) as caught:
            await client.execute(*args, **options)
        return caught.value

    async def main() -> None:
        async with orchestrator.async_client() as client:
            assert (await failure(client, "ecko")).suggestions[0] == "echo"  # type: ignore[attr-defined]
            assert (await failure(client, "echo", {"a": [len]})).path == "a[0]"  # type: ignore[attr-defined]
            assert type(await failure(client, "echo", bytes(MESSAGE_BYTES))) is errors.TooLarge
            assert (await failure(client, "echo", deadline_s=math.nan)).path == "deadline_s"  # type: ignore[attr-defined]
            late = await failure(client, "sleep", {"seconds": 60}, deadline_s=0.1)
            assert late.stage == "running"  # type: ignore[attr-defined]
            with pytest.raises(errors.SignatureError):
                await client.predict("q: os.system -> a", q="x")
            assert await client.execute("echo", 1) == 1

    asyncio.run(main())
