from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.protocol.errors import UNAUTHENTICATED, BridgeError
from bridge.protocol.messages import Hello
from bridge.protocol.worker_spec import WorkerSpec, decode_spec
from bridge.worker.spec_secrets import secrets_of
from orchestrator.config import load
from orchestrator.coordinator.births import (
    ALLOCATION,
    THREAD_CAPS,
    Births,
    environment,
    zygote_environment,
    zygote_spec,
)
from pools.core.events import Launch
from pools.launch.launcher import ZygoteSpec

ID, OTHER_ID = "general-1.1", "general-2.1"


@pytest.fixture
def births() -> Iterator[Births]:
    births = Births(load(environ={"HOME": "/h"}), run_id="run", endpoint="ipc:///none")
    yield births
    births.close()


def born(births: Births, worker_id: str = ID) -> WorkerSpec:
    births.open_page(worker_id)
    return decode_spec(births.launch_spec(Launch(worker_id, "general", 1, 1)).worker_spec)


def said(worker_id: str, token: str) -> Hello:
    return Hello(worker_id=worker_id, token=token.encode())


def test_a_workers_environment_has_no_configured_key_and_no_setting_of_dspools() -> None:
    environ = {
        "MY_KEY": "s3cret",
        "SAME": "s3cret",
        "TOKEN": "0123456789",
        "OTHER": "kept",
        "EMPTY": "",
        "DSPOOL_LOG_LEVEL": "debug",
    }
    settings = load(
        environ={**environ, "HOME": "/h"},
        overrides={
            "lms": {
                "gpt": {"model": "openai/x", "api_key": "${MY_KEY}"},
                "local": {"model": "openai/y", "api_key": "Bearer ${TOKEN}"},
            }
        },
    )
    env = environment(settings, {"OWN": "s3cret"}, environ)
    assert env == {"OTHER": "kept", "EMPTY": "", "OWN": "s3cret", **ALLOCATION, **THREAD_CAPS}


@pytest.mark.parametrize(
    ("pool", "forked"),
    [
        ({}, True),
        ({"preload": ["json", "os.path"]}, True),
        ({"env": {"TZ": "UTC", "HF_HOME": "/models"}}, True),
        ({"launcher": "spawn"}, False),
        ({"python": "/bin/sh"}, False),
        ({"env": {"OMP_NUM_THREADS": "4"}}, False),
        ({"env": {"PYTHONHASHSEED": "0"}}, False),
        ({"env": {"LD_PRELOAD": "x.so"}}, False),
    ],
)
def test_what_takes_effect_before_python_runs_is_not_forked(pool: dict[str, object], forked: bool) -> None:
    settings = load(environ={"HOME": "/h"}, overrides={"pools": {"general": pool}})
    found = zygote_spec(settings.fleet.pool("general"))
    assert (found is not None) is forked
    if found is not None:
        assert found == ZygoteSpec("general", tuple(pool.get("preload", ())))  # type: ignore[arg-type]


def test_a_zygotes_environment_has_what_dspy_reads_at_its_import() -> None:
    settings = load(environ={"HOME": "/h"}, overrides={"data_dir": "/d"})
    env = zygote_environment(settings, {"OTHER": "kept", "DSPOOL_LOG_LEVEL": "debug"})
    assert env == {"OTHER": "kept", "DSPY_CACHEDIR": "/d/dspy-cache", **ALLOCATION, **THREAD_CAPS}


def test_a_workers_clients_are_known_by_its_second_token_as_often_as_they_come_until_it_is_buried(
    births: Births,
) -> None:
    spec, other = born(births), born(births, OTHER_ID)
    hello = said(ID, spec.client_token)
    assert [births.worker_of(one) for one in (hello, hello, said(OTHER_ID, other.client_token))] == [ID, ID, OTHER_ID]
    assert births.admits(Hello(role="worker", worker_id=ID, token=spec.token))
    assert births.worker_of(hello) == ID
    births.bury(ID)
    with pytest.raises(BridgeError, match="has ended") as caught:
        births.worker_of(hello)
    assert caught.value.code == UNAUTHENTICATED
    assert births.worker_of(said(OTHER_ID, other.client_token)) == OTHER_ID
    replaced = born(births)  # as nobody is: an id is used once
    assert replaced.client_token != spec.client_token


def test_who_names_a_worker_without_its_clients_token_is_nobody(births: Births) -> None:
    spec, other = born(births), born(births, OTHER_ID)
    assert births.worker_of(Hello(pid=1)) == ""
    guesses = [
        said(ID, ""),
        said(ID, "0" * 64),
        said(ID, other.client_token),
        said(ID, spec.client_token[:-1]),
        said("", spec.client_token),
        said("general-9.9", ""),
        said("general-9.9", spec.client_token),
        Hello(worker_id=ID, token=spec.token),
        Hello(worker_id=ID, token=b"\xff" * 64),
    ]
    for guess in guesses:
        with pytest.raises(BridgeError) as caught:
            births.worker_of(guess)
        assert caught.value.code == UNAUTHENTICATED
        assert spec.client_token not in caught.value.message
    assert not births.admits(Hello(role="worker", worker_id=ID, token=spec.client_token.encode()))


def test_what_tells_of_a_birth_does_not_tell_its_secrets(births: Births) -> None:
    births.open_page(ID)
    launch = births.launch_spec(Launch(ID, "general", 1, 1))
    spec = decode_spec(launch.worker_spec)
    assert len(spec.client_token) == 64
    hello = said(ID, spec.client_token)
    for shown in (repr(launch), repr(spec), str(spec.__rich_repr__()), f"{spec}", repr(hello)):
        assert ID in shown
        assert spec.client_token not in shown
        assert str(spec.token)[2:-1] not in shown
    assert spec.client_token in secrets_of(spec)
