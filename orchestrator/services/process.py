"""The services process: what the worker of the internal pool `services` runs.

It opens the store, tells the coordinator all that it needs to know of it, and is ready then. A store that cannot be
used is no reason not to be there: what needs it says what is wrong, until it can be used. Nothing here imports DSPy.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from bridge.protocol.errors import BridgeError, not_found
from bridge.protocol.messages import Program
from bridge.protocol.worker_spec import WorkerSpec
from bridge.worker import arguments
from bridge.worker.call import Call
from orchestrator.errors import DspoolError, StorageError
from orchestrator.services.events import Events
from orchestrator.services.keeper import StoreKeeper
from orchestrator.services.link import Link
from orchestrator.services.orders import Orders
from orchestrator.services.programs.operations import Programs
from orchestrator.services.sessions import Sessions
from orchestrator.services.store import Store

log = logging.getLogger("bridge.services")

Operation = Callable[[Any, Call], Any]
# A tenth of what another process gets, where both could use a whole processor; and who wakes up goes first.
_NICE: Final = 10
# What asks the store and leaves it as it is: that it worked says nothing of a full disk.
_LOOKS: Final = frozenset(
    {"events.read", "programs.diff", "programs.list", "programs.version", "programs.versions", "store.info"}
)


class Part(Protocol):
    """Something that lives in the store: programs, sessions, events."""

    def operations(self) -> dict[str, Operation]:
        """Return what it can be asked, by name."""

    def sync(self, store: Store) -> None:
        """Tell the coordinator what it needs to know of a store that was just opened."""


def build(spec: WorkerSpec) -> Services:
    """Open the store, tell the coordinator of it, return the operations. Called once, while the worker boots.

    Raises DspoolError if the coordinator does not take what it is told: then nothing may begin here.
    """
    os.nice(_NICE)  # calls go first where there are fewer processors than work
    orders = Orders.read(spec.services)
    link = Link(spec.client_endpoint, orders.pools)
    services = Services(link, orders, faults=spec.faults)
    services.begin()
    return services


class Services:
    """Finds operations, as `bridge.worker.operations.Operations` does for other workers."""

    inline: Final = frozenset[str]()

    def __init__(self, link: Link, orders: Orders, *, faults: bool) -> None:
        self._link = link
        self._keeper = StoreKeeper(orders.store, known=link.known_store, sync=self._sync, report=self._report)
        self._programs = Programs(self._keeper, link, orders.programs, allow_pickled=orders.allow_pickled)
        self._parts: list[Part] = [self._programs, Events(self._keeper)]
        if orders.durable:
            self._parts.append(Sessions(self._keeper, link))
        own: dict[str, Operation] = {"store.info": self._info}
        if faults:
            own["services.burn"] = _burn
        self._operations = dict(self._kept(own))
        for part in self._parts:
            self._operations.update(self._kept(part.operations()))

    def begin(self) -> None:
        """Open the store, and sync; what is configured is deployed beside that, for the pools may not be ready yet."""
        self._keeper.open()
        threading.Thread(target=self._programs.start, name="programs", daemon=True).start()

    def find(self, name: str) -> Operation | None:
        """Return the operation `(args, call) -> value`, None if there is none of that name."""
        return self._operations.get(name)

    def batched(self, name: str) -> None:
        """Return None: nothing here takes the items of many callers at once."""

    def unknown(self, name: str) -> BridgeError:
        """Return the NOT_FOUND for a name that `find` does not know."""
        return not_found("operation", name, self._operations)

    def program(self, message: Program) -> None:
        """Take what other workers are told of programs: nothing, for none runs here."""

    def close(self) -> None:
        """Close the store and the line to the coordinator."""
        self._programs.close()
        self._keeper.close()
        self._link.close()

    def _kept(self, operations: Mapping[str, Operation]) -> Iterator[tuple[str, Operation]]:
        for name, operation in operations.items():
            yield name, functools.partial(self._run, operation, writes=name not in _LOOKS)

    def _run(self, operation: Operation, args: Any, call: Call, *, writes: bool) -> Any:
        try:
            value = operation(args, call)
        except StorageError as exc:
            self._keeper.failed(exc)
            raise BridgeError(exc.code, exc.message, retryable=exc.retryable, details=exc.details) from exc
        if writes:
            self._keeper.worked()
        return value

    def _sync(self, store: Store) -> None:
        self._link.store_opened(store.identity(), store.last_run())
        for part in self._parts:
            part.sync(store)

    def _report(self, store: Mapping[str, Any] | None, problem: str) -> None:
        try:
            self._link.report_store(store, problem)
        except DspoolError as exc:  # what was asked for ends as it ends all the same
            log.error("store_not_reported: %s", exc.message)

    def _info(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `store.info {}`: what can be told of the store."""
        arguments.read(args, "store.info")
        return self._keeper().info()


def _burn(args: Any, call: Call) -> dict[str, Any]:
    """Operation `services.burn {seconds}`, in a run with faults: keep this process busy, as fast as it can."""
    given = arguments.read(args, "services.burn", required=("seconds",))
    seconds = arguments.number(given["seconds"], "seconds")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        call.check()
    return {"seconds": seconds, "thread": threading.current_thread().name}
