"""What no message of a worker may say."""

from __future__ import annotations

import msgspec

from bridge.worker.spec_secrets import secrets_of
from tests.support.operations import SPEC


def test_all_that_sounds_like_a_secret_is_one() -> None:
    spec = msgspec.structs.replace(
        SPEC,
        lms={
            "default": {"model": "openai/a-long-name", "api_key": "lm-key-123", "params": {"max_tokens": 12345678}},
            "other": {"params": {"extra_headers": {"Authorization": "Bearer abc", "X-Name": "not-a-secret"}}},
            "third": {"params": {"credentials": {"parts": ["part-of-it", "a"]}, "stop": ["not-a-secret"]}},
        },
        embedder={"model": "offline/embedder", "api_key": "embedder-key"},
        mcp={
            "files": {"command": ["serve-files"], "env": {"ROOT": "env-value-1", "N": "7"}},
            "web": {"url": "http://x"},
        },
    )
    assert set(secrets_of(spec)) == {"lm-key-123", "Bearer abc", "part-of-it", "embedder-key", "env-value-1"}


def test_a_secret_that_holds_another_is_taken_out_whole() -> None:
    lms = {name: {"api_key": key} for name, key in {"a": "secret-key", "b": "secret-key-of-b"}.items()}
    assert secrets_of(msgspec.structs.replace(SPEC, lms=lms, mcp={})) == ("secret-key-of-b", "secret-key")
