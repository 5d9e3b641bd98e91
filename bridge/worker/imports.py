"""Finding what an import path names: `pkg.mod:attr` or `/abs/file.py:attr`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bridge.protocol.errors import REMOTE_ERROR, BridgeError, closest
from bridge.worker import arguments
from bridge.worker.call import CallStopped
from bridge.worker.raised import remote_error

# Imports of project code run one at a time: sys.path is shared.
_lock = threading.RLock()


class Found(NamedTuple):
    """value: what the path names. source: the text of the file it is in, b"" where there is none."""

    value: Any
    source: bytes


def find(target: str, path: str) -> Found:
    """Return what `target` names; `path` is the argument it came in, for messages.

    Raises BridgeError: INVALID_REQUEST for a target that is not of the form, or names no file or attribute;
    REMOTE_ERROR with the root traceback when the import raises anything, SystemExit included.
    """
    where, separator, attribute = target.rpartition(":")
    if not separator or not where.strip() or not attribute.isidentifier():
        raise arguments.invalid(path, f"{path} must be 'package.module:name' or '/path/file.py:name', got {target!r}")
    with _lock, importing(target):
        module = _from_file(where, path) if where.endswith(".py") else importlib.import_module(where)
    if not hasattr(module, attribute):
        near = closest(attribute, [name for name in vars(module) if not name.startswith("_")])
        hint = f"; did you mean {near[0]}?" if near else ""
        raise arguments.invalid(path, f"{path}: {where} has no {attribute!r}{hint}")
    return Found(getattr(module, attribute), _source(module))


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


def _from_file(where: str, path: str) -> ModuleType:
    """Import a file under a name of its own, made of its path and content: a changed file is a new module."""
    file = Path(where)
    if not file.is_absolute():
        raise arguments.invalid(path, f"{path}: a file is named by its absolute path, got {where!r}")
    try:
        content = file.read_bytes()
    except OSError as exc:
        raise arguments.invalid(path, f"{path}: {where} cannot be read: {exc.strerror}") from exc
    digest = hashlib.sha256(str(file).encode("utf-8", "surrogateescape") + b"\0" + content).hexdigest()[:16]
    name = f"dspool_file_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise arguments.invalid(path, f"{path}: {where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(file.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _source(module: ModuleType) -> bytes:
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return b""
    try:
        return Path(file).read_bytes()
    except OSError:
        # A module of an archive has a name of a file but none on disk: its source is not part of the digest.
        return b""
