"""What is loaded before workers are forked: DSPy, what a worker imports of ours, and what first calls would load."""

from __future__ import annotations

import importlib
import threading
from typing import Final

import zmq

from bridge.protocol import codec
from bridge.protocol.messages import Hello
from bridge.protocol.worker_spec import WorkerSpec, decode_spec, encode_spec
from bridge.transport import Dealer
from bridge.worker import __main__ as worker
from bridge.worker import operations
from bridge.worker.call import Call
from bridge.worker.version import package_version

# Imported by `operations.build` and by DSPy when they are first needed.
_MODULES: Final = (
    "dspy",
    worker.__name__,
    "anyio.to_thread",
    "anyio._backends._asyncio",
    "bridge.worker.embedding.hashing",
    "bridge.worker.embedding.operation",
    "bridge.worker.handlers",
    "bridge.worker.remembered",
    "bridge.worker.configuring",
    "bridge.worker.lm",
    "bridge.worker.loading",
    "bridge.worker.modules",
    "bridge.worker.optimize",
    "bridge.worker.programs",
    "bridge.worker.scope",
)
# About as many as a worker has: its io loop's, its executor's, ZeroMQ's.
_THREADS: Final = 11
_NOWHERE: Final = "ipc:///proc/self/no-such-socket"


def load() -> None:
    """Import all of it, read the price list, and do once what every worker does first.

    DSPy, msgspec and ZeroMQ build much at their first call, and threads that end leave stacks and heaps to later ones.

    Nothing but logging is configured, and nothing is left open.
    """
    worker.set_up_logging()
    operations.prepare_environment("")
    for module in _MODULES:
        importlib.import_module(module)
    _load_prices()
    _answer_once()
    _boot_once()
    _run_threads()


def _load_prices() -> None:
    from dspy.clients import model_metadata  # type: ignore[import-untyped]

    model_metadata._load()


def _answer_once() -> None:
    from bridge.worker.lm import LanguageModels
    from bridge.worker.modules import Modules
    from bridge.worker.scope import Scope

    models = LanguageModels({"default": {"model": "offline/knn"}})
    predict = Modules(Scope(models)).operations()["dspy.Predict"]
    arguments = {"signature": "question -> answer", "inputs": {"question": "Is this worker warm?"}}
    predict(arguments, Call(0, 0, "dspy.Predict"))
    models.close()


def _boot_once() -> None:
    spec = WorkerSpec(
        endpoint=_NOWHERE, run_id="", token=b"", worker_id="", pool="", incarnation=0, slots=1,
        heartbeat_interval_s=1.0, message_bytes=1, nesting=1, lms={}, python_path=[], faults=False,
        log_level="info", cache_dir="",
    )  # fmt: skip
    decode_spec(encode_spec(spec))
    hello = Hello(package_version=package_version(), run_id="", pid=0, role="worker")
    codec.decode(codec.encode_frames([hello])[0])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    Dealer(context, spec.endpoint).close()
    context.term()


def _run_threads() -> None:
    all_there = threading.Barrier(_THREADS)
    threads = [threading.Thread(target=all_there.wait) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
