"""Calling the worker's operations in this process, on real DSPy and the offline language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from bridge.protocol.errors import BridgeError
from bridge.protocol.messages import Program
from bridge.protocol.values import decode_value, encode_value
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker import operations
from bridge.worker.call import Call
from bridge.worker.operations import Operations

SPEC = WorkerSpec(
    endpoint="", run_id="run", token=b"", worker_id="general-1.1", pool="general", incarnation=1, slots=8,
    heartbeat_interval_s=1.0, message_bytes=1 << 26, nesting=128, python_path=[], faults=False, log_level="info",
    cache_dir="",
    lms={
        "default": {"model": "offline/knn"},
        "slow": {"model": "offline/knn?latency_ms=30000"},
        "failing": {"model": "offline/knn?error_rate=1.0"},
    },
)  # fmt: skip


@contextmanager
def built(**changes: Any) -> Iterator[Operations]:
    """Build the operations of a worker and close them. changes: of its spec."""
    ops = operations.build(msgspec.structs.replace(SPEC, **changes))
    try:
        yield ops
    finally:
        ops.close()


def run(ops: Operations, name: str, args: Any, *, call: Call | None = None, **more: Any) -> Any:
    """Run an operation as a worker does, the result's trip over the wire included."""
    operation = ops.find(name)
    if operation is None:
        raise ops.unknown(name)
    return decode_value(encode_value(operation(args, call or Call(1, 1, name, **more))))


def refused(ops: Operations, name: str, args: Any, **more: Any) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        run(ops, name, args, **more)
    return caught.value


@contextmanager
def deploying(ops: Operations) -> Iterator[Callable[..., None]]:
    """Give a function that deploys a program as the coordinator does; remove what it deployed."""
    names: set[str] = set()

    def define(name: str, version: int = 1, **spec: Any) -> None:
        names.add(name)
        payload = encode_value({"name": name, **spec})
        ops.program(Program(name=name, program_version=version, payload=payload, aliases=["live"]))

    yield define
    for name in names:
        ops.program(Program(name=name, payload=b""))
