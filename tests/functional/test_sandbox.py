"""Modules that run generated code: they refuse without a sandbox, and keep within it where there is one."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridge.protocol.errors import BridgeError
from bridge.worker import sandbox
from bridge.worker.call import Call, CallStopped, current_call
from bridge.worker.operations import Operations
from bridge.worker.sandbox import deno
from orchestrator import errors
from tests.support.operations import built, deploying, refused, run

# DSPy says that ProgramOfThought and CodeAct will go.
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed in 3.5:DeprecationWarning")

SUM: dict[str, Any] = {"signature": "question -> answer: int", "inputs": {"question": "what is 17 * 23?"}}
DENO_HOME = Path(os.environ.get("HOME", "/")) / ".cache" / "deno"
_found = shutil.which(deno._find_deno_executable())
needs_deno = pytest.mark.skipif(_found is None, reason="there is no deno (pip install 'dspool[sandbox]')")
PROGRAM = """
import dspy

class Thinker(dspy.Module):
    def __init__(self):
        super().__init__()
        self.rlm = dspy.RLM("question -> answer: int")

    def forward(self, question):
        return self.rlm(question=question)
"""


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


@pytest.fixture
def by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Deno looked for on PATH alone: the package that is installed beside DSPy has one too."""
    for where in ("bridge.worker.sandbox.deno", "dspy.primitives.python_interpreter"):
        monkeypatch.setattr(f"{where}._find_deno_executable", lambda: "deno")


@pytest.fixture
def without_deno(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_path: None) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def with_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Deno find what it fetched before: its first start fetches 15 MB from npm."""
    monkeypatch.setenv("DENO_DIR", str(DENO_HOME))


@pytest.mark.usefixtures("without_deno")
@pytest.mark.parametrize("kind", sorted(sandbox.NEEDED))
def test_without_a_sandbox_they_refuse_before_anything_runs(ops: Operations, kind: str) -> None:
    call = Call(1, 1, kind)
    with pytest.raises(BridgeError) as caught:
        run(ops, kind, SUM, call=call)
    error = errors.from_bridge(caught.value)
    assert isinstance(error, errors.SandboxMissing)
    assert (error.code, error.sandbox, error.module) == ("SANDBOX_MISSING", "deno", kind)
    assert "pip install 'dspool[sandbox]'" in error.message
    assert call.lm_calls == 0


@pytest.mark.usefixtures("without_deno")
def test_what_calls_them_refuses_too(ops: Operations, tmp_path: Path) -> None:
    options = {"module": "dspy.RLM", "reward": "filled:answer"}
    assert refused(ops, "dspy.BestOfN", {**SUM, "options": options}).code == "SANDBOX_MISSING"
    parallel = {"signature": SUM["signature"], "inputs": [SUM["inputs"]], "options": {"module": "dspy.CodeAct"}}
    assert refused(ops, "dspy.Parallel", parallel).code == "SANDBOX_MISSING"
    target = {"module": "dspy.ProgramOfThought", "signature": SUM["signature"]}
    assert refused(ops, "programs.load", {"target": target}).code == "SANDBOX_MISSING"
    (tmp_path / "thinker.py").write_text(PROGRAM)
    with deploying(ops) as define:
        define("thinker", target=f"{tmp_path}/thinker.py:Thinker")
        assert refused(ops, "thinker", {"question": "1 + 1"}).code == "SANDBOX_MISSING"


@pytest.mark.usefixtures("by_path")
def test_another_deno_is_refused(ops: Operations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, told in enumerate(("deno 1.46.3 (stable)", "no version")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "deno").write_text(f"#!/bin/sh\necho '{told}'\n")
        (folder / "deno").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        message = refused(ops, "dspy.RLM", SUM).message
        assert "it takes Deno 2" in message
        assert ("Deno 1.46.3" in message) == (number == 0)


@pytest.mark.usefixtures("by_path")
def test_a_deno_that_does_not_start_is_told(ops: Operations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = "[ \"$1\" = --version ] && echo 'deno 2.9.8 (stable)' && exit 0"
    script = f"#!/bin/sh\n{version}\necho 'no such host: npm' >&2\nexit 1\n"
    (tmp_path / "deno").write_text(script)
    (tmp_path / "deno").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(ops, "dspy.ProgramOfThought", SUM)
    assert error.code == "SANDBOX_MISSING"
    assert "no such host: npm" in error.message


@pytest.mark.parametrize("tool", ["os:getcwd", {"name": "mine", "description": "", "parameters": {}}])
@needs_deno
def test_code_act_takes_functions_with_source_alone(ops: Operations, tool: Any) -> None:
    error = refused(ops, "dspy.CodeAct", {**SUM, "options": {"tools": [tool]}})
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", "options.tools[0]")


# --- with Deno: real, each start of Pyodide takes some seconds --------------------------------------------


@needs_deno
@pytest.mark.slow
@pytest.mark.usefixtures("with_cache")
@pytest.mark.parametrize("kind", sorted(sandbox.NEEDED))
def test_they_compute_in_the_sandbox(ops: Operations, kind: str) -> None:
    call = Call(1, 1, kind)
    assert run(ops, kind, SUM, call=call).answer == 391
    assert call.lm_calls in (1, 2)
    assert not _denos()


@needs_deno
@pytest.mark.slow
@pytest.mark.usefixtures("with_cache")
def test_code_reaches_no_file_no_variable_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_API_KEY", "sk-secret-in-the-worker")
    (tmp_path / "file").write_text("private")
    one, other = sandbox.Interpreter(), sandbox.Interpreter()
    try:
        assert one.execute("import os\nprint(os.environ.get('SECRET_API_KEY'))").strip() == "None"
        with open(f"/proc/{one.deno_process.pid}/environ", "rb") as file:
            assert b"SECRET" not in file.read()
        for code in (
            f"open({str(tmp_path / 'file')!r}).read()",
            "from pyodide.http import pyfetch\nawait pyfetch('https://example.com')",
            "import subprocess\nsubprocess.run(['true'])",
        ):
            with pytest.raises(Exception, match=r"Error"):
                one.execute(code)
        one.execute("mark = 1")
        with pytest.raises(Exception, match="NameError"):
            other.execute("print(mark)")
    finally:
        one.shutdown()
        other.shutdown()
    assert not _denos()


@needs_deno
@pytest.mark.slow
@pytest.mark.usefixtures("with_cache")
@pytest.mark.parametrize("how", ["deadline", "cancelled"])
def test_an_endless_program_is_killed_with_its_call(how: str) -> None:
    call = Call(1, 1, "dspy.RLM", deadline=time.monotonic() + 60)
    token = current_call.set(call)
    interpreter = sandbox.Interpreter()
    try:
        began = time.monotonic()
        interpreter.execute("x = 1")
        if how == "deadline":
            interpreter.shutdown()
            # So late that the second start is over by then.
            call.deadline = time.monotonic() + 2 + 2 * (time.monotonic() - began)
            interpreter = sandbox.Interpreter()
            interpreter.execute("x = 1")
            began = call.deadline
        else:
            threading.Timer(0.3, call.cancel).start()
            began = time.monotonic() + 0.3
        with pytest.raises(CallStopped):
            interpreter.execute("while True: pass")
        assert time.monotonic() - began < 5
    finally:
        interpreter.shutdown()
        current_call.reset(token)
    assert not _denos()


def _denos() -> list[int]:
    return [one.pid for one in psutil.Process().children(recursive=True) if "deno" in one.name()]
