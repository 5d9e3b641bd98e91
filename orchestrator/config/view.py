"""`show`: settings as the file would say them, defaults resolved, secrets masked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import urlsplit

from orchestrator.config.check import SECRET_KEY
from orchestrator.config.settings import EmbedderConfig, LMConfig, McpConfig, Settings
from pools.config import PoolConfig

MASK: Final = "****"
_PASSWORD: Final = re.compile(r"([?&](?:ssl)?password=)[^&]*", re.IGNORECASE)


def show(settings: Settings) -> dict[str, Any]:
    """Return plain data in the shape of `dspool.yaml`, every default filled in, no secret readable."""
    return {
        "pools": {pool.name: _pool(pool) for pool in settings.pools},
        "lms": {name: _lm(lm) for name, lm in settings.lms.items()},
        "embedder": _embedder(settings.embedder),
        "mcp": {name: _mcp(server) for name, server in settings.mcp.items()},
        "programs": {name: asdict(program) for name, program in settings.programs.items()},
        "store": {"url": None if settings.store.url is None else store_address(settings.store.url.get_secret_value())},
        "python_path": list(settings.python_path),
        "data_dir": str(settings.data_dir),
        "run_dir": str(settings.run_dir),
        "limits": {
            **asdict(settings.limits),
            "principal_rows": settings.fleet.principal_rows,
            "poison_deaths": settings.fleet.poison_deaths,
        },
        "degradation": None if settings.fleet.degradation is None else asdict(settings.fleet.degradation),
        "sessions": asdict(settings.fleet.sessions),
        "security": {"allow_pickled_programs": settings.allow_pickled_programs},
        "faults": settings.faults,
        "log_level": settings.log_level,
    }


def _pool(pool: PoolConfig) -> dict[str, Any]:
    shown = asdict(pool)
    del shown["name"], shown["max_size"], shown["devices"], shown["internal"]
    if operations := shown.pop("fallback_operations"):
        shown["fallback"] = {"pool": pool.fallback, "operations": operations}
    if pool.max_size is not None:
        shown["size"] = {"min": pool.size, "max": pool.max_size}
    if pool.batch is None:
        del shown["batch"]  # a mapping without values means its defaults
    usual = None if pool.batch is None else pool.batch.prefetch
    shown["prefetch"] = "auto" if pool.prefetch == usual else pool.prefetch
    shown["restart"]["backoff_s"] = list(pool.restart.backoff_s)
    shown["preload"] = list(pool.preload)
    shown["env"] = _masked(pool.env)
    return shown


def _lm(lm: LMConfig) -> dict[str, Any]:
    return {
        "model": lm.model,
        "api_key": None if lm.api_key is None else MASK,
        "api_base": _without_password(lm.api_base),
        "params": _masked(lm.params),
        "timeout_s": lm.timeout_s,
        "max_concurrency": lm.max_concurrency,
    }


def _embedder(embedder: EmbedderConfig) -> dict[str, Any]:
    return {
        "model": embedder.model,
        "dim": embedder.dim,
        "api_key": None if embedder.api_key is None else MASK,
        "api_base": _without_password(embedder.api_base),
        "params": _masked(embedder.params),
        "timeout_s": embedder.timeout_s,
        "batch_size": embedder.batch_size,
    }


def _mcp(server: McpConfig) -> dict[str, Any]:
    if server.url is not None:
        return {"url": _without_password(server.url)}
    return {"command": list(server.command), "env": _masked(server.env)}


def _masked(value: Any) -> Any:
    """Mask what stands under a key that sounds like a secret (not numbers: `max_tokens` is none)."""
    if isinstance(value, Mapping):
        return {
            key: MASK if SECRET_KEY.search(key) and isinstance(item, str) else _masked(item)
            for key, item in value.items()
        }
    return [_masked(item) for item in value] if isinstance(value, list) else value


def store_address(url: str) -> str:
    """Return the address of a store without its password, wherever that stands."""
    shown = _without_password(url) or ""
    return _PASSWORD.sub(rf"\1{MASK}", shown)


def _without_password(url: str | None) -> str | None:
    if url is None or "@" not in (place := urlsplit(url).netloc):
        return url
    return url.replace(place, f"{MASK}@{place.rpartition('@')[2]}", 1)
