"""Two tenants, synchronous and asynchronous programs, in one worker at the same time: nobody sees the other's."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridge.protocol.codec import unpack_outcomes
from bridge.protocol.messages import Heartbeat, Program, Request
from bridge.protocol.values import decode_value, encode_value
from tests.support.worker_process import WorkerProcess, value_of

PROGRAMS = Path(__file__).parents[1] / "support" / "programs" / "tenants.py"
SLOTS = 8
CALLS = 400
LMS = {
    "anna": {"model": "offline/knn?latency_ms=1", "params": {"temperature": 0.25}},
    "bert": {"model": "offline/knn?latency_ms=3", "params": {"temperature": 0.75}},
}
# What each tenant's demonstrations answer.
ANSWERS = {"anna": "the answer of anna", "bert": "the answer of bert"}


class Tenant(NamedTuple):
    """Whose request it is; operation: what it asks for."""

    name: str
    operation: str


def state_of(tenant: str) -> dict[str, Any]:
    """Return the state of a program with a demonstration of the tenant's."""
    import dspy

    ask = dspy.Predict("question -> answer")
    ask.demos = [dspy.Example(question="what is it?", answer=ANSWERS[tenant])]
    return {"ask": {**ask.dump_state(), "lm": None}}


def deploy(worker: WorkerProcess, name: str, attribute: str, **more: Any) -> None:
    spec = {"name": name, "target": f"{PROGRAMS}:{attribute}", **more}
    worker.send(Program(name=name, program_version=1, payload=encode_value(spec), aliases=["live"]))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("tenants")
    more = {"lms": {**LMS, "default": {"model": "offline/knn"}}, "message_bytes": 1 << 20, "nesting": 64}
    with WorkerProcess(folder, real=True, slots=SLOTS, **more) as process:
        process.boot()
        for tenant in LMS:
            for kind in ("Sync", "Async"):
                deploy(process, f"{kind} of {tenant}", kind, state=state_of(tenant))
        deploy(process, "AsyncOnly", "AsyncOnly")
        deploy(process, "Blocks", "Blocks")
        yield process


def ask(worker: WorkerProcess, tenant: Tenant, number: int) -> Request:
    """Ask the tenant's program, or DSPy's own module with an adapter of the tenant's, with the tenant's model."""
    question = f"what is number {number}?"
    args: dict[str, Any] = {"question": question}
    if tenant.operation.startswith("dspy."):
        adapter = {"anna": "xml", "bert": "json"}[tenant.name]
        args = {"signature": "question -> answer", "inputs": args, "options": {"adapter": adapter}}
    return worker.request(tenant.operation, args, principal=tenant.name, lm=tenant.name)


def check(tenant: Tenant, request: Request, answer: Any) -> None:
    if tenant.operation.startswith("dspy."):
        assert list(answer) == ["answer"]
        assert answer.answer
        return
    assert answer.answer == ANSWERS[tenant.name]
    seen = {
        "temperature": LMS[tenant.name]["params"]["temperature"],  # type: ignore[index]
        "adapter": "NoneType", "principal": tenant.name, "request_id": request.request_id, "history": 0, "trace": 0,
        "listeners": 0, "streams": False,
    }  # fmt: skip
    assert (answer.before, answer.after, answer.history) == (seen, seen, 0)


def test_tenants_that_flood_one_worker_see_nothing_of_each_other(worker: WorkerProcess) -> None:
    tenants = [
        Tenant(name, kind.format(name)) for kind in ("Sync of {}", "Async of {}", "dspy.Predict") for name in LMS
    ]
    waiting: deque[tuple[Tenant, Request]] = deque()
    where: dict[str, set[str]] = {}
    for number in range(CALLS):
        tenant = tenants[number % len(tenants)]
        waiting.append((tenant, ask(worker, tenant, number)))
        if len(waiting) == 4 * SLOTS:
            settle(worker, waiting, where)
    while waiting:
        settle(worker, waiting, where)
    for name in LMS:
        # The first call finds out what the program is, on a thread of the loop's.
        assert {one.partition("[")[0] for one in where[f"Sync of {name}"]} - {"AnyIO worker thread"} == {"executor"}
        assert where[f"Async of {name}"] == {"programs"}


def settle(worker: WorkerProcess, waiting: deque[tuple[Tenant, Request]], where: dict[str, set[str]]) -> None:
    tenant, request = waiting.popleft()
    reply = worker.reply_to(request)
    answer = value_of(reply)
    check(tenant, request, answer)
    assert reply.lm_calls == 1
    if "where" in answer:
        where.setdefault(tenant.operation, set()).add(answer.where)


def test_a_program_without_forward_runs_also_by_rows(worker: WorkerProcess) -> None:
    assert worker.call("AsyncOnly", {"question": "a"}).answer == "A"
    rows = [encode_value({"question": one}) for one in "bcd"]
    reply = worker.reply_to(worker.request("AsyncOnly", payload=b"".join(rows), rows=3))
    assert [decode_value(payload).answer for _, payload in unpack_outcomes(reply.payload or b"")] == ["B", "C", "D"]


def test_a_program_that_blocks_the_loop_holds_up_its_loop_alone(worker: WorkerProcess) -> None:
    worker.call("Blocks", {"seconds": 0})
    blocking = worker.request("Blocks", {"seconds": 0.8})
    began_s = time.monotonic()
    behind = worker.request("AsyncOnly", {"question": "a"})
    sync = ask(worker, Tenant("anna", "Sync of anna"), 1)
    assert value_of(worker.reply_to(sync)).answer == ANSWERS["anna"]
    while [epoch for epoch, *_ in worker.expect(Heartbeat).attempts] != [blocking.epoch, behind.epoch]:
        assert time.monotonic() - began_s < 0.8
    assert time.monotonic() - began_s < 0.8
    assert value_of(worker.reply_to(blocking)).answer == "at last"
    assert value_of(worker.reply_to(behind)).answer == "A"
