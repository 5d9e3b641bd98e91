"""Programs: loading, calling, replacing them, and what goes wrong with them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

from bridge.protocol.messages import Program
from bridge.protocol.names import is_taken
from bridge.protocol.values import Prediction
from bridge.worker.call import Call, CallStopped
from bridge.worker.operations import Operations
from tests.support.operations import built, deploying, refused, run


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built() as operations:
        yield operations


PROGRAM = """
import enum
from helper_beside import PREFIX
import dspy
import pydantic

print("loading")

class Greeter(dspy.Module):
    def __init__(self, suffix=""):
        super().__init__()
        self.answer = dspy.Predict("question: str -> answer: str")
        self.suffix = suffix

    def forward(self, question, loud=False):
        text = PREFIX + self.answer(question=question).answer + self.suffix
        return dspy.Prediction(text=text.upper() if loud else text)

class Plain(dspy.Module):
    def forward(self, **inputs):
        return {"given": sorted(inputs), "words": ["a", "b"]}

class Team(enum.Enum):
    TECH = "tech"

class Ticket(pydantic.BaseModel):
    team: Team
    tags: list[str] = []

class Typed(dspy.Module):
    def forward(self):
        example = dspy.Example(seen={Team.TECH})
        return dspy.Prediction(ticket=Ticket(team="tech", tags=["x"]), nested=[(Team.TECH, example)])

class Unserialisable(dspy.Module):
    def forward(self):
        return {"docs": [1, object()]}

