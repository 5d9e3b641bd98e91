"""`dspool up --reload`: real edits of real files, and what is live after them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import Client, Orchestrator, errors
from orchestrator.cli.reload import reloading
from orchestrator.client.client import Client as WaitingClient
from orchestrator.config.settings import ProgramConfig
from orchestrator.rundir import discover
from tests.support.acceptance import ROOT, SOON_S, pools
from tests.support.waiting import wait_until

PROGRAM = """
import dspy

class Greeter(dspy.Module):
    def __init__(self, mark="!"):
        super().__init__()
        self.mark = mark
    def forward(self, name):
        return dspy.Prediction(text="{greeting} " + name + self.mark)
"""
IMPORTING = """
import dspy
from {package}.words import GREETING

class Greeter(dspy.Module):
    def forward(self, name):
        return dspy.Prediction(text=GREETING + " " + name)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="module")
def orc(folder: Path) -> Iterator[Orchestrator]:
    with Orchestrator(pools=pools(1), python_path=[str(folder)]) as orchestrator:
        yield orchestrator


@pytest.fixture
def client(orc: Orchestrator) -> Iterator[Client]:
    with orc.client() as client:
        yield client
        for row in client.programs():
            client.undeploy(row["name"])


class Said(list[str]):
    """What the reloader said."""

    def await_text(self, part: str) -> str:
        wait_until(lambda: any(part in text for text in self), SOON_S, f"{part!r} in {self}")
        return next(text for text in self if part in text)


@pytest.fixture
def reload(orc: Orchestrator, folder: Path) -> Callable[..., object]:
    def begin(said: Said, **configured: ProgramConfig) -> object:
        return reloading(WaitingClient(orc.endpoint), [folder], configured, said.append)

    return begin


def write(file: Path, text: str) -> None:
    """Write as editors do: whole, in the place of what was there."""
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.replace(file)


def answers(client: Client, text: str, program: str = "greet") -> None:
    wait_until(lambda: client.execute(program, {"name": "you"}).text == text, SOON_S, text)


def test_an_edit_is_live_and_an_error_keeps_what_was(
    client: Client, reload: Callable[..., object], tmp_path: Path
) -> None:
    file, said = tmp_path / "greet.py", Said()
    write(file, PROGRAM.format(greeting="Hello"))
    client.deploy("greet", f"{file}:Greeter", config={"mark": "?"})
    failed: list[BaseException] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                client.execute("greet", {"name": "you"})
            except errors.DspoolError as error:
                failed.append(error)

    caller = threading.Thread(target=load)
    caller.start()
    try:
        with reload(said):  # type: ignore[attr-defined]
            answers(client, "Hello you?")
            write(file, PROGRAM.format(greeting="Good day"))
            answers(client, "Good day you?")
            assert said.await_text("version 2 is live").startswith("greet: ")
            write(
                file,
                PROGRAM.format(greeting="Broken").replace("import dspy", "import dspy\nraise ValueError('at import')"),
            )
            told = said.await_text("not reloaded, what was live stays")
            assert "Traceback" in told
            assert "ValueError: at import" in told
            assert client.execute("greet", {"name": "you"}).text == "Good day you?"
            write(file, "def (:\n")
            assert "SyntaxError" in said.await_text('greet.py", line 1')
            write(file, PROGRAM.format(greeting="Mended"))
            answers(client, "Mended you?")
            said.await_text("version 3 is live")
    finally:
        stop.set()
        caller.join(SOON_S)
    assert failed == []
    assert [row["note"] for row in client.versions("greet")] == ["", "reloaded", "reloaded"]


def test_a_helper_module_is_watched_too_and_a_touch_is_no_edit(
    client: Client, reload: Callable[..., object], folder: Path
) -> None:
    package = folder / "greetings_pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    write(package / "words.py", "GREETING = 'Hello'\n")
    write(package / "main.py", IMPORTING.format(package="greetings_pkg"))
    client.deploy("helped", "greetings_pkg.main:Greeter")
    said = Said()
    with reload(said):  # type: ignore[attr-defined]
        answers(client, "Hello you", "helped")
        os.utime(package / "main.py")
        write(package / "words.py", "GREETING = 'Good night'\n")
        answers(client, "Good night you", "helped")
        said.await_text("version 2 is live")
    assert [row["version"] for row in client.versions("helped")] == [1, 2]


