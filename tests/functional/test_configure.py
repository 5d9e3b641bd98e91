"""`dspy.configure` in a program is seen by its own request alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator import Client, Orchestrator
from tests.support.acceptance import ROOT, SOON_S, pools

PROGRAMS = f"{ROOT}/tests/support/programs/configures.py"
OWN = {"rm": "secret", "num_threads": 77, "own_key": "secret"}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Orchestrator(pools=pools(1)) as orchestrator, orchestrator.client() as client:
        for kind in ("Sync", "Async"):
            client.deploy(kind.lower(), f"{PROGRAMS}:{kind}")
        yield client


@pytest.mark.parametrize("name", ["sync", "async"])
def test_what_a_program_configures_is_its_requests_own(client: Client, name: str) -> None:
    others = {"rm": "set at import", "num_threads": 8, "own_key": None}
    assert client.execute(name, {}, deadline_s=SOON_S) == others
    assert client.execute(name, {"secret": "secret"}, deadline_s=SOON_S) == OWN
    futures = [client.submit(name, {"secret": "secret"} if n % 2 else {}, deadline_s=SOON_S) for n in range(40)]
    assert [future.result() for future in futures] == [OWN if n % 2 else others for n in range(40)]
