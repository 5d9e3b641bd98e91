"""What a worker is told at its birth. It travels in a memfd, never in argv or the environment: it holds secrets."""

from __future__ import annotations

from typing import Any

import msgspec


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker process needs; one immutable value, so a replacement starts exactly like the first.

    lms: name -> the configuration of that language model, keys of `dspool.yaml`'s `lms.<name>`.
    nesting, message_bytes: limits on values, as configured.
    client_endpoint: where clients connect, for programs that are clients themselves; "" = unknown.
    embedder, batch, mcp: as in `dspool.yaml`: `embedder`, the pool's `batch`, `mcp`.
    shared_dir: the run's folder of shared-memory buffers; "" = there is none.
    allow_pickled_programs: whether targets that name pickled programs are loaded, which runs their code.
    builder: "package.module:function" that makes the worker's operations of this; "" = those of every worker.
    services: what the services process is told (see `orchestrator.services.process`); {} = it is none.
    client_token: by which the coordinator knows the clients of this worker's programs, as long as the worker lives.
    session_bytes: of state and turns that a session may hold; session_turns: that are kept of one.
    """

    endpoint: str
    run_id: str
    token: bytes
    worker_id: str
    pool: str
    incarnation: int
    slots: int
    heartbeat_interval_s: float
    message_bytes: int
    nesting: int
    lms: dict[str, dict[str, Any]]
    python_path: list[str]
    faults: bool
    log_level: str
    cache_dir: str
    client_endpoint: str = ""
    embedder: dict[str, Any] = {}
    batch: dict[str, Any] = {}
    mcp: dict[str, dict[str, Any]] = {}
    shared_dir: str = ""
    allow_pickled_programs: bool = False
    client_token: str = ""
    session_bytes: int = 256 * 1024
    session_turns: int = 100
    builder: str = ""
    services: dict[str, Any] = {}

    def __repr__(self) -> str:
        """Name the worker, and tell nothing of the secrets that it is given."""
        return f"<WorkerSpec of {self.worker_id}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Tell no more than `repr` does."""
        return [("worker_id", self.worker_id)]


def encode_spec(spec: WorkerSpec) -> bytes:
    """Return the spec as msgpack."""
    return msgspec.msgpack.encode(spec)


def decode_spec(data: bytes) -> WorkerSpec:
    """Read a spec. Raises msgspec.ValidationError if it is none."""
    return msgspec.msgpack.decode(data, type=WorkerSpec)