class Fans(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("number: int -> same: int")

    def forward(self, count):
        pairs = [(self.ask, {"number": n}) for n in range(count)]
        runner = dspy.Parallel(num_threads=4, disable_progress_bar=True)
        return {"numbers": [one.same for one in runner(pairs)]}

class Quits(dspy.Module):
    def forward(self):
        raise SystemExit(3)

class NoForward(dspy.Module):
    pass

def make():
    return Greeter("!")

def make_with(argument):
    return Greeter(argument)

def make_wrong():
    return 42

instance = Greeter("?")
number = 7
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("programs")
    (path / "greeter.py").write_text(PROGRAM)
    (path / "helper_beside.py").write_text('PREFIX = "> "\n')
    yield path
    sys.modules.pop("helper_beside", None)


@pytest.fixture
def deploy(ops: Operations) -> Iterator[Callable[..., None]]:
    with deploying(ops) as define:
        yield define


@pytest.mark.parametrize(
    ("attribute", "config", "ending"),
    [("Greeter", None, ""), ("Greeter", {"suffix": "."}, "."), ("make", None, "!"), ("instance", None, "?")],
)
def test_a_program_of_a_file(
    ops: Operations, folder: Path, deploy: Any, attribute: str, config: Any, ending: str
) -> None:
    path = list(sys.path)
    deploy("greeter", target=f"{folder}/greeter.py:{attribute}", config=config)
    answer = run(ops, "greeter", {"question": "who?"})
    assert isinstance(answer, Prediction)
    assert answer.text.startswith("> ")
    assert answer.text.endswith(ending)
    assert run(ops, "greeter", {"question": "who?", "loud": True}).text == answer.text.upper()
    assert sys.path == path


def test_a_program_may_return_plain_values(ops: Operations, folder: Path, deploy: Any) -> None:
    deploy("plain", target=f"{folder}/greeter.py:Plain")
    assert run(ops, "plain", {"b": 1, "a": 2}) == {"given": ["a", "b"], "words": ["a", "b"]}


def test_models_and_examples_stay_and_enums_become_their_values(ops: Operations, folder: Path, deploy: Any) -> None:
    deploy("typed", target=f"{folder}/greeter.py:Typed")
    answer = run(ops, "typed", {})
    # The class is loaded here, by the file that was deployed.
    assert type(answer.ticket).__qualname__ == "Ticket"
    assert answer.ticket.model_dump(mode="json") == {"team": "tech", "tags": ["x"]}
    assert answer.nested == [("tech", dspy.Example(seen={"tech"}))]


def test_what_cannot_travel_is_told_by_its_path(ops: Operations, folder: Path, deploy: Any) -> None:
    deploy("odd", target=f"{folder}/greeter.py:Unserialisable")
    assert refused(ops, "odd", {}).details["path"] == "docs[1]"


def test_a_programs_inputs_are_checked(ops: Operations, folder: Path, deploy: Any) -> None:
    deploy("greeter", target=f"{folder}/greeter.py:Greeter")
    error = refused(ops, "greeter", {"queston": "x"})
    assert "inputs.question is missing" in error.message
    assert "did you mean question" in error.message


def test_a_program_of_a_module_and_a_signature(ops: Operations, deploy: Any) -> None:
    deploy("qa", target={"module": "dspy.ChainOfThought", "signature": "question -> answer"})
    assert list(run(ops, "qa", {"question": "x"})) == ["reasoning", "answer"]
    assert "inputs.question is missing" in refused(ops, "qa", {}).message


def test_a_new_version_replaces_and_removal_removes(ops: Operations, folder: Path, deploy: Any) -> None:
    deploy("qa", target={"module": "dspy.Predict", "signature": "question -> answer"})
    assert list(run(ops, "qa", {"question": "x"})) == ["answer"]
    deploy("qa", version=2, target={"module": "dspy.Predict", "signature": "question -> reply"})
    assert list(run(ops, "qa", {"question": "x"})) == ["reply"]
    ops.program(Program(name="qa", payload=b""))
    assert ops.find("qa") is None
    assert ops.unknown("qa").code == "NOT_FOUND"


def test_a_changed_file_is_loaded_anew(ops: Operations, tmp_path: Path) -> None:
    file = tmp_path / "changing.py"
    digests = set()
    for field in ("answer", "reply"):
        file.write_text(f'import dspy\nprogram = dspy.Predict("question -> {field}")\n')
        told = run(ops, "programs.load", {"target": f"{file}:program"})
        assert told["outputs"] == [field]
        digests.add(told["sha256"])
    assert len(digests) == 2


def test_load_tells_inputs_outputs_and_digest(ops: Operations, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = {"name": "greeter", "target": f"{folder}/greeter.py:Greeter"}
    first, second = run(ops, "programs.load", args), run(ops, "programs.load", args)
    assert first == second
    assert (first["inputs"], first["outputs"], len(first["sha256"])) == (["question", "loud"], ["answer"], 64)
    assert run(ops, "programs.load", {**args, "config": {"suffix": "x"}})["sha256"] != first["sha256"]
    assert ops.find("greeter") is None


@pytest.mark.parametrize(
    ("attribute", "part"),
    [
        ("number", "of type int"),
        ("make_with", "needs arguments"),
        ("make_wrong", "returned of type int"),
        ("NoForward", "without a forward"),
        ("Gretter", "did you mean Greeter"),
        ("dspy", "of type module"),
    ],
)
def test_what_is_no_program_is_told(ops: Operations, folder: Path, attribute: str, part: str) -> None:
    error = refused(ops, "programs.load", {"target": f"{folder}/greeter.py:{attribute}"})
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", "target")
    assert part in error.message


@pytest.mark.parametrize(
    "target",
    [None, 5, "", "greeter", "relative.py:X", "/nowhere/x.py:X", {"signature": "a -> b"}, {"module": "dspy.Predict"}],
)
def test_targets_of_a_wrong_form_are_told(ops: Operations, target: Any) -> None:
    error = refused(ops, "programs.load", {"target": target})
    assert error.code == "INVALID_REQUEST"
    assert error.details["path"].startswith("target")


@pytest.mark.parametrize(
    ("source", "kind", "part"),
    [
        ("def f():\n    raise ValueError('the root')\nf()\n", "ValueError", "the root"),
        ("import no_such_module_here\n", "ModuleNotFoundError", "no_such_module_here"),
        ("import sys\nsys.exit(3)\n", "SystemExit", "SystemExit"),
        ("class Odd(BaseException): pass\nraise Odd('base')\n", "Odd", "base"),
        ("def broken(:\n", "SyntaxError", "broken(:"),
    ],
)
def test_a_failed_import_comes_with_its_root_traceback(
    ops: Operations, tmp_path: Path, source: str, kind: str, part: str
) -> None:
    (tmp_path / "failing.py").write_text(source)
    before = set(sys.modules)
    error = refused(ops, "programs.load", {"target": f"{tmp_path}/failing.py:X"})
    assert error.code == "REMOTE_ERROR"
    assert error.details["type"].endswith(kind)
    assert part in error.details["remote_traceback"]
    assert f"{tmp_path}/failing.py" in error.details["remote_traceback"]
    assert "bridge/worker" not in error.details["remote_traceback"]
    assert set(sys.modules) == before


def test_a_failed_package_import(ops: Operations) -> None:
    error = refused(ops, "programs.load", {"target": "no_such_package.programs:QA"})
    assert (error.code, error.details["type"]) == ("REMOTE_ERROR", "ModuleNotFoundError")


def test_every_built_in_operation_is_a_taken_name(ops: Operations) -> None:
    assert {"ping", "dspy.Predict", "programs.load", "optimize"} <= ops._built_in.keys()
    assert [name for name in ops._built_in if not is_taken(name)] == []


@pytest.mark.parametrize("name", ["echo", "optimize", "dspy.Mine", "dspool.mine", "fault.mine", ""])
def test_names_of_built_ins_are_taken(ops: Operations, name: str) -> None:
    args = {"name": name, "target": {"module": "dspy.Predict", "signature": "a -> b"}}
    assert refused(ops, "programs.load", args).details["path"] == "name"


def test_what_a_program_raises_passes(ops: Operations, folder: Path, deploy: Any) -> None:
    deploy("quits", target=f"{folder}/greeter.py:Quits")
    with pytest.raises(SystemExit):
        run(ops, "quits", {})


def test_the_threads_of_a_program_are_counted_and_stopped(ops: Operations, folder: Path, deploy: Any) -> None:
    deploy("fans", target=f"{folder}/greeter.py:Fans")
    call = Call(1, 1, "fans")
    assert run(ops, "fans", {"count": 6}, call=call) == {"numbers": [0, 1, 2, 3, 4, 5]}
    assert call.lm_calls == 6
    with pytest.raises(CallStopped):
        run(ops, "fans", {"count": 6}, lm="slow", deadline=time.monotonic() + 0.1)


def test_two_programs_may_configure_dspy_where_they_are_imported(ops: Operations, tmp_path: Path) -> None:
    source = "import dspy\ndspy.configure(max_errors={n})\nprogram = dspy.Predict('a -> b')\n"
    for n in range(2):
        (tmp_path / f"configures_{n}.py").write_text(source.format(n=n + 10))
        args = {"target": f"{tmp_path}/configures_{n}.py:program"}
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(run, ops, "programs.load", args).result(30)["outputs"] == ["b"]
