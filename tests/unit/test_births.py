from __future__ import annotations

import pytest

from orchestrator.config import load
from orchestrator.coordinator.births import ALLOCATION, THREAD_CAPS, environment, zygote_environment, zygote_spec
from pools.launch.launcher import ZygoteSpec


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