def test_what_changed_before_and_what_is_only_configured_is_deployed(
    client: Client, reload: Callable[..., object], tmp_path: Path
) -> None:
    old, configured, said = tmp_path / "old.py", tmp_path / "configured.py", Said()
    write(old, PROGRAM.format(greeting="Before"))
    client.deploy("greet", f"{old}:Greeter")
    write(old, PROGRAM.format(greeting="After"))
    write(configured, "raise ValueError('not yet')\n")
    with reload(said, other=ProgramConfig(target=f"{configured}:Greeter")):  # type: ignore[attr-defined]
        answers(client, "After you!")
        assert "not yet" in said.await_text("other: not reloaded")
        write(configured, PROGRAM.format(greeting="Other"))
        said.await_text("other: version 1 is live")
        assert client.execute("other", {"name": "you"}).text == "Other you!"
        client.undeploy("greet")
        write(old, PROGRAM.format(greeting="Gone"))
        write(configured, PROGRAM.format(greeting="Again"))
        said.await_text("other: version 2 is live")
        with pytest.raises(errors.NotFound):
            client.execute("greet", {"name": "you"})


def test_a_configured_program_without_a_state_of_its_own_keeps_what_it_has_learnt(
    client: Client, reload: Callable[..., object], tmp_path: Path
) -> None:
    file, said = tmp_path / "qa.py", Said()
    source = "import dspy\nclass QA(dspy.Module):\n    def __init__(self):\n        super().__init__()\n"
    source += "        self.qa = dspy.Predict('question -> answer')\n"
    source += "    def forward(self, question):\n        return self.qa(question=question)\n"
    write(file, source)
    fields = [{"prefix": "Question:", "description": "${question}"}, {"prefix": "Answer:", "description": "${answer}"}]
    learnt = {"instructions": "Learnt.", "fields": fields}
    client.deploy("qa", f"{file}:QA", state={"qa": {"traces": [], "train": [], "demos": [], "signature": learnt}})
    with reload(said, qa=ProgramConfig(target=f"{file}:QA")):  # type: ignore[attr-defined]
        write(file, source + "# an edit\n")
        said.await_text("qa: version 2 is live")
    assert client.program_version("qa")["state"]["qa"]["signature"]["instructions"] == "Learnt."


@pytest.mark.slow
def test_the_command_watches_until_it_is_interrupted(run_dirs: Callable[[], Path], tmp_path: Path) -> None:
    home, file = run_dirs(), tmp_path / "greet.py"
    write(file, PROGRAM.format(greeting="Hello"))
    settings = {
        "run_dir": str(home / "r"), "data_dir": str(home / "d"), "pools": pools(1),
        "programs": {"greet": {"target": f"{file}:Greeter"}},
    }  # fmt: skip
    config = home / "dspool.yaml"
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "orchestrator.cli", "up", "--config", str(config)]
    refused = subprocess.run([*command, "--reload", "-d"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--detach" in refused.stderr
    with subprocess.Popen([*command, "--reload"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None

        def await_line(part: str) -> None:
            assert any(part in line for line in iter(up.stdout.readline, "")), part  # type: ignore[union-attr]

        await_line("programs are deployed again when their files change")
        try:
            found = discover(home / "r")
            assert found is not None
            with Client(found.endpoint) as client:
                wait_until(lambda: bool(client.programs()), SOON_S, "the program of the configuration")
                answers(client, "Hello you!")
                write(file, PROGRAM.format(greeting="Good day"))
                answers(client, "Good day you!")
            await_line("greet: version 2 is live")
        finally:
            up.send_signal(signal.SIGINT)
        await_line("stopped; 0 processes left")
        assert up.wait(SOON_S) == 0
