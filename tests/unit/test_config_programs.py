"""Programs in the configuration, and whether pickled ones are allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Settings
from orchestrator.config.load import load, schema
from orchestrator.config.view import show
from orchestrator.coordinator.internal import is_needed, orders
from orchestrator.errors import ConfigError

QA = {"target": "mypkg.programs:QA"}
PREDICT = {"module": "dspy.Predict", "signature": "question -> answer"}


def read(programs: Any, **more: Any) -> Settings:
    return load(overrides={"programs": programs, **more}, environ={"HOME": "/home/me"})


def test_programs_are_told_to_the_services_process() -> None:
    settings = read({"qa": QA, "ask": {"target": PREDICT, "pool": "neural", "config": {"size": 2}}})
    assert orders(settings).programs == {
        "qa": {"target": "mypkg.programs:QA", "pool": "general", "state": None, "config": None},
        "ask": {"target": PREDICT, "pool": "neural", "state": None, "config": {"size": 2}},
    }
    assert is_needed(settings)
    assert not is_needed(read({}, data_dir="/nowhere"))
    assert show(settings)["programs"]["qa"] == orders(settings).programs["qa"]


def test_paths_are_meant_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "dspool.yaml").write_text(
        "programs:\n"
        "  one: {target: 'programs/qa.py:QA', state: states/qa.json}\n"
        "  two: {target: '~/qa.py:QA'}\n"
        "  three: {target: {pickled: qa.pkl, sha256: abc}}\n"
        "  four: {target: 'mypkg.programs:QA'}\n"
    )
    found = load(tmp_path / "dspool.yaml", environ={"HOME": "/home/me"}).programs
    assert found["one"].target == f"{tmp_path}/programs/qa.py:QA"
    assert found["one"].state == f"{tmp_path}/states/qa.json"
    assert found["two"].target == "/home/me/qa.py:QA"
    assert found["three"].target == {"pickled": f"{tmp_path}/qa.pkl", "sha256": "abc"}
    assert found["four"].target == "mypkg.programs:QA"


def test_the_environment_may_name_programs() -> None:
    found = load(environ={"HOME": "/home/me", "DSPOOL_PROGRAMS__qa__TARGET": "m:QA"}).programs
    assert found["qa"].target == "m:QA"


def test_pickled_programs_are_allowed_only_where_that_is_said() -> None:
    assert read({}).allow_pickled_programs is False
    assert orders(read({}, security={"allow_pickled_programs": True})).allow_pickled is True
    assert show(read({}))["security"] == {"allow_pickled_programs": False}


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ({"qa": {}}, "programs.qa.target: is required"),
        ({"qa": {"target": "no target"}}, "programs.qa.target: must be package.module:Class"),
        ({"qa": {"target": {}}}, "programs.qa.target: must be package.module:Class"),
        ({"qa": {"target": 5}}, "programs.qa.target: must be package.module:Class"),
        ({"qa": {**QA, "pool": "gneral"}}, "programs.qa.pool: no such pool: gneral; did you mean 'general'"),
        ({"qa": {**QA, "pool": "services"}}, "programs.qa.pool: no such pool: services"),
        ({"qa": {**QA, "config": {"a": {1, 2}}}}, "programs.qa.config"),
        ({"qa": {**QA, "targt": "m:QA"}}, "programs.qa.targt: unknown key; did you mean 'target'"),
        ({"echo": QA}, "programs.echo: must not be a built-in operation's name"),
        ({"session.mine": QA}, "programs.session.mine: must not be a built-in operation's name"),
        ({"qa@7": QA}, "programs.qa@7: must be letters, digits"),
        ({"qa": "m:QA"}, "programs.qa: must be a mapping"),
    ],
)
def test_what_is_wrong_is_told(programs: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(programs)
    assert said in str(caught.value)


def test_the_schema_knows_them() -> None:
    known = schema()["properties"]
    assert {"programs", "security"} <= known.keys()
