from __future__ import annotations

from orchestrator.config import load
from orchestrator.coordinator.births import THREAD_CAPS, environment


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
    assert env == {"OTHER": "kept", "EMPTY": "", "OWN": "s3cret", **THREAD_CAPS}
