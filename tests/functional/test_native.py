"""Operations that need no worker: in the client's process, and the same through a worker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import AsyncClient, Client, Orchestrator, errors
from orchestrator.client.request import encode_args
from signatures import Field, Signature, parse
from tests.support.acceptance import pools

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "support" / "programs" / "validate_mine.py:ValidateMine"
SIGNATURE = "question: str[..40], n: int = 3, team: Literal['a', 'b'] = 'a' -> answer"
F1 = {"prediction": "the answer", "reference": "an answer"}


class Ticket:
    """A class that does not travel."""


class Triage(Signature):
    """Route a ticket."""

    ticket: str = Field(input=True, max_length=20)
    team: str = Field(output=True)


@pytest.fixture(scope="module")
def orc() -> Iterator[Orchestrator]:
    with Orchestrator(pools=pools(2)) as orchestrator:
        yield orchestrator


@pytest.fixture(scope="module")
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client() as client:
        yield client


def accepted(client: Client) -> int:
    """Return how many requests have reached the coordinator and were to be counted."""
    return int(client.stats()["requests"]["accepted"])


def outcome(client: Client, operation: str, args: Any, pool: str | None) -> tuple[Any, ...]:
    """Return all that a caller sees of a call: its value, or its error in whole."""
    try:
        value = client.execute(operation, args, pool=pool)
    except errors.DspoolError as error:
        return type(error), error.code, error.message, str(error), error.retryable, error.details
    return type(value), value


# --- the same answer ------------------------------------------------------------------------------

CALLS = [
    ("template", {"template": "{{ name }}{% for x in xs %} {{ x }}{% endfor %}", "values": {"name": "é", "xs": [1]}}),
    ("template", {"template": "Hello {{ nme }}", "values": {"name": "x"}}),
    ("template", {"template": "{% if %}", "values": {}}),
    ("template", {"template": "{{ x.__class__ }}", "values": {"x": 1}}),
    ("template", {"tmplate": "x"}),
    ("template", None),
    ("template", ["x"]),
    ("validate", {"signature": SIGNATURE, "inputs": {"question": "?", "n": "7"}}),
    ("validate", {"signature": SIGNATURE, "inputs": {"question": 5, "n": "x", "tem": 1}}),
    ("validate", {"signature": SIGNATURE, "inputs": {}}),
    ("validate", {"signature": SIGNATURE}),
    ("validate", {"signature": "when: date, sum: Decimal, seen: set[int] -> b",
                  "inputs": {"when": "2026-01-02", "sum": "1.50", "seen": [1, 2, 2]}}),
    ("metrics.exact", {"prediction": "The  Answer", "reference": "answer"}),
    ("metrics.f1", F1),
    ("metrics.f1", {"prediction": "a"}),
    ("metrics.f2", F1),
    ("validators.email", {"value": "someone@example.org"}),
    ("validators.email", {"value": "nobody"}),
    ("validators.nothing", {}),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "args"), CALLS)
def test_a_worker_answers_the_same(client: Client, operation: str, args: Any) -> None:
    native = outcome(client, operation, args, None)
    assert outcome(client, operation, args, "general") == native
    if native[0] is errors.InvalidRequest and isinstance(args, dict):
        assert native[5]["path"] != ""


def test_a_native_call_takes_no_round_trip(client: Client) -> None:
    before = accepted(client)
    assert client.execute("metrics.exact", {"prediction": "x", "reference": "x"}) == 1.0
    assert client.submit("metrics.f1", F1).result() == pytest.approx(1.0)
    assert list(client.map("metrics.f1", [F1] * 10)) == [1.0] * 10
    assert accepted(client) == before
    client.execute("metrics.f1", F1, pool="general")
    assert accepted(client) == before + 1


def test_it_loads_what_it_needs_when_it_needs_it() -> None:
    script = "import sys, orchestrator.client.client, orchestrator.client.aio; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"jinja2", "regex", "pydantic", "numpy", "dspy"} & loaded
    assert not {name for name in loaded if name.startswith(("signatures.native", "signatures.text.parser"))}


# --- futures --------------------------------------------------------------------------------------


def test_a_future_is_settled_and_tells_where_it_ran(client: Client) -> None:
    future = client.submit("metrics.f1", F1)
    assert future.done()
    assert not future.cancelled()
    assert future.result(0) == 1.0
    assert future.exception(0) is None
    assert (future.meta.executed_on, future.meta.worker, future.meta.pool) == ("native", "", "")
    assert future.meta.request_id == future.request_id
    assert 0 < future.meta.run_ms == future.meta.total_ms < 1_000
    assert not future.cancel()
    assert future.cancel().stage == "finished"
    called: list[Any] = []
    future.add_done_callback(called.append)
    assert called == [future]
    assert concurrent.futures.wait([future, client.submit("echo", 1)], 20).not_done == set()
    worked = client.submit("metrics.f1", F1, pool="general")
    assert worked.result() == 1.0
    assert worked.meta.executed_on == "worker"
    assert len({future.request_id, worked.request_id, client.submit("metrics.f1", F1).request_id}) == 3


def test_errors_come_through_the_future_but_bad_signatures_do_not(client: Client) -> None:
    future = client.submit("validate", {"signature": SIGNATURE, "inputs": {}})
    assert isinstance(future.exception(), errors.InvalidRequest)
    assert future.exception().details["path"] == "inputs.question"
    assert future.meta.executed_on == "native"
    for pool in (None, "general"):
        with pytest.raises(errors.SignatureError):
            client.submit("validate", {"signature": "a: strng -> b", "inputs": {}}, pool=pool)


def test_what_the_code_of_a_value_raises_is_a_remote_error(client: Client) -> None:
    class Sour:
        def __str__(self) -> str:
            raise KeyError("no text")

    with pytest.raises(errors.DspoolError):
        client.execute("template", {"template": "{{ x }}", "values": {"x": Sour()}})


def test_an_error_of_a_value_is_as_a_worker_tells_it(client: Client) -> None:
    class Speechless(Exception):
        def __str__(self) -> str:
            raise KeyError("no text")

    class Sour:
        def __eq__(self, other: object) -> bool:
            raise Speechless

        __hash__ = None  # type: ignore[assignment]

    row = {"value": 1, "options": [Sour()]}
    with pytest.raises(errors.RemoteError, match="its __str__ raised KeyError") as caught:
        client.execute("validators.choice", row)
    assert caught.value.type == f"{__name__}.{Speechless.__qualname__}"
    (error,) = client.map("validators.choice", [row], on_error="yield")
    assert isinstance(error, errors.RemoteError)


def test_options_are_checked_and_have_no_effect(client: Client) -> None:
    assert client.execute("metrics.f1", F1, lm="nobody", deadline_s=1e-9) == 1.0
    with pytest.raises(errors.InvalidRequest, match="deadline_s"):
        client.execute("metrics.f1", F1, deadline_s=-1)
    with pytest.raises(errors.InvalidRequest, match="lm"):
        client.execute("metrics.f1", F1, lm=7)


def test_after_close_it_fails_as_others_do(orc: Orchestrator) -> None:
    client = orc.client()
    rows = client.map("metrics.f1", [F1, F1])
    assert next(rows) == 1.0
    client.close()
    with pytest.raises(errors.Cancelled) as wanted:
        client.execute("echo", 1)
    for call in (client.execute, client.submit):
        with pytest.raises(errors.Cancelled) as caught:
            call("metrics.f1", F1)
        assert str(caught.value) == str(wanted.value)
    with pytest.raises(errors.Cancelled):
        next(rows)


def test_a_program_whose_name_begins_alike_runs_in_its_worker(client: Client) -> None:
    client.deploy("validate_mine", str(PROGRAM))
    future = client.submit("validate_mine", {"signature": "no signature at all"})
    assert future.result().signature == "no signature at all!"
    assert future.meta.executed_on == "worker"
    for taken in ("validate", "template", "metrics.mine", "validators.mine"):
        with pytest.raises(errors.InvalidRequest, match="built-in"):
            client.deploy(taken, str(PROGRAM))


# --- maps -----------------------------------------------------------------------------------------


def rows(count: int) -> list[dict[str, Any]]:
    return [{"signature": "n: int[0..] -> b", "inputs": {"n": str(number)}} for number in range(count)]


@pytest.mark.parametrize("pool", [None, "general"])
@pytest.mark.parametrize("ordered", [True, False])
def test_maps(client: Client, pool: str | None, ordered: bool, capfd: pytest.CaptureFixture[str]) -> None:
    found = list(client.map("validate", rows(50), ordered=ordered, window=8, progress=True, pool=pool))
    assert sorted(one["n"] for one in found) == list(range(50))
    assert not ordered or [one["n"] for one in found] == list(range(50))
    assert "validate: 50 of 50 rows" in capfd.readouterr().err


@pytest.mark.parametrize("pool", [None, "general"])
def test_a_bad_row_fails_alone_or_ends_the_map(client: Client, pool: str | None) -> None:
    mixed = rows(4)
    mixed[1] = {"signature": "n: int -> b", "inputs": {"n": "x"}}
    mixed[2] = {"signature": "n: itn -> b", "inputs": {"n": 1}}
    found = list(client.map("validate", mixed, on_error="yield", pool=pool))
    assert [type(one) for one in found] == [dict, errors.InvalidRequest, errors.SignatureError, dict]
    values = client.map("validate", mixed, pool=pool)
    assert next(values) == {"n": 0}
    with pytest.raises(errors.InvalidRequest, match=r"inputs\.n must be an integer"):
        list(values)


def test_rows_are_read_as_values_are_taken(client: Client) -> None:
    read: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for number in range(1_000_000):
            read.append(number)
            yield F1

    values = client.map("metrics.f1", source())
    assert [next(values), next(values)] == [1.0, 1.0]
    assert len(read) == 2


def test_asyncio(orc: Orchestrator, client: Client) -> None:
    async def main() -> None:
        async with AsyncClient(orc.endpoint) as other:
            assert await other.execute("metrics.f1", F1) == 1.0
            future = await other.submit("metrics.f1", F1)
            assert future.done()
            assert await future == 1.0
            assert future.meta.executed_on == "native"
            with pytest.raises(errors.InvalidRequest, match="question"):
                await other.execute("validate", {"signature": SIGNATURE, "inputs": {}})
            found = [one["n"] async for one in other.map("validate", rows(20))]
            assert found == list(range(20))
            mixed = [*rows(1), {"signature": "n -> b", "inputs": {}}]
            kinds = [type(one) async for one in other.map("validate", mixed, on_error="yield")]
            assert kinds == [dict, errors.InvalidRequest]
            assert await other.execute("metrics.f1", F1, pool="general") == 1.0
        with pytest.raises(errors.Cancelled):
            await other.execute("metrics.f1", F1)

    before = accepted(client)
    asyncio.run(main())
    assert accepted(client) == before + 1


def test_others_of_the_event_loop_have_their_turn(orc: Orchestrator) -> None:
    """The one endless row source ends because another task says so."""

    async def main() -> int:
        enough = asyncio.Event()

        def source() -> Iterator[dict[str, Any]]:
            while not enough.is_set():
                yield F1

        async def work(other: AsyncClient) -> int:
            return sum([1 async for _ in other.map("metrics.f1", source())])

        async def work_singly(other: AsyncClient) -> None:
            while not enough.is_set():
                await other.execute("metrics.f1", F1)

        async with AsyncClient(orc.endpoint) as other, asyncio.timeout(20):
            for task in (asyncio.create_task(work(other)), asyncio.create_task(work_singly(other))):
                enough.clear()
                await asyncio.sleep(0.02)
                enough.set()
                await task
        return 1

    assert asyncio.run(main()) == 1


# --- signatures as classes ------------------------------------------------------------------------


def test_a_signature_stands_wherever_its_text_does(client: Client) -> None:
    for signature in (Triage, Triage.spec, str(Triage)):
        assert client.predict(signature, ticket="it burns").keys() == {"team"}
        assert client.module("dspy.ChainOfThought", signature)(ticket="x").keys() == {"reasoning", "team"}
        args = {"signature": signature, "inputs": {"ticket": "x"}}
        assert client.execute("dspy.Predict", args).keys() == {"team"}
        for pool in (None, "general"):
            assert client.execute("validate", args, pool=pool) == {"ticket": "x"}
            assert list(client.map("validate", [args], pool=pool)) == [{"ticket": "x"}]
        assert [one.keys() for one in client.map("dspy.Predict", [args, args])] == [{"team"}] * 2
    client.deploy("triage", {"module": "dspy.Predict", "signature": Triage})
    assert client.program("triage")(ticket="x").keys() == {"team"}
    with pytest.raises(errors.InvalidRequest):
        client.predict(Triage, ticket="x" * 21)


def test_a_signature_stands_in_the_target_of_an_optimization() -> None:
    rows = [{"ticket": f"burns {number}", "team": "fire"} for number in range(4)]
    target = {"module": "dspy.Predict", "signature": Triage}
    with Orchestrator(pools=pools(1, optimizer=1)) as orc, orc.client() as client:
        job = client.optimize(target, trainset=rows, metric="exact:team")
        assert job.result(60).score >= 0
        with pytest.raises(errors.SignatureError):
            client.optimize({"module": "dspy.Predict", "signature": "a"}, trainset=rows, metric="exact:team")


def test_a_signature_with_classes_of_its_own_says_what_to_do(client: Client) -> None:
    own = parse("ticket: Ticket -> team", types={"Ticket": Ticket})
    for attempt in (
        lambda: client.predict(own, ticket="x"),
        lambda: client.module("dspy.Predict", own)(ticket="x"),
        lambda: client.execute("validate", {"signature": own, "inputs": {"ticket": "x"}}),
        lambda: client.deploy("own", {"module": "dspy.Predict", "signature": own}),
        lambda: client.submit("dspy.Predict", {"signature": own, "inputs": {}}),
    ):
        with pytest.raises(errors.SignatureError, match=r"deploy a program.*client\.deploy"):
            attempt()


def test_an_input_may_be_called_as_a_parameter_is(client: Client) -> None:
    assert client.predict("client, name -> answer", client="a", name="b").keys() == {"answer"}
    assert client.module("dspy.Predict", "inputs, client -> answer")(inputs="a", client="b").keys() == {"answer"}


BAD = "a: strng,\n b: itn -> c"


def unlooked(client: Client) -> Any:
    """Send a text that this side has not looked at: it is judged in the worker."""
    connection = client.connection
    args = {"signature": BAD, "inputs": {"a": 1}}
    payload = encode_args(args, connection.nesting, connection.message_bytes)
    return connection.submit(payload, connection.route("dspy.Predict", "")).result()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.predict(BAD, a=1),
        lambda client: client.deploy("bad", {"module": "dspy.Predict", "signature": BAD}),
        lambda client: client.execute("validate", {"signature": BAD, "inputs": {}}),
        lambda client: client.execute("validate", {"signature": BAD, "inputs": {}}, pool="general"),
        unlooked,
    ],
    ids=["predict", "deploy", "validate", "validate in a pool", "judged in the worker"],
)
def test_a_bad_signature_tells_every_problem(client: Client, call: Callable[[Client], Any]) -> None:
    with pytest.raises(errors.SignatureError) as caught:
        call(client)
    error = caught.value
    assert [(one.line, one.column) for one in error.problems] == [(1, 4), (2, 5)]
    assert [one["line"] for one in error.details["problems"]] == [1, 2]
    assert str(error).count("^") == 2
    assert "did you mean 'str'?" in str(error)
    assert "did you mean 'int'?" in str(error)
