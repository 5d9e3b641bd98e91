"""`Settings`: the configuration as everything but its reader sees it. Frozen, complete, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from orchestrator.rundir import STORE_FILE
from pools.config import FleetConfig, PoolConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LMConfig:
    """One language model. max_concurrency: calls at once per worker. timeout_s: of one provider call."""

    model: str
    api_key: SecretStr | None
    api_base: str | None
    params: Mapping[str, Any]
    timeout_s: float
    max_concurrency: int

    def for_worker(self) -> dict[str, Any]:
        """Return plain data for `WorkerSpec.lms`. The key in it is readable: it may only travel in a memfd."""
        return {
            "model": self.model,
            "api_key": self.api_key.get_secret_value() if self.api_key else None,
            "api_base": self.api_base,
            "params": dict(self.params),
            "timeout_s": self.timeout_s,
            "max_concurrency": self.max_concurrency,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderConfig:
    """The embedder. dim: None = as the model has it. batch_size: texts at once; None = the pool's batch alone."""

    model: str
    dim: int | None = None
    api_key: SecretStr | None = None
    api_base: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 60.0
    batch_size: int | None = None

    def for_worker(self) -> dict[str, Any]:
        """Return plain data for `WorkerSpec.embedder`. The key in it is readable: it may only travel in a memfd."""
        return {
            "model": self.model,
            "dim": self.dim,
            "api_key": self.api_key.get_secret_value() if self.api_key else None,
            "api_base": self.api_base,
            "params": dict(self.params),
            "timeout_s": self.timeout_s,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class McpConfig:
    """One MCP server: a command that workers start, with the variables that it is given, or a url."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    url: str | None

    def for_worker(self) -> dict[str, Any]:
        """Return plain data for `WorkerSpec.mcp`. The variables may hold secrets: it may only travel in a memfd."""
        return {"command": list(self.command), "env": dict(self.env), "url": self.url}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramConfig:
    """A program that is deployed when the coordinator starts. state: a JSON file, absolute; None = it has none."""

    target: Any
    pool: str = "general"
    state: str | None = None
    config: Mapping[str, Any] | None = None

    def for_services(self) -> dict[str, Any]:
        """Return plain data, as `programs.deploy` takes it but for the file."""
        config = None if self.config is None else dict(self.config)
        return {"target": self.target, "pool": self.pool, "state": self.state, "config": config}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where the store is: a PostgreSQL database, or, without its url, a file in data_dir."""

    url: SecretStr | None = None

    def where(self, data_dir: Path) -> str:
        """Return what `Store.open` opens. A password in it is readable: it may only travel in a memfd."""
        return str(data_dir / STORE_FILE) if self.url is None else self.url.get_secret_value()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a message may be: header_bytes without its payload, message_bytes in all, nesting levels deep.

    shared_bytes: of payloads that one client may have in shared memory at once; 0 = all payloads travel in frames.
    """

    header_bytes: int
    message_bytes: int
    nesting: int
    shared_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration.

    python_path: absolute, first on sys.path in workers. data_dir, run_dir: absolute; nothing is created yet.
    faults: whether `fault.*` operations are accepted. allow_pickled_programs: whether programs may be deployed from
    pickles. file: what was read, None if there was no file.
    """

    fleet: FleetConfig
    lms: Mapping[str, LMConfig]
    embedder: EmbedderConfig
    mcp: Mapping[str, McpConfig]
    programs: Mapping[str, ProgramConfig]
    store: StoreConfig
    python_path: tuple[str, ...]
    data_dir: Path
    run_dir: Path
    limits: Limits
    faults: bool
    log_level: str
    allow_pickled_programs: bool = False
    file: Path | None = field(default=None)

    @property
    def pools(self) -> tuple[PoolConfig, ...]:
        """The pools that users have, the three built-in ones first."""
        return tuple(pool for pool in self.fleet.pools if not pool.internal)
