"""What a worker knows and no message may say: the secrets that its spec holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from bridge.protocol.worker_spec import WorkerSpec

# A shorter one could be any word of a message.
_LEAST_CHARS: Final = 8
_SECRET_NAME: Final = re.compile(r"key|token|secret|passw|auth|credential", re.IGNORECASE)


def secrets_of(spec: WorkerSpec) -> tuple[str, ...]:
    """Return what stands under a name that sounds like a secret, at any depth, and the variables of MCP servers.

    With them the token of the worker's clients, and the store's password. The longest come first: one may hold another.
    """
    found = {secret for entry in (*spec.lms.values(), spec.embedder) for secret in _secrets(entry, is_secret=False)}
    found |= {str(value) for server in spec.mcp.values() for value in (server.get("env") or {}).values()}
    found |= {spec.client_token, _password(str(spec.services.get("store", "")))}
    return tuple(sorted((one for one in found if len(one) >= _LEAST_CHARS), key=lambda one: (-len(one), one)))


def _password(url: str) -> str:
    return urlsplit(url).password or "" if "://" in url else ""


def _secrets(value: Any, *, is_secret: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets(item, is_secret=is_secret or _SECRET_NAME.search(str(name)) is not None)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item, is_secret=is_secret)
    elif is_secret and isinstance(value, str):
        yield value
