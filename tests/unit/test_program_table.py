"""The coordinator's table of programs: what a deployment may say, and what is kept of it."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.protocol.errors import INVALID_REQUEST, BridgeError
from bridge.protocol.names import TAKEN_NAMES, TAKEN_PREFIXES
from orchestrator.coordinator.programs import Programs

QA = {"name": "qa", "target": "m:QA"}
LOADED = {"sha256": "s", "inputs": ["question"], "outputs": ["answer"]}


def refusal(args: dict[str, Any]) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        Programs().check(args, ["general"])
    return caught.value


@pytest.mark.parametrize("config", [5, "a", [1], {1: 2}, [("size", 1)]])
def test_a_config_that_is_no_mapping_is_refused(config: Any) -> None:
    error = refusal({**QA, "config": config})
    assert (error.code, error.details["path"]) == (INVALID_REQUEST, "config")


@pytest.mark.parametrize("config", [None, {}, {"size": 1}])
def test_the_rows_have_the_config_that_was_deployed(config: Any) -> None:
    programs = Programs()
    programs.deployed(programs.check({**QA, "config": config}, ["general"]), LOADED)
    assert [row["config"] for row in programs.rows()] == [config]


@pytest.mark.parametrize("signature", [None, "question -> answer"])
def test_the_rows_have_the_signature_that_the_worker_told(signature: str | None) -> None:
    programs = Programs()
    told = LOADED if signature is None else {**LOADED, "signature": signature}
    programs.deployed(programs.check(QA, ["general"]), told)
    assert [row["signature"] for row in programs.rows()] == [signature]


@pytest.mark.parametrize("name", [*TAKEN_NAMES, *(f"{prefix}mine" for prefix in TAKEN_PREFIXES)])
def test_names_of_operations_are_taken(name: str) -> None:
    assert refusal({**QA, "name": name}).details["path"] == "name"
