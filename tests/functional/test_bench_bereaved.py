"""The process in which the standard library's pools lose a worker: it ends, with all that it has started."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from orchestrator.bench import bereaved
from tests.support.waiting import wait_until

WAIT_S = 20.0
_BOOT = "from orchestrator.bench.bereaved import main; main()"
# Starts the process that its arguments tell of, says which one it is, and waits for it.
_PARENT = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], start_new_session=True); print(p.pid, flush=True)"


@pytest.fixture
def family() -> Iterator[list[psutil.Process]]:
    """Whoever is put into it is killed at the end."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        if process.is_running():
            process.kill()


@pytest.mark.parametrize("name", bereaved.SUBJECTS)
def test_it_dies_with_the_one_that_started_it(name: str, family: list[psutil.Process]) -> None:
    command = [sys.executable, "-c", _PARENT + "; p.wait()", sys.executable, "-P", "-c", _BOOT, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        main = psutil.Process(int(parent.stdout.readline()))
        family.append(main)
        wait_until(main.children, WAIT_S, "the pool's workers")
        family += main.children()
        main.suspend()  # so that it does not just come to its end
        parent.kill()
    wait_until(lambda: not any(process.is_running() for process in family), WAIT_S, "the end of all")


@pytest.mark.slow
@pytest.mark.parametrize("name", bereaved.SUBJECTS)
def test_its_pool_is_gone_once_it_has_answered(name: str) -> None:
    # Its workers have its standard output: as long as one of them lives, this does not return.
    found = subprocess.run([sys.executable, "-P", "-c", _BOOT, name], stdout=-1, timeout=bereaved.MOST_S, check=True)
    assert json.loads(found.stdout)["answered_ms"] > 0
