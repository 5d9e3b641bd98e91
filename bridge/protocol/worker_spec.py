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


def encode_spec(spec: WorkerSpec) -> bytes:
    """Return the spec as msgpack."""
    return msgspec.msgpack.encode(spec)


def decode_spec(data: bytes) -> WorkerSpec:
    """Read a spec. Raises msgspec.ValidationError if it is none."""
    return msgspec.msgpack.decode(data, type=WorkerSpec)
