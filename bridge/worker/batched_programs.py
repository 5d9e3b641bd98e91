"""Deployed functions and classes that are marked with `@batched`."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from contextvars import copy_context
from typing import Any

from bridge.batched import BatchLimits, limits_of
from bridge.worker import arguments, imports
from bridge.worker.batching import BatchCall, miscounted, run_in
from bridge.worker.call import Call
from bridge.worker.plain import to_plain


class BatchedFunction:
    """What a deployment named: a function, or the one instance of a class. An argument value is an item."""

    def __init__(self, name: str, function: Any, limits: BatchLimits) -> None:
        self._name = name
        self._function = function
        self._lock = threading.Lock()
        self.limits = limits

    def __call__(self, args: Any, call: Call) -> Any:
        """Run it on one item alone."""
        with BatchCall(self._name, [call]) as batch:  # what it may do depends on no luck
            results = copy_context().run(run_in, batch, self, [args])
        problem = miscounted(self._name, results, 1)
        if problem is not None:
            raise problem
        return self.joined([results])

    def predictors(self) -> list[Any]:
        """Return none: there is nothing in it to optimize."""
        return []

    def items(self, args: Any) -> list[Any]:
        """Return the one item."""
        return [args]

    def run(self, items: list[Any], call: Call) -> Any:
        """Run it on items of many callers."""
        with self._lock:  # its first call is not the batcher's
            return self._function(items)

    def joined(self, parts: list[Any]) -> Any:
        """Return the result of the one item."""
        return to_plain(parts[0][0])


def load(found: Any, target: str, config: Mapping[str, Any], state: Any) -> BatchedFunction | None:
    """Return what a target names as a batched operation, None if it is not marked as one.

    Raises BridgeError: INVALID_REQUEST for a config that does not fit, or a state; REMOTE_ERROR for what its
    constructor raised.
    """
    limits = limits_of(found)
    if limits is None:
        return None
    if state is not None:
        raise arguments.invalid("state", f"{target} is @batched, no DSPy program: it has no state to load")
    function = found
    if inspect.isclass(found):
        try:
            inspect.signature(found).bind(**config)
        except TypeError as exc:
            raise arguments.invalid("config", f"{target} cannot be made with config {sorted(config)}: {exc}") from exc
        with imports.importing(target):
            function = found(**config)
        if not callable(function):
            raise arguments.invalid("target", f"target: instances of {target} cannot be called: it has no __call__")
    elif config:
        raise arguments.invalid("config", f"{target} is a function and takes no config; mark a class with @batched")
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise arguments.invalid("target", f"target: {target} is async; what is @batched runs on a thread of its own")
    return BatchedFunction(target.rpartition(":")[2], function, limits)
