"""Programs that call other programs: a full pool serves what its own programs ask for, and what is asked for ends with
who asked."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from bridge.protocol.errors import INVALID_REQUEST, UNAUTHENTICATED, decode_error
from bridge.protocol.messages import Hello, Refused, Welcome, request_id_base
from orchestrator import Client, Orchestrator
from orchestrator.client.link import open_link
from orchestrator.errors import (
    Cancelled,
    DeadlineExceeded,
    DspoolError,
    InvalidRequest,
    NotFound,
    RemoteError,
    Unauthenticated,
)
from tests.support.coordinator import WireClient, code_of
from tests.support.waiting import wait_until

PROGRAMS = Path(__file__).resolve().parents[1] / "support" / "programs" / "nested.py"
NONE = {"size": 0}
# Each program in a pool in which its own children must find room.
POOLS = {
    "general": {"size": 1, "slots": 2, "grace_s": 0.5, "env": {"NESTED_POOL": "general"}},
    "one": {"size": 1, "slots": 1, "grace_s": 0.5, "env": {"NESTED_POOL": "one"}},
    "optimizer": NONE,
    "neural": NONE,
}
HERE = ("betrays", "chain", "maps", "awaits", "asks", "threads", "leaves", "streams", "facts", "blocks")
WHERE = {**dict.fromkeys(HERE, "one"), "fan": "general", "keeps": "general", "seeks": "general"}


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    with Orchestrator(pools=POOLS) as orchestrator, orchestrator.client() as client:
        for name, pool in WHERE.items():
            client.deploy(name, f"{PROGRAMS}:{name.capitalize()}", pool=pool)
        client.deploy("ask", {"module": "dspy.Predict", "signature": "question -> answer"}, pool="one")
        yield orchestrator


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        yield client


@pytest.fixture
def idle(client: Client) -> Callable[[], None]:
    """Return a wait until nothing is under way."""

    def at_rest() -> bool:
        requests = client.stats()["requests"]
        return bool(requests["queued"] == requests["in_flight"] == 0)

    def wait() -> None:
        wait_until(at_rest, 5.0, "nothing is under way")

    return wait


def chain(client: Client, more: int, operation: str = "", args: Any = None, **options: Any) -> Any:
    inputs = {"name": "chain", "more": more, "operation": operation, "args": args}
    return client.submit("chain", inputs, **options)


def test_a_pool_of_one_slot_serves_a_chain(client: Client) -> None:
    assert chain(client, 3, deadline_s=20).result() == "bottom"


def test_the_eighth_call_within_calls_is_the_last(client: Client) -> None:
    assert chain(client, 8, deadline_s=30).result() == "bottom"
    with pytest.raises(DspoolError, match="8"):
        chain(client, 9, deadline_s=30).result()


def test_why_a_nested_call_failed_is_told_at_every_level(client: Client) -> None:
    with pytest.raises(NotFound, match=r"^in chain: in slep: ") as caught:
        chain(client, 2, "slep", deadline_s=20).result()
    assert "sleep" in caught.value.suggestions
    assert "NotFound" in caught.value.details["remote_traceback"]
    with pytest.raises(RemoteError, match="in chain: in maps: ") as raised:
        chain(client, 1, "maps", {"rows": "three"}, deadline_s=20).result()
    assert raised.value.type == "TypeError"


@pytest.mark.parametrize("force", [False, True])
def test_a_cancelled_parent_takes_its_children_along(client: Client, idle: Callable[[], None], force: bool) -> None:
    future = chain(client, 3, "sleep", {"seconds": 600})
    wait_until(lambda: client.stats()["requests"]["in_flight"] == 5, 10, "the deepest sleeps")
    began = time.monotonic()
    future.cancel(force=force)
    with pytest.raises(Cancelled):
        future.result(10)
    idle()
    assert time.monotonic() - began < 3.0


def test_a_call_that_never_ends_ends_with_its_parent(client: Client, idle: Callable[[], None]) -> None:
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        chain(client, 2, "sleep", {"seconds": 600}, deadline_s=0.5).result()
    assert time.monotonic() - began < 3.0
    idle()


def test_an_awaited_call_ends_with_its_parent_too(client: Client, idle: Callable[[], None]) -> None:
    asked = {"operation": "sleep", "args": {"seconds": 600}}
    with pytest.raises(DeadlineExceeded):
        client.execute("asks", asked, deadline_s=0.3)
    future = client.submit("asks", asked)
    wait_until(lambda: client.stats()["requests"]["in_flight"] == 2, 10, "both run")
    future.cancel()
    with pytest.raises(Cancelled):
        future.result(5)
    idle()


def test_what_nobody_waits_for_ends_with_its_parent(client: Client, idle: Callable[[], None]) -> None:
    assert client.program("leaves", deadline_s=10)(seconds=600) > 0
    idle()


def test_a_full_pool_is_not_in_its_own_way(client: Client, idle: Callable[[], None]) -> None:
    with ThreadPoolExecutor(50) as threads:
        found = list(threads.map(lambda n: client.program("fan", deadline_s=30)(n=n), range(50)))
    assert found == [[[n, 0], [n, 1]] for n in range(50)]
    idle()


def test_a_program_maps_awaits_and_uses_threads(client: Client) -> None:
    assert client.program("maps", deadline_s=20)(rows=300) == sum(range(300))
    assert client.program("threads", deadline_s=20)(calls=20) == list(range(20))
    rows = list(range(40))
    awaited = client.program("awaits", deadline_s=20)(rows=40)
    assert awaited == {"echoes": rows, "mapped": rows, "streamed": [40]}


def test_a_program_streams_another(client: Client) -> None:
    found = client.program("streams", deadline_s=20)(name="ask", question="What is a pool?")
    assert found["value"]
    assert "".join(found["tokens"]).strip() == found["value"].strip()


def test_clients_in_a_program_share_one_connection(client: Client) -> None:
    first, second = (client.program("facts", deadline_s=20)() for _ in range(2))
    for found in (first, second):
        assert (found["value"], found["after"], found["shared"]) == (1, 2, True)
        assert "a program calls in its caller's name" in found["refusal"]
    assert second["threads"] <= first["threads"]


def test_a_client_made_before_anybody_called_serves_every_caller(orchestrator: Orchestrator, client: Client) -> None:
    with Client(orchestrator.endpoint, principal="tenant") as tenant:
        for one in (client, tenant):
            assert one.program("keeps", deadline_s=20)(value=one.endpoint) == one.endpoint


def test_waiting_on_the_event_loop_is_refused_with_advice(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="connect_async"):
        client.program("blocks", deadline_s=20)()


def test_a_childs_usage_is_its_own(client: Client) -> None:
    future = client.submit("streams", {"name": "ask", "question": "Why?"}, deadline_s=20)
    future.result()
    assert future.meta is not None
    assert future.meta.lm_calls == 0


def test_a_client_that_is_kept_serves_requests_to_come(client: Client) -> None:
    seek = client.program("seeks", deadline_s=10)
    found = [seek(query=query) for query in ("cats", "dogs", "parrot", "dogs")]
    assert found == ["red cats sleep", "blue dogs bark", "a green parrot talks", "blue dogs bark"]


# --- who may ask in whose name -----------------------------------------------------------------------------


@pytest.fixture
def betrayed(client: Client) -> dict[str, Any]:
    """Return what the worker of the pool `one` knows of itself."""
    return dict(client.program("betrays", deadline_s=20)())


@pytest.fixture
def parent(client: Client, idle: Callable[[], None]) -> Iterator[int]:
    """Return the id of a request whose program waits for another, in the pool `one`."""
    future = client.submit("asks", {"operation": "sleep", "args": {"seconds": 600}})
    wait_until(lambda: client.stats()["requests"]["in_flight"] == 2, 10, "both run")
    yield future.request_id
    future.cancel(force=True)
    wait([future], 5)
    idle()


@pytest.fixture
def stranger(orchestrator: Orchestrator) -> Iterator[WireClient]:
    with WireClient(orchestrator.endpoint, hello=False) as stranger:
        yield stranger


def nests(stranger: WireClient, parent: int, **hello: Any) -> Any:
    """Say Hello and have a request nested; return its outcome, or why it was refused."""
    stranger.send(Hello(**hello))
    wait_until(lambda: stranger.has(Welcome) or stranger.has(Refused), 10, "an answer")
    if stranger.has(Refused):
        return decode_error(stranger.expect(Refused).payload or b"")
    stranger.ids = itertools.count(request_id_base(stranger.expect(Welcome).client_no) + 1)
    return stranger.call("echo", 7, pool="general", parent_request_id=parent)


def test_who_says_to_be_a_workers_process_nests_nothing(client: Client, parent: int, stranger: WireClient) -> None:
    [worker] = [worker for worker in client.workers() if worker["pool"] == "one" and worker["pid"]]
    refused = nests(stranger, parent, pid=worker["pid"])
    assert code_of(refused) == INVALID_REQUEST
    assert refused.details["path"] == "parent_request_id"
    assert stranger.call("echo", 8) == 8


def test_who_names_a_worker_has_its_token_or_is_refused(client: Client, parent: int, stranger: WireClient) -> None:
    [worker] = [worker for worker in client.workers() if worker["pool"] == "one" and worker["pid"]]
    before = client.stats()["wire"]["malformed"]
    for token in (b"", b"0" * 64, worker["id"].encode()):
        refused = nests(stranger, parent, pid=worker["pid"], worker_id=worker["id"], token=token)
        assert code_of(refused) == UNAUTHENTICATED
        assert worker["id"] in refused.message
    assert client.stats()["wire"]["malformed"] == before + 3
    with pytest.raises(Unauthenticated, match="does not have its token"):
        open_link(
            client.endpoint, principal="default", run_id="", timeout_s=5.0, worker_id=worker["id"], token="0" * 64
        )
    assert code_of(nests(stranger, parent, pid=worker["pid"])) == INVALID_REQUEST  # an ordinary one after all


def test_a_workers_clients_come_as_often_as_they_like_while_it_lives(
    orchestrator: Orchestrator, client: Client, betrayed: dict[str, Any], parent: int
) -> None:
    assert betrayed["seen"] == []
    who = {"worker_id": betrayed["worker_id"], "token": betrayed["token"].encode()}
    for _ in range(2):
        with WireClient(orchestrator.endpoint, hello=False) as insider:
            assert nests(insider, parent, **who) == 7
    with WireClient(orchestrator.endpoint, hello=False) as other:
        assert code_of(nests(other, parent, principal="tenant", **who)) == INVALID_REQUEST
    os.kill(betrayed["pid"], signal.SIGKILL)

    def buried() -> bool:
        return any(each["id"] == betrayed["worker_id"] and each["state"] == "exited" for each in client.workers())

    wait_until(buried, 10, "its burial")
    with WireClient(orchestrator.endpoint, hello=False) as late:
        assert code_of(nests(late, parent, **who)) == UNAUTHENTICATED
    assert chain(client, 1, deadline_s=20).result() == "bottom"


def test_no_error_tells_the_token(client: Client, betrayed: dict[str, Any]) -> None:
    with pytest.raises(RemoteError, match=r"the token is \[redacted\]") as caught:
        client.program("betrays", deadline_s=20)(fails=True)
    token = betrayed["token"]
    assert token not in caught.value.remote_traceback
    assert token not in str(client.execute("dspool.config"))


def test_agents_whose_tools_use_the_client_do_not_fill_a_pool(client: Client) -> None:
    def weather(city: str) -> str:
        """The weather in a city."""
        client.execute("sleep", {"seconds": 0.01}, pool="one")
        return f"rain in {city}"

    agent = client.module("dspy.ReAct", "question -> answer", tools=[weather], pool="one", deadline_s=20)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: agent(question="What is the weather in Rome?").answer, range(12)))
    assert len(answers) == 12
