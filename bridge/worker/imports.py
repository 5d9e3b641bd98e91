"""Finding what an import path names: `pkg.mod:attr` or `/abs/file.py:attr`."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from bridge.protocol.errors import REMOTE_ERROR, BridgeError, closest
from bridge.worker import arguments, loaded_modules
from bridge.worker.call import CallStopped, current_call
from bridge.worker.raised import remote_error
from bridge.worker.sources import Sources, read, unpack

_lock: Final = threading.RLock()
# How often a call that waits for its turn looks whether it must stop.
_PATIENCE_S: Final = 0.05


class Found(NamedTuple):
    """value: what the path names. sha256: of what it is made of, None where its module has no source.

    sources: these, as long as they are needed.
    """

    value: Any
    sha256: str | None
    sources: Sources | None


@contextmanager
def turn() -> Iterator[None]:
    """Load project code: one thread at a time, for `sys.path` and what is in memory are shared.

    A call that must stop does not go on waiting for its turn. Raises CallStopped.
    """
    while not _lock.acquire(timeout=_PATIENCE_S):
        call = current_call.get()
        if call is not None:
            call.check()
    try:
        yield
    finally:
        _lock.release()


def find(target: str, path: str, *, kept: bytes | None = None) -> Found:
    """Return what `target` names; `path` is the argument it came in, for messages.

    kept: the packed sources of which it is made, whatever is on disk (see `sources`).
    Raises BridgeError: INVALID_REQUEST for a target that is not of the form, or names no file or attribute;
    REMOTE_ERROR with the root traceback when the import raises anything, SystemExit included.
    """
    where, separator, attribute = target.rpartition(":")
    if not separator or not where.strip() or not attribute.isidentifier():
        raise arguments.invalid(path, f"{path} must be 'package.module:name' or '/path/file.py:name', got {target!r}")
    with turn():
        wanted = _sources(where, path) if kept is None else _kept(kept)
        with importing(target):
            module = loaded_modules.bring(wanted)
    if not hasattr(module, attribute):
        near = closest(attribute, [name for name in vars(module) if not name.startswith("_")])
        hint = f"; did you mean {near[0]}?" if near else ""
        raise arguments.invalid(path, f"{path}: {where} has no {attribute!r}{hint}")
    return Found(getattr(module, attribute), wanted.sha256 if wanted.modules else None, wanted)


def _kept(packed: bytes) -> Sources:
    try:
        return unpack(packed)
    except ValueError as exc:
        raise arguments.invalid("source", f"source: {exc}") from exc


def _sources(where: str, path: str) -> Sources:
    if where.endswith(".py") and not Path(where).is_absolute():
        raise arguments.invalid(path, f"{path}: a file is named by its absolute path, got {where!r}")
    try:
        return read(where)
    except OSError as exc:
        raise arguments.invalid(path, f"{path}: {where} cannot be read: {exc.strerror}") from exc


@contextmanager
def importing(what: str) -> Iterator[None]:
    """Turn anything that project code raises while it is loaded into a REMOTE_ERROR; only a stopped call passes."""
    from bridge.worker.configuring import at_import  # it brings DSPy

    try:
        with at_import():
            yield
    except (BridgeError, CallStopped):
        raise
    except BaseException as exc:
        # Project code may raise SystemExit and worse when it is imported; that must not end the worker.
        text = f"{what} could not be loaded: {''.join(traceback.format_exception_only(exc)).strip()}"
        if isinstance(exc, ModuleNotFoundError):
            text += " (workers import what is installed and what stands in a folder of python_path)"
        raise BridgeError(REMOTE_ERROR, text, details=remote_error(exc).details) from exc
