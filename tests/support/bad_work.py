"""Programs that harm what is around their call. Deployed by this file's path."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from tests.support.bad_programs import program


@program
def RaisesMegabytes(mb: int) -> Any:
    raise ValueError("x" * (mb << 20))


@program
def Spins() -> Any:
    while True:
        pass


@program
def Daemonizes() -> Any:
    """Leave a daemon behind, as servers do: forked twice, in a session of its own; return its pid."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(tell, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.waitpid(child, 0)
    pid = int(os.read(told, 20))
    os.close(told)
    os.close(tell)
    return pid


@program
def Prints(text: str) -> Any:
    print(text, flush=True)
    sys.stderr.write(text)
    return len(text)


class Unreducible:
    """Says no to pickle, to repr and to text."""

    def __reduce__(self) -> Any:
        raise KeyError("no reduce")

    def __repr__(self) -> str:
        raise SystemExit("no repr")

    __str__ = __repr__
