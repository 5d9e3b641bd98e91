"""What a process of its own does to a store under trouble: `python -m tests.support.store_script NAME STORE`.

Prints JSON: what each attempt came to.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.errors import DspoolError, StorageError
from orchestrator.services.store import Store
from tests.support.store_writes import write, wrong

_MOST = 3000


def until_full(store: Store, start: int) -> tuple[int, dict[str, Any]]:
    """Write until that fails; return how many writes there are now, and how the next one failed."""
    for number in range(start, _MOST):
        try:
            write(store, number)
        except StorageError as error:
            return number, told(error)
    raise AssertionError("the disk was never full")


def told(error: DspoolError) -> dict[str, Any]:
    return {"message": error.message, "retryable": error.retryable, **error.details}


def limited(where: str) -> list[Any]:
    """The size of files is limited (RLIMIT_FSIZE), then it is not any more."""
    with Store.open(where) as store:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        return full(store, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))


def small_disk(where: str) -> list[Any]:
    """The disk is full, then a file on it is removed."""
    ballast = Path(where).with_name("ballast")
    ballast.write_bytes(b"x" * 300_000)
    with Store.open(where) as store:
        return full(store, ballast.unlink)


def full(store: Store, make_room: Callable[[], object]) -> list[Any]:
    written, failure = until_full(store, 0)
    again = until_full(store, written)
    held = wrong(store, written)
    make_room()
    for number in range(written, written + 3):
        write(store, number)
    return [written, failure, again, held + wrong(store, written + 3)]


def no_room(where: str) -> list[Any]:
    """There is no room for a new store; later there is."""
    ballast = Path(where).with_name("ballast")
    with suppress(OSError), ballast.open("wb") as file:
        file.write(b"x" * 10_000_000)
    failure = opened(where)
    ballast.unlink()
    return [failure, opened(where)]


def opened(where: str) -> Any:
    """Open it; return how that failed, None if it did not."""
    try:
        Store.open(where).close()
    except DspoolError as error:
        return told(error)
    return None


if __name__ == "__main__":
    name, place = sys.argv[1:]
    chosen: dict[str, Callable[[str], Any]] = {
        "limited": limited, "small_disk": small_disk, "no_room": no_room, "opened": opened,
    }  # fmt: skip
    print(json.dumps(chosen[name](place)))
