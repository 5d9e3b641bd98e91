"""The options of a call, on the wire: priority, idempotent, idempotency key; checked where they are given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bridge.protocol.messages import FLAG_EVENTS, FLAG_IDEMPOTENT, PRIORITY_HIGH, PRIORITY_LOW, PRIORITY_NORMAL
from orchestrator import AsyncClient, Client
from orchestrator.errors import InvalidRequest
from tests.support.echo_coordinator import far_end

Terms = tuple[str, int, int, str]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with far_end(tmp_path_factory.mktemp("far")) as endpoint:
        yield endpoint


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint) as client:
        yield client


@pytest.fixture
def told(client: Client) -> Callable[[], list[Terms]]:
    """Return what the far end has been asked for since the test began."""
    before = len(client.execute("terms")) + 1
    return lambda: [tuple(one) for one in client.execute("terms")[before:]]


def awaited(endpoint: str, use: Callable[[AsyncClient], Any]) -> None:
    async def run() -> None:
        async with AsyncClient(endpoint) as client:
            await use(client)

    asyncio.run(run())


def test_what_is_not_said_travels_as_the_default(client: Client, told: Callable[[], list[Terms]]) -> None:
    client.execute("echo", 1)
    client.submit("echo", 1).result()
    list(client.map("echo", [1]))
    client.module("dspy.Predict", "a -> b")(a=1)
    client.program("qa")(a=1)
    assert [one[1:] for one in told()] == [(PRIORITY_NORMAL, 0, "")] * 5


def test_every_option_arrives(client: Client, told: Callable[[], list[Terms]]) -> None:
    client.execute("echo", 1, priority="high")
    client.execute("echo", 1, idempotent=True)
    client.submit("echo", 1, priority="low", idempotency_key="k" * 200).result()
    list(client.map("echo", [1, 2, 3], chunk=2, priority="low", idempotent=True))
    client.module("dspy.Predict", "a -> b", priority="high", idempotent=True)(a=1)
    client.program("qa", priority="low")(a=1)
    client.embed(["x"], priority="high")
    assert told() == [
        ("echo", PRIORITY_HIGH, 0, ""),
        ("echo", PRIORITY_NORMAL, FLAG_IDEMPOTENT, ""),
        ("echo", PRIORITY_LOW, FLAG_IDEMPOTENT, "k" * 200),
        *[("echo", PRIORITY_LOW, FLAG_IDEMPOTENT, "")] * 2,
        ("dspy.Predict", PRIORITY_HIGH, FLAG_IDEMPOTENT, ""),
        ("qa", PRIORITY_LOW, 0, ""),
        ("embed", PRIORITY_HIGH, 0, ""),
    ]


def test_the_client_that_is_awaited_sends_the_same(endpoint: str, told: Callable[[], list[Terms]]) -> None:
    async def use(client: AsyncClient) -> None:
        await client.execute("echo", 1, priority="low")
        await (await client.submit("echo", 1, idempotency_key="k"))
        assert [value async for value in client.map("echo", [1], priority="high", idempotent=True)] == [1]
        await client.program("qa", idempotent=True)(a=1)
        with pytest.raises(InvalidRequest, match="priority"):
            await client.execute("echo", 1, priority="urgent")

    awaited(endpoint, use)
    assert told() == [
        ("echo", PRIORITY_LOW, 0, ""),
        ("echo", PRIORITY_NORMAL, FLAG_IDEMPOTENT, "k"),
        ("echo", PRIORITY_HIGH, FLAG_IDEMPOTENT, ""),
        ("qa", PRIORITY_NORMAL, FLAG_IDEMPOTENT, ""),
    ]


def test_a_job_asks_for_its_events_as_before(client: Client, told: Callable[[], list[Terms]]) -> None:
    client.optimize("qa", trainset=[{"a": 1}], metric="exact:a")._future.result()
    assert told() == [("optimize", PRIORITY_NORMAL, FLAG_EVENTS, "")]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[("priority", value) for value in ("urgent", "HIGH", "", None, 0, PRIORITY_HIGH, ["high"])],
        *[("idempotent", value) for value in (1, 0, "yes", None)],
        *[("idempotency_key", value) for value in ("", "k" * 201, 7, b"key", True)],
    ],
)
def test_a_bad_option_is_refused_by_its_name_and_nothing_is_sent(
    client: Client, told: Callable[[], list[Terms]], path: str, value: Any
) -> None:
    option = {path: value}
    calls: list[Callable[[], object]] = [
        lambda: client.execute("echo", 1, **option),
        lambda: client.submit("echo", 1, **option),
        lambda: client.execute("metrics.exact", {"prediction": "a", "reference": "a"}, **option),
    ]
    if path != "idempotency_key":
        calls += [
            lambda: list(client.map("echo", [1], **option)),
            lambda: client.module("dspy.Predict", "a -> b", **option),
            lambda: client.program("qa", **option),
        ]
    for call in calls:
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert caught.value.path == path
        assert caught.value.message.startswith(f"{path} must be ")
    assert told() == []


def test_a_map_has_no_key(client: Client) -> None:
    with pytest.raises(TypeError, match="idempotency_key"):
        client.map("echo", [1], idempotency_key="k")  # type: ignore[call-arg]


def test_what_runs_in_this_process_takes_the_options_and_needs_none(
    client: Client, endpoint: str, told: Callable[[], list[Terms]]
) -> None:
    args = {"prediction": "a", "reference": "a"}
    assert client.execute("metrics.exact", args, priority="high", idempotent=True, idempotency_key="k") == 1.0
    assert client.submit("metrics.exact", args, priority="low").result() == 1.0
    assert list(client.map("metrics.exact", [args], priority="low", idempotent=True)) == [1.0]

    async def use(other: AsyncClient) -> None:
        assert await other.execute("metrics.exact", args, priority="high", idempotency_key="k") == 1.0

    awaited(endpoint, use)
    assert told() == []


def test_questions_about_the_fleet_are_asked_by_name(client: Client, told: Callable[[], list[Terms]]) -> None:
    client.health()
    client.dead_letters()
    client.dead_letter("7")
    client.requeue_dead_letter("7")
    client.drop_dead_letter("7")
    names = ("health", "dead_letters", "dead_letter", "dead_letter_requeue", "dead_letter_drop")
    assert [one[0] for one in told()] == [f"dspool.{name}" for name in names]
    with pytest.raises(InvalidRequest) as caught:
        client.dead_letter(7)  # type: ignore[arg-type]
    assert caught.value.path == "letter_id"
