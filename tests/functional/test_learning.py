"""`optimize` through the public client on the bundled tickets: what it tells, what it gains, how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, Orchestrator, errors
from orchestrator.client.jobs import JobEvent
from tests.support.acceptance import ROOT, SOON_S, await_full, pools

TICKETS = ROOT / "examples" / "tickets"
ROUTER = f"{TICKETS}/program.py:TicketRouter"
GAIN_POINTS = 20.0


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    lms = {"default": {"model": "offline/knn"}, "slow": {"model": "offline/knn", "params": {"latency_ms": 2000}}}
    with Orchestrator(pools=pools(1, 1), lms=lms) as orchestrator, orchestrator.client() as client:
        yield client


def rows(part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TICKETS / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


def accuracy(client: Client, program: str) -> float:
    """Return the share of the test tickets that a deployed program sends to the right team, in percent."""
    tickets = rows("test")
    found = client.map(program, [{"ticket": ticket["ticket"]} for ticket in tickets])
    right = [bool(got.team == ticket["team"]) for got, ticket in zip(found, tickets, strict=True)]
    return 100.0 * sum(right) / len(right)


def optimize(client: Client, program: str = "tickets", **options: Any) -> Any:
    given = {"trainset": str(TICKETS / "train.jsonl"), "valset": str(TICKETS / "validation.jsonl"), **options}
    return client.optimize(program, optimizer="BootstrapFewShot", metric="exact:team", seed=0, **given)


def test_bootstrap_few_shot_lifts_the_accuracy_on_tickets_never_seen(client: Client, tmp_path: Path) -> None:
    first = client.deploy("tickets", ROUTER)
    before = accuracy(client, "tickets")
    job = optimize(client)
    events = list(job.events())
    result = job.result(SOON_S)
    assert job.status() == "done"
    second = result.deploy()
    after = accuracy(client, "tickets")

    assert after >= before + GAIN_POINTS, f"{before} % -> {after} %"
    assert (second.name, second.version) == ("tickets", first.version + 1)
    assert second.sha256 != first.sha256
    assert result.score >= result.baseline_score + GAIN_POINTS
    assert result.usage["lm_calls"] > 0
    result.to_yaml(tmp_path / "result.yaml")
    assert "baseline_score" in (tmp_path / "result.yaml").read_text()
    assert_told_from_first_to_last(events)
    assert list(job.events()) == events  # they can be read again, from anywhere
    assert list(job.events(after=events[-3].sequence)) == events[-2:]
    assert list(job.events(after=events[-1].sequence)) == []


def assert_told_from_first_to_last(events: list[JobEvent]) -> None:
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    kinds = [event.kind for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert {"progress", "candidate"} <= set(kinds)
    done = [event.data for event in events if event.kind == "progress"]
    assert any(data["done"] == data["total"] for data in done)
    assert all(0 <= data["done"] <= data["total"] for data in done)


def test_the_same_seed_finds_the_same_program(client: Client) -> None:
    client.deploy("same", ROUTER)
    jobs = [optimize(client, "same", trainset=rows("train")[:30], valset=rows("validation")[:10]) for _ in range(2)]
    first, second = (job.result(SOON_S) for job in jobs)
    assert first.program == second.program
    assert (first.score, first.candidates) == (second.score, second.candidates)


def test_an_optimized_program_may_be_deployed_under_a_name_of_its_own(client: Client) -> None:
    job = client.optimize(
        ROUTER, optimizer="LabeledFewShot", metric="exact:team", trainset=rows("train"), valset=rows("validation")
    )
    result = job.result(SOON_S)
    with pytest.raises(errors.InvalidRequest, match="name"):
        result.deploy()
    assert result.deploy("labelled").name == "labelled"
    assert client.program("labelled")(ticket=rows("test")[0]["ticket"]).team
    assert {"labelled"} <= {row["name"] for row in client.programs()}
    client.undeploy("labelled")
    with pytest.raises(errors.NotFound):
        client.execute("labelled", {"ticket": "x"})


def test_a_running_job_is_cancelled_and_the_next_one_runs(client: Client) -> None:
    client.deploy("slow", ROUTER)
    job = optimize(client, "slow", lm="slow")
    waiting = optimize(client, "slow", lm="slow")
    events = job.events()
    assert next(events).kind == "started"
    assert (job.status(), waiting.status()) == ("running", "queued")
    assert waiting.cancel().outcome(SOON_S).how == "dequeued"
    assert job.cancel().outcome(SOON_S).how == "cooperative"
    list(events)  # they end with the job
    assert (job.status(), waiting.status()) == ("cancelled", "cancelled")
    for each in (job, waiting):
        with pytest.raises(errors.Cancelled):
            each.result(SOON_S)
    await_full(client, "optimizer")
    assert client.stats()["pools"]["optimizer"]["restarts"] == 0
    assert client.execute("echo", 1, pool="optimizer") == 1
