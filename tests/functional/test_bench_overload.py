"""The overload bench: its clients count what they get, and (slow) what it finds is within its limits."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
from typer.testing import CliRunner

from orchestrator import Client, Orchestrator
from orchestrator.bench.overload import run_overload
from orchestrator.bench.swarm import SUCCESS, Order, Outcomes, Swarmer
from orchestrator.cli.app import app
from tests.support.waiting import wait_until

POOLS = {
    "general": {"size": 1, "slots": 2, "prefetch": 0, "max_queue": 8},
    "optimizer": {"size": 0},
    "neural": {"size": 0},
}
WORK = Order(operation="sleep", args={"seconds": 0.01}, seconds=0.3, pool="general")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Orchestrator(pools=POOLS) as orchestrator, orchestrator.client() as client:
        yield client


def test_a_closed_loop_has_each_request_answered(client: Client) -> None:
    before = client.stats()["requests"]["accepted"]
    with Swarmer(client.endpoint) as one:
        found = one.run(Order(**{**WORK.__dict__, "window": 4}))
        again = one.run(Order(**{**WORK.__dict__, "window": 1}))
    for outcomes in (found, again):
        assert outcomes.unanswered == 0
        assert outcomes.count(SUCCESS) == outcomes.sent > 5
        assert min(outcomes.times_ms[SUCCESS]) >= 10.0
    assert client.stats()["requests"]["accepted"] == before + found.sent + again.sent


def test_an_open_loop_does_not_wait_for_answers(client: Client) -> None:
    with Swarmer(client.endpoint) as one:
        found = one.run(Order(**{**WORK.__dict__, "rate": 2_000.0}))
    assert found.sent == pytest.approx(600, rel=0.05)
    assert found.unanswered == 0
    assert sum(map(len, found.times_ms.values())) == found.sent
    assert found.count("OVERLOADED") > found.sent / 2
    assert found.count(SUCCESS) > 10


def test_outcomes_add_up() -> None:
    crowd = Outcomes(sent=1, times_ms={"OK": [1.0]})
    crowd.add(Outcomes(sent=3, unanswered=1, times_ms={"OK": [2.0], "OVERLOADED": [0.5]}))
    assert crowd == Outcomes(sent=4, unanswered=1, times_ms={"OK": [1.0, 2.0], "OVERLOADED": [0.5]})


def test_a_client_of_the_swarm_ends_with_its_block(client: Client) -> None:
    with Swarmer(client.endpoint) as one:
        one.begin(Order(**{**WORK.__dict__, "seconds": 600.0, "window": 1}))
        # Between its fork and its exec it has the command line of its parent.
        (process,) = wait_until(_swarmers, 10.0, "the process of the client")
    assert not process.is_running()


def _swarmers() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "orchestrator.bench.swarm" in str(each.cmdline())]


@pytest.mark.parametrize("other", ["--lives", "--native", "--peers"])
def test_overload_is_not_asked_together_with(other: str) -> None:
    ended = CliRunner().invoke(app, ["bench", "--overload", other])
    assert ended.exit_code == 2
    assert "--overload" in ended.output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_times_too_much_is_borne_and_what_kills_is_contained() -> None:
    report = run_overload(seconds=5.0)
    figures = {figure.name: figure for figure in report.figures}
    broken = [figure.line() for figure in figures.values() if not figure.holds]
    assert broken == [], "\n".join(broken)
    assert figures["offered, in terms of the peak (a closed loop)"].value > 8.0
