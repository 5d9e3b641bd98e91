"""Who keeps the store open, and opens it again when it could not be."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from orchestrator.errors import StorageError
from orchestrator.services.store import Store

log = logging.getLogger("bridge.services")

# One that is about to end, a predecessor's, may hold it so long.
HOLD_S: Final = 5.0
# A store that could not be opened is tried again so often, by whoever needs it too.
AGAIN_S: Final = 1.0

# (what is open, None = nothing; what is wrong, "" = nothing)
Report = Callable[[Mapping[str, Any] | None, str], None]


class StoreKeeper:
    """The one store of this process: `keeper()` returns it, open, or raises StorageError. Thread-safe.

    where: as `Store.open` takes it. known: returns the identity that the store must have, "" = any, and there may be
    none yet: it is made. sync: called with a store that has just been opened, before anybody else gets it.
    report: told of each change for better or worse. again_s: how often one that could not be opened is tried again.
    """

    def __init__(
        self, where: str, *, known: Callable[[], str], sync: Callable[[Store], None], report: Report,
        again_s: float = AGAIN_S,
    ) -> None:  # fmt: skip
        self._where = where
        self._known = known
        self._again_s = again_s
        self._sync = sync
        self._report = report
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._opening: Store | None = None  # for `sync` alone
        self._error: StorageError | None = None
        self._tried_at = 0.0
        self._problem = ""
        self._closing = threading.Event()

    def __call__(self) -> Store:
        """Return the store. What could not be opened is tried again, but not in a row. Raises StorageError."""
        return self._store or self._found()

    def _found(self) -> Store:
        with self._lock:
            if self._opening is not None:
                return self._opening
            if self._error is not None and time.monotonic() - self._tried_at >= self._again_s:
                self._open()
            if self._error is not None:
                error = self._error
                raise StorageError(error.message, error.code, error.retryable, dict(error.details))
            assert self._store is not None, "it is open, or there is an error"
            return self._store

    def open(self, hold_s: float = HOLD_S) -> None:
        """Open the store, or take note of why not: then it is tried again in the background until it is open.

        hold_s: how long another process that holds it may take to end. Raises what `known` and `sync` raise.
        """
        with self._lock:
            self._open(hold_s)
            if self._store is None:
                threading.Thread(target=self._heal, name="store", daemon=True).start()

    def _open(self, hold_s: float = 0.0) -> None:
        store = None
        try:
            store = Store.open(self._where, known=self._known())
            store.hold(hold_s)
            self._opening = store
            self._sync(store)
        except StorageError as exc:
            self._error = exc
            if store is not None:
                store.close()
            self.failed(exc)
        except BaseException:
            if store is not None:
                store.close()
            raise
        else:
            self._store, self._error, self._problem = store, None, ""
            self._report({"where": store.where, "schema": store.schema}, "")
        finally:
            self._opening = None
            self._tried_at = time.monotonic()

    def _heal(self) -> None:
        while not self._closing.wait(self._again_s):
            with self._lock:
                if self._store is not None:
                    return
                try:
                    self._open()
                except Exception:  # the coordinator does not take it: it ends this process, or is told again
                    log.exception("store_sync_failed")

    def failed(self, error: StorageError) -> None:
        """Take note that the store could not be used as it should."""
        self._note(error.message)

    def worked(self) -> None:
        """Take note that something was written."""
        if self._problem:
            self._note("")

    def _note(self, problem: str) -> None:
        with self._lock:
            if problem == self._problem:
                return
            self._problem = problem
            store = self._store
        if problem:
            log.error("store_failed: %s", problem)
        else:
            log.warning("store_works_again")
        self._report(None if store is None else {"where": store.where, "schema": store.schema}, problem)

    def close(self) -> None:
        """Close the store; to be called when no operation is running."""
        self._closing.set()
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None
