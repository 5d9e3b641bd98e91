"""A project with folders of the same names as ours, and an Orchestrator that crosses a fork."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator import Orchestrator
from orchestrator.rundir import process_ticks
from tests.support.acceptance import SOON_S, Script, pools

NAMES = ("signatures", "bridge", "pools", "orchestrator")
PROGRAM = """
import dspy
import pools

class Program(dspy.Module):
    def forward(self):
        return dspy.Prediction(pools=pools.WHOSE)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).mkdir()
        whole = "WHOSE = 'theirs'\n" if name == "pools" else "raise ImportError('this is not ours')\n"
        (tmp_path / name / "__init__.py").write_text(whole, encoding="utf-8")
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("python_path", [True, False])
def test_folders_named_as_ours_disturb_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, python_path: bool, regular: bool
) -> None:
    if not regular:  # then they are namespace packages
        for name in NAMES:
            if name != "pools":
                (project / name / "__init__.py").unlink()
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", str(project))
    more = {"python_path": [str(project)]} if python_path else {}
    with Orchestrator(pools=pools(), **more) as orchestrator, orchestrator.client() as client:
        assert client.predict("text -> amount: float", text="It costs 3 euros.").amount == 3.0
        if python_path:
            client.deploy("program", "program.py:Program")
            assert client.program("program")().pools == "theirs"


_FORKED = """
import json, os, sys
from orchestrator import Orchestrator
orchestrator = Orchestrator(**json.loads(sys.argv[1]))
child = os.fork()
if not child:
    with orchestrator:
        pid, home = orchestrator.pid, str(orchestrator.log_file.parent)
        with orchestrator.client() as client:
            echoed = client.execute("echo", 1)
    print(json.dumps([pid, home, echoed]), flush=True)
    os._exit(0)
os.waitpid(child, 0)
orchestrator.stop()
print(json.dumps("parent"), flush=True)
"""


def test_an_orchestrator_that_is_built_before_a_fork_is_the_childs_that_enters_it() -> None:
    with Script(_FORKED, json.dumps({"pools": pools()})) as script:
        pid, home, echoed = script.said()
        assert echoed == 1
        assert process_ticks(pid) is None
        assert not os.path.exists(home)
        assert script.said() == "parent"
        assert script.process.wait(SOON_S) == 0
