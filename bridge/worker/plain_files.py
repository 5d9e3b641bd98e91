"""Files that users name: regular ones alone, and no larger than they may be. What else a path can name may never end.

Imports nothing but the standard library: zygotes do, before they import anything else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 1 << 20


def read(path: str | Path, most: int) -> bytes:
    """Return the content of a file of `most` bytes at most. Raises OSError, also for what is larger or no file."""
    return b"".join(blocks(path, most))


def blocks(path: str | Path, most: int) -> Iterator[bytes]:
    """Yield the content of a file, as `read` returns it, a megabyte at a time."""
    with open(path, "rb", opener=_open) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        left = most
        while block := file.read(_BLOCK_BYTES):
            left -= len(block)
            if left < 0 or found.st_size > most:
                raise OSError(errno.EFBIG, f"it has more than {most:,} bytes")
            yield block


def _open(path: str, flags: int) -> int:
    """Open a file; a pipe too, without a wait for whoever writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)
