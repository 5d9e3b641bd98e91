"""`dspy.configure` in a program: it acts on the request that the program serves, and on nobody else's.

DSPy has one table of settings for a process, which the first thread that configures may change. In a worker that would
show one caller's settings to the next. Where a user's module is imported or a program is made, before any request is
served, it acts on the worker as it would on any process.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import dspy  # type: ignore[import-untyped]

from bridge.worker.call import current_call

# The module: `dspy.dsp.utils.settings` as an attribute is the settings object in it.
_module: Final[Any] = importlib.import_module("dspy.dsp.utils.settings")
_MARK: Final = "dspool_confined"
_at_import: ContextVar[bool] = ContextVar("dspool_at_import", default=False)


def confine() -> None:
    """Have `dspy.configure` act on the current request. Idempotent."""
    settings = type(dspy.settings)
    configure = settings.configure
    if hasattr(configure, _MARK):
        return

    @functools.wraps(configure)
    def confined(self: Any, **changes: Any) -> None:
        if current_call.get() is None or _at_import.get():
            configure(self, **changes)
            return
        own = _module.thread_local_overrides
        own.set(_module.dotdict({**own.get(), **changes}))

    setattr(confined, _MARK, True)
    settings.configure = confined
    dspy.configure = dspy.settings.configure


@contextmanager
def at_import() -> Iterator[None]:
    """Run code that prepares the worker for all requests to come."""
    token = _at_import.set(True)
    try:
        yield
    finally:
        _at_import.reset(token)
