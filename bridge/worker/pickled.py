"""Pickled programs: files that run code when they are read, taken only where that is allowed and their content pinned.

Such a program is a file that cloudpickle wrote, or a folder of `program.save(folder, save_program=True)`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from bridge.worker import arguments, plain_files

log = logging.getLogger(__name__)

KEYS: Final = ("pickled", "sha256")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PROGRAM: Final = "program.pkl"
_METADATA: Final = "metadata.json"
# Of a pickled program, and of each file in the folder of one.
MAX_FILE_BYTES: Final = 512 << 20


class Pickle(NamedTuple):
    """What was read, and is what its digest says. data: of the pickle. metadata: None for a file."""

    data: bytes
    metadata: Any
    sha256: str


def digest(path: str | Path) -> str:
    """Return the digest by which a pickled program is pinned.

    Of a file: its SHA-256. Of a folder: the SHA-256 of the lines `<SHA-256 of a file>  ./<its path>` of all files in
    it, by path: `cd FOLDER && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum`.
    Raises OSError for what cannot be read or is too large, ValueError for a folder with links or with names of several
    lines.
    """
    path = Path(path)
    if not path.is_dir():
        return _file_digest(path)
    return _folder_digest((name, _file_digest(path / name)) for name in _names(path))


def read(target: Mapping[str, Any], *, is_allowed: bool) -> Pickle:
    """Return what a target `{"pickled": path, "sha256": digest}` names. Unpickles nothing.

    Raises BridgeError(INVALID_REQUEST), with the path, also for what is not what its digest says.
    """
    if problems := arguments.unknown_names(target, KEYS, "a pickled program", "target."):
        arguments.refuse(problems)
    if not is_allowed:
        text = "target.pickled: pickled programs run code as they are read, and are not allowed here: deploy the state"
        raise arguments.invalid("target.pickled", f"{text}, or set security.allow_pickled_programs")
    where = arguments.text(target["pickled"], "target.pickled")
    pin = target.get("sha256")
    if not isinstance(pin, str) or not _DIGEST.fullmatch(pin):
        text = f"target.sha256 must pin the content of {where} by 64 hexadecimal digits, got {arguments.shown(pin)}"
        raise arguments.invalid("target.sha256", text)
    path = Path(where)
    if not path.is_absolute():
        raise arguments.invalid("target.pickled", f"target.pickled: it is named by its absolute path, got {where!r}")
    try:
        found = _read_folder(path) if path.is_dir() else _read_file(path)
    except OSError as exc:
        raise arguments.invalid("target.pickled", f"target.pickled: {where} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise arguments.invalid("target.pickled", f"target.pickled: {where}: {exc}") from exc
    if found.sha256 != pin:
        text = f"target.sha256: {where} is not what was pinned: its digest is {found.sha256}, not {pin}"
        raise arguments.invalid("target.sha256", text)
    _check_metadata(found.metadata, where)
    return found


def unpickle(pickle: Pickle) -> Any:
    """Return the object. Runs whatever code the pickle names, and raises what that raises."""
    import cloudpickle  # type: ignore[import-untyped]

    return cloudpickle.loads(pickle.data)


def _read_file(path: Path) -> Pickle:
    data = plain_files.read(path, MAX_FILE_BYTES)
    return Pickle(data, None, hashlib.sha256(data).hexdigest())


def _read_folder(path: Path) -> Pickle:
    """Read a folder: what is used is what was digested, whoever changes the files meanwhile."""
    digests: list[tuple[str, str]] = []
    used: dict[str, bytes] = {}
    for name in _names(path):
        if name in (_PROGRAM, _METADATA):
            used[name] = plain_files.read(path / name, MAX_FILE_BYTES)
            digests.append((name, hashlib.sha256(used[name]).hexdigest()))
        else:
            digests.append((name, _file_digest(path / name)))
    if _PROGRAM not in used:
        raise ValueError(f"there is no {_PROGRAM} in it: it is no folder of save(…, save_program=True)")
    return Pickle(used[_PROGRAM], json.loads(used.get(_METADATA, b"null")), _folder_digest(iter(digests)))


def _names(folder: Path) -> list[str]:
    """Return the paths of all files in a folder, relative to it, in the order of their bytes."""
    names = []
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(top, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()) or "\n" in relative or "\\" in relative:
                raise ValueError(f"{relative!r} in it is no plain file with a plain name: its content cannot be pinned")
            if name in files:
                names.append(relative)
    return sorted(names, key=os.fsencode)


def _file_digest(path: Path) -> str:
    total = hashlib.sha256()
    for block in plain_files.blocks(path, MAX_FILE_BYTES):
        total.update(block)
    return total.hexdigest()


def _folder_digest(digests: Iterator[tuple[str, str]]) -> str:
    lines = b"".join(f"{one}  ./".encode() + os.fsencode(name) + b"\n" for name, one in digests)
    return hashlib.sha256(lines).hexdigest()


def _check_metadata(metadata: Any, where: str) -> None:
    """Refuse the bytecode of another Python, which could do anything here; tell of another DSPy, as DSPy does."""
    saved = metadata.get("dependency_versions") if isinstance(metadata, dict) else None
    if not isinstance(saved, dict):
        return
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if saved.get("python", here) != here:
        text = f"target.pickled: {where} was pickled by Python {saved['python']}, which Python {here} cannot read"
        raise arguments.invalid("target.pickled", text)
    if saved.get("dspy", "") not in ("", version("dspy")):
        log.warning("pickled_by_another_dspy: %s was saved by %s, here is %s", where, saved["dspy"], version("dspy"))
