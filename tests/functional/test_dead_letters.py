"""Dead letters: a request that workers die of is kept, shown, run once more or forgotten, by client and `dspool`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator import Client, Orchestrator, errors
from orchestrator.cli.app import app
from tests.support.acceptance import pools

Run = Callable[..., Result]
SOON_S = 20.0

# It kills its worker while a file is there, and counts its executions in another one.
FRAIL = """
import os, dspy

class Frail(dspy.Module):
    def forward(self, evidence, poison):
        with open(evidence, "a") as file:
            file.write("1\\n")
        if os.path.exists(poison):
            os._exit(13)
        return dspy.Prediction(survived=True)
"""


@pytest.fixture(scope="module")
def orc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    source = tmp_path_factory.mktemp("frail") / "frail.py"
    source.write_text(FRAIL)
    general = {"size": 2, "slots": 1, "prefetch": 0, "breaker": None}
    with Orchestrator(pools=pools(general)) as orchestrator, orchestrator.client() as client:
        client.deploy("frail", f"{source}:Frail")
        yield orchestrator


@pytest.fixture
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client(principal="ann") as client:
        yield client
        for row in client.dead_letters():
            client.drop_dead_letter(row["id"])


@pytest.fixture
def dspool(client: Client) -> Run:
    """Run a command in this process, against this module's coordinator."""
    return lambda *words: CliRunner().invoke(app, words, env={"DSPOOL_ENDPOINT": client.endpoint, "COLUMNS": "200"})


class Poison:
    """A request that kills its workers until it is mended."""

    def __init__(self, folder: Path) -> None:
        self.evidence, self._file = folder / "ran", folder / "poison"
        self.args = {"evidence": str(self.evidence), "poison": str(self._file)}
        self._file.touch()

    def mend(self) -> None:
        self._file.unlink()

    @property
    def executions(self) -> int:
        return len(self.evidence.read_text().splitlines())

    def quarantined(self, client: Client) -> str:
        """Have workers die of it until it is in quarantine; return its id."""
        with pytest.raises(errors.PoisonRequest) as caught:
            client.execute("frail", self.args, idempotent=True, deadline_s=SOON_S)
        assert not caught.value.retryable
        [row] = client.dead_letters()
        assert caught.value.details["dead_letter"] == row["id"]
        return str(row["id"])


@pytest.fixture
def poison(tmp_path: Path) -> Poison:
    return Poison(tmp_path)


def test_it_is_listed_and_its_equals_are_refused_without_being_run(client: Client, poison: Poison) -> None:
    letter = poison.quarantined(client)
    assert poison.executions == 2
    [row] = client.dead_letters()
    assert row["id"] == letter
    assert (row["operation"], row["pool"], row["principal"], row["deaths"]) == ("frail", "general", "ann", 2)
    assert len(row["causes"]) == 2
    assert 0.0 <= row["last_s_ago"] <= row["first_s_ago"] < SOON_S
    assert client.dead_letter(letter)["args"] == poison.args
    with pytest.raises(errors.PoisonRequest):
        client.execute("frail", poison.args)
    assert poison.executions == 2
    assert client.dead_letters()[0]["requests"] == row["requests"] + 1
    # What is not equal to it runs.
    assert client.execute("frail", {**poison.args, "poison": poison.args["evidence"] + "-none"}).survived


def test_a_client_that_is_awaited_sees_the_same(orc: Orchestrator, client: Client, poison: Poison) -> None:
    letter = poison.quarantined(client)

    async def look() -> list[dict[str, Any]]:
        async with orc.async_client() as other:
            with pytest.raises(errors.PoisonRequest):
                await other.execute("frail", poison.args)
            found = await other.dead_letters()
            assert (await other.dead_letter(letter))["args"] == poison.args
            await other.drop_dead_letter(letter)
            return found

    assert [row["id"] for row in asyncio.run(look())] == [letter]
    assert client.dead_letters() == []


def test_what_is_requeued_runs_once_more_and_is_out_of_quarantine(client: Client, poison: Poison) -> None:
    letter = poison.quarantined(client)
    poison.mend()
    assert client.requeue_dead_letter(letter).survived
    assert poison.executions == 3
    assert client.dead_letters() == []
    assert client.execute("frail", poison.args).survived


def test_what_is_dropped_is_accepted_again(client: Client, poison: Poison) -> None:
    client.drop_dead_letter(poison.quarantined(client))
    assert client.dead_letters() == []
    poison.mend()
    assert client.execute("frail", poison.args).survived


@pytest.mark.parametrize("method", ["dead_letter", "requeue_dead_letter", "drop_dead_letter"])
def test_who_is_not_in_quarantine_is_not_found(client: Client, method: str) -> None:
    with pytest.raises(errors.NotFound):
        getattr(client, method)("nobody")


def test_the_command_line_lists_shows_and_requeues(client: Client, poison: Poison, dspool: Run) -> None:
    assert "no request is in quarantine" in dspool("dead-letter", "ls").stdout
    letter = poison.quarantined(client)
    listed = dspool("dead-letter", "ls").stdout
    assert letter in listed
    assert "frail" in listed
    assert [row["id"] for row in json.loads(dspool("dead-letter", "ls", "--json").stdout)] == [letter]
    shown = dspool("dead-letter", "show", letter)
    assert shown.exit_code == 0
    assert f"id: {letter}" in shown.stdout
    assert poison.args["evidence"] in shown.stdout
    assert json.loads(dspool("dead-letter", "show", letter, "--json").stdout)["args"] == poison.args
    refused = dspool("call", "frail", *(f"{name}={value}" for name, value in poison.args.items()))
    assert (refused.exit_code, refused.stdout) == (1, "")
    poison.mend()
    done = dspool("dead-letter", "requeue", letter, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"id": letter, "value": {"survived": True}})
    assert poison.executions == 3
    again = dspool("dead-letter", "requeue", letter)
    assert (again.exit_code, again.stdout) == (2, "")


def test_the_command_line_drops_one_or_all(client: Client, poison: Poison, dspool: Run) -> None:
    letter = poison.quarantined(client)
    for words in ((), (letter, "--all")):
        assert dspool("dead-letter", "drop", *words).exit_code == 2
    assert [row["id"] for row in client.dead_letters()] == [letter]
    assert dspool("dead-letter", "drop", letter).exit_code == 0
    assert client.dead_letters() == []
    letter = poison.quarantined(client)
    assert json.loads(dspool("dead-letter", "drop", "--all", "--json").stdout) == {"dropped": [letter]}
    assert "nothing is in quarantine" in dspool("dead-letter", "drop", "--all").stdout
    assert dspool("dead-letter", "drop", letter).exit_code == 2
