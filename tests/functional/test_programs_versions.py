"""Versions of programs in one worker: side by side, after edits of their source, loaded ahead, making room."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

from bridge.protocol.messages import Program
from bridge.protocol.values import encode_value
from bridge.worker import pickled, versions
from bridge.worker.call import Call, CallStopped
from bridge.worker.operations import Operations
from tests.support.operations import built, refused, run
from tests.support.waiting import wait_until

_numbers = itertools.count(1)
PROGRAM = """
import dspy
{imports}
class QA(dspy.Module):
    def forward(self, **inputs):
        return {{"version": {version}}}
"""

Deploy = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ops() -> Iterator[Operations]:
    with built(allow_pickled_programs=True) as operations:
        yield operations


@pytest.fixture
def deploy(ops: Operations) -> Iterator[Deploy]:
    """Give a function that deploys a version as a coordinator does: loaded, then told with what that returned."""
    names = set()

    def deployed(name: str, version: int, *aliases: str, **spec: Any) -> dict[str, Any]:
        loaded: dict[str, Any] = run(ops, "programs.load", {"name": name, **spec})
        names.add(name)
        told = {key: loaded[key] for key in ("sha256", "source_sha256", "source", "state")}
        tell(ops, name, version, *aliases, **{**spec, **told})
        return loaded

    yield deployed
    for name in names:
        ops.program(Program(name=name, payload=b""))


def tell(ops: Operations, name: str, version: int, *aliases: str, **spec: Any) -> None:
    payload = encode_value({"name": name, **spec})
    ops.program(Program(name=name, program_version=version, payload=payload, aliases=list(aliases)))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the folder of a package that can be imported."""
    folder = tmp_path / f"dspool_test_programs_{next(_numbers)}"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for one in [one for one in sys.modules if one.partition(".")[0] in (folder.name, "helper")]:
        del sys.modules[one]


def write(folder: Path, version: int, *, helper: str = "") -> None:
    """Write a program that tells its version, by itself or by a module that it imports."""
    imports = f"from {helper} import N" if helper else ""
    (folder / "helper.py").write_text(f"N = {version}\n")
    (folder / "program.py").write_text(PROGRAM.format(imports=imports, version="N" if helper else version))


def target_of(folder: Path, kind: str) -> str:
    return f"{folder}/program.py:QA" if kind == "file" else f"{folder.name}.program:QA"


@pytest.mark.parametrize("kind", ["file", "package"])
@pytest.mark.parametrize("helped", [True, False])
def test_an_edited_source_is_another_version(
    ops: Operations, deploy: Deploy, package: Path, kind: str, helped: bool
) -> None:
    helper = "" if not helped else "helper" if kind == "file" else f"{package.name}.helper"
    digests = []
    for version in (1, 2):
        write(package, version, helper=helper)
        digests.append(deploy("qa", version, "live", target=target_of(package, kind))["sha256"])
        assert run(ops, "qa", {}) == {"version": version}
    assert digests[0] != digests[1]
    assert run(ops, "qa@1", {}) == {"version": 1}, "the former version goes on"


@pytest.mark.parametrize("kind", ["file", "package"])
def test_a_version_that_is_first_called_after_an_edit_is_what_was_deployed(
    ops: Operations, deploy: Deploy, package: Path, kind: str
) -> None:
    write(package, 1)
    deploy("qa", 1, "live", target=target_of(package, kind))
    write(package, 2)
    deploy("qa", 2, "live", target=target_of(package, kind))
    assert [run(ops, name, {})["version"] for name in ("qa", "qa@1", "qa@2", "qa@live")] == [2, 1, 2, 2]


def test_a_roll_back_is_one(ops: Operations, deploy: Deploy, package: Path) -> None:
    target = target_of(package, "file")
    first: dict[str, Any] = {}
    for version in (1, 2):
        write(package, version)
        first = first or deploy("qa", version, "live", target=target)
    deploy("qa", 2, "live", target=target)
    ops.program(Program(name="qa", program_version=1, payload=b""))
    assert ops.find("qa@1") is None
    kept = {key: first[key] for key in ("sha256", "source_sha256", "source", "state")}
    tell(ops, "qa", 1, "live", target=target, **kept)
    assert [run(ops, name, {})["version"] for name in ("qa", "qa@2")] == [1, 2]


def test_a_source_not_kept_is_what_was_deployed_or_refused(ops: Operations, package: Path, deploy: Deploy) -> None:
    target = target_of(package, "file")
    write(package, 1)
    noise = f"NOISE = '{random.Random(1).randbytes(300_000).hex()}'\n"
    (package / "helper.py").write_text(noise)
    source = (package / "program.py").read_text()
    (package / "program.py").write_text(f"import helper\n{source}")
    loaded = deploy("qa", 1, "live", target=target)
    assert loaded["source"] is None
    deployed = (package / "program.py").read_text()
    write(package, 2)
    plan = {"program": "qa", "trainset": [{"a": 1}], "metric": "exact:a"}
    for operation, args in (("qa", {}), ("programs.warm", {"name": "qa", "version": 1}), ("optimize", plan)):
        error = refused(ops, operation, args)
        assert (error.code, error.details["type"]) == ("REMOTE_ERROR", "SourceChanged")
        assert f"{package}/program.py" in error.message
    (package / "program.py").write_text(deployed)
    (package / "helper.py").write_text(noise)
    assert run(ops, "qa", {}) == {"version": 1}


def test_a_call_that_runs_keeps_its_version(ops: Operations, deploy: Deploy, package: Path) -> None:
    source = """
import threading
import dspy
entered, leave = threading.Event(), threading.Event()
class QA(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
    def forward(self, question):
        entered.set()
        assert leave.wait(30)
        return {"version": VERSION, "answer": self.ask(question=question).answer}
"""
    (package / "program.py").write_text(source.replace("VERSION", "1"))
    deploy("qa", 1, "live", target=target_of(package, "package"))
    assert run(ops, "programs.warm", {"name": "qa", "version": 1})["was_loaded"] is False
    module = sys.modules[f"{package.name}.program"]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, ops, "qa", {"question": "x"})
        assert module.entered.wait(30)
        (package / "program.py").write_text(source.replace("VERSION", "2"))
        deploy("qa", 2, "live", target=target_of(package, "package"))
        run(ops, "programs.warm", {"name": "qa", "version": 2})
        ops.program(Program(name="qa", program_version=1, payload=b""))
        assert ops.find("qa@1") is None
        module.leave.set()
        assert running.result(30)["version"] == 1
    sys.modules[f"{package.name}.program"].leave.set()
    assert run(ops, "qa", {"question": "x"})["version"] == 2


def test_no_call_is_lost_or_mixed_while_versions_change(ops: Operations, deploy: Deploy, package: Path) -> None:
    parts = "import dspy\nfrom {name}.helper import N\nclass QA(dspy.Module):\n    def forward(self):\n        return "
    swaps, counted = 20, [0]
    stop = threading.Event()
    wrong: list[Any] = []

    def call() -> None:
        while not stop.is_set():
            oldest = live[0]
            try:
                told = run(ops, "qa", {})
            except BaseException as exc:  # noqa: BLE001 - told below
                wrong.append(exc)
                return
            counted[0] += 1
            if not (told["own"] == told["helper"] and oldest <= told["own"] <= live[0] + 1):
                wrong.append(told)

    live = [0]

    def swap(version: int) -> None:
        (package / "helper.py").write_text(f"N = {version}\n")
        text = parts.format(name=package.name) + f"{{'own': {version}, 'helper': N}}\n"
        (package / "program.py").write_text(text)
        deploy("qa", version, "live", target=target_of(package, "package"))
        live[0] = version

    swap(1)
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(2, swaps + 2):
        swap(version)
        ops.program(Program(name="qa", program_version=version - 2, payload=b"")) if version > 2 else None
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert counted[0] > swaps


def test_a_program_is_loaded_ahead(ops: Operations, deploy: Deploy, package: Path) -> None:
    (package / "program.py").write_text(
        "import dspy\nmade = []\ndef make():\n    made.append(1)\n    return dspy.Predict('question -> answer')\n"
    )
    loaded = deploy("qa", 1, target=f"{package.name}.program:make")
    made = sys.modules[f"{package.name}.program"].made
    assert len(made) == 1
    told = run(ops, "programs.warm", {"name": "qa", "version": 1})
    assert (told["sha256"], told["was_loaded"], len(made)) == (loaded["sha256"], False, 2)
    assert run(ops, "qa@1", {"question": "x"}).answer
    assert run(ops, "programs.warm", {"name": "qa", "version": 1})["was_loaded"] is True
    assert len(made) == 2


def test_what_cannot_be_loaded_ahead(ops: Operations, deploy: Deploy, package: Path) -> None:
    write(package, 1)
    deploy("qa", 1, "live", target=target_of(package, "file"))
    assert refused(ops, "programs.warm", {"name": "qa", "version": 2}).code == "NOT_FOUND"
    assert refused(ops, "programs.warm", {"name": "qa", "version": "1"}).details["path"] == "version"
    tell(ops, "qa", 2, target=f"{package}/program.py:Nothing")
    assert refused(ops, "programs.warm", {"name": "qa", "version": 2}).details["path"] == "target"


def test_programs_make_room_and_come_back(ops: Operations, package: Path) -> None:
    (package / "program.py").write_text(
        "import dspy\nmade = []\nclass QA(dspy.Module):\n    def __init__(self, number):\n        super().__init__()\n"
        "        made.append(number)\n        self.n = number\n    def forward(self):\n        return self.n\n"
    )
    names = [f"p{number}" for number in range(versions.MAX_LOADED + 2)]
    for number, name in enumerate(names):
        tell(ops, name, 1, "live", target=f"{package.name}.program:QA", config={"number": number})
    assert [run(ops, name, {}) for name in names] == list(range(len(names)))
    made = sys.modules[f"{package.name}.program"].made
    assert len(made) == len(names)
    write(package, 7)  # what comes back is what was first loaded here
    assert [run(ops, name, {}) for name in (names[-1], names[0], names[0])] == [len(names) - 1, 0, 0]
    assert made[len(names) :] == [0]
    for name in names:
        ops.program(Program(name=name, payload=b""))
    assert ops.find("p0") is None


def test_a_batched_function_that_was_edited(ops: Operations, deploy: Deploy, package: Path) -> None:
    for version in (1, 2):
        (package / "program.py").write_text(
            f"from bridge.batched import batched\n@batched()\ndef double(items):\n    return [{version}] * len(items)\n"
        )
        deploy("double", version, "live", target=f"{package.name}.program:double")
        assert run(ops, "double", 5) == version
    assert run(ops, "double@1", 5) == 1
    assert ops.batched("double@1") is not ops.batched("double@2")


def imported_from() -> set[str]:
    return {str(getattr(module, "__file__", "")) for module in list(sys.modules.values())}


def test_a_call_does_not_wait_for_others_imports_beyond_its_deadline(ops: Operations, package: Path) -> None:
    (package / "program.py").write_text("import time\ntime.sleep(0.7)\nimport dspy\nqa = dspy.Predict('a -> b')\n")
    (package / "other.py").write_text("import dspy\nqa = dspy.Predict('a -> b')\n")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(run, ops, "programs.load", {"target": f"{package}/program.py:qa"})
        wait_until(lambda: f"{package}/program.py" in imported_from(), 10.0, "the slow import")
        started = time.monotonic()
        with pytest.raises(CallStopped):
            run(
                ops, "programs.load", {"target": f"{package}/other.py:qa"},
                call=Call(1, 1, "programs.load", deadline=started + 0.1),
            )  # fmt: skip
        assert time.monotonic() - started < 0.6
        assert slow.result(30)["outputs"] == ["b"]


@pytest.mark.parametrize("key", ["target", "config"])
def test_what_the_store_could_not_hold_is_refused(ops: Operations, key: str) -> None:
    spec: dict[str, Any] = {"target": {"module": "dspy.Predict", "signature": "a -> b"}, "config": {"temperature": 0.5}}
    spec[key]["module" if key == "target" else "temperature"] = {1, 2}
    error = refused(ops, "programs.load", spec)
    assert error.details["path"] == f"{key}.{'module' if key == 'target' else 'temperature'}"
    assert "must be JSON" in error.message


def test_a_state_is_told_as_it_is_to_be_kept(ops: Operations) -> None:
    target = {"module": "dspy.Predict", "signature": "question -> answer"}
    module = dspy.Predict("question -> answer")
    module.lm = dspy.LM("openai/gpt-4o")
    told = run(ops, "programs.load", {"target": target, "state": module.dump_state()})
    assert told["state"]["lm"] is None
    again = run(ops, "programs.load", {"target": target, "state": told["state"]})
    assert (again["sha256"], again["state"]) == (told["sha256"], told["state"])
    assert (told["source"], told["source_sha256"]) == (None, None)
    other = dspy.Predict("query -> answer").dump_state()
    assert "its fields are query, answer" in refused(ops, "programs.load", {"target": target, "state": other}).message


@pytest.mark.parametrize("source", [b"", b"no pack", 5, "text"])
def test_a_kept_source_that_cannot_be_read(ops: Operations, package: Path, source: Any) -> None:
    write(package, 1)
    tell(ops, "qa", 1, "live", target=target_of(package, "file"), source=source)
    assert refused(ops, "qa", {}).details["path"] == "source"
    ops.program(Program(name="qa", payload=b""))


def test_no_client_sends_source(ops: Operations, deploy: Deploy, package: Path) -> None:
    write(package, 1)
    spec = {"target": target_of(package, "file")}
    source = deploy("qa", 1, "live", **spec)["source"]
    assert refused(ops, "programs.load", {**spec, "source": source}).details["path"] == "source"
    write(package, 2)
    assert run(ops, "qa", {}) == {"version": 1}
    plan = {"program": {**spec, "source": source}, "trainset": [{"a": 1}], "metric": "exact:a"}
    assert "no predictor" in refused(ops, "optimize", plan).message
    assert sys.modules[_of_disk(package)].QA().forward() == {"version": 2}, "what stands on disk was loaded"


def _of_disk(package: Path) -> str:
    return [name for name, one in sys.modules.items() if getattr(one, "__file__", None) == f"{package}/program.py"][-1]


def test_the_predictors_are_told_as_they_are(ops: Operations, package: Path) -> None:
    (package / "program.py").write_text(
        "import dspy\nclass QA(dspy.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.ask = dspy.ChainOfThought('question -> answer')\n"
        "        self.ask.predict.demos = [dspy.Example(question='q', answer='a')]\n"
        "    def forward(self, question):\n        return self.ask(question=question)\n"
    )
    told = run(ops, "programs.load", {"target": target_of(package, "file")})["predictors"]["ask.predict"]
    assert [field["name"] for field in told["signature"]["fields"]] == ["question", "reasoning", "answer"]
    assert told["signature"]["instructions"].startswith("Given the fields")
    assert told["demos"] == [{"question": "q", "answer": "a"}]
    plain = run(ops, "programs.load", {"target": {"module": "dspy.Predict", "signature": "a -> b"}})
    assert list(plain["predictors"]) == [""]
    (package / "program.py").write_text(PROGRAM.format(imports="", version=1))
    assert run(ops, "programs.load", {"target": target_of(package, "file")})["predictors"] is None


def test_the_state_that_an_optimizer_returns_names_its_fields(ops: Operations) -> None:
    spec = {"target": {"module": "dspy.ChainOfThought", "signature": "question -> answer"}}
    rows = [{"question": f"q{number}", "answer": "a"} for number in range(4)]
    plan = {"trainset": rows, "metric": "exact:answer", "optimizer": "LabeledFewShot", "params": {"k": 2}}
    found = run(ops, "optimize", {"program": spec, **plan})
    state = found["program"]["predict"]
    assert [field["name"] for field in state["signature"]["fields"]] == ["question", "reasoning", "answer"]
    assert run(ops, "programs.load", {**spec, "state": found["program"]})["sha256"]


def test_a_pickled_program(ops: Operations, deploy: Deploy, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    module = dspy.ChainOfThought("question -> answer")
    module.set_lm(dspy.LM("openai/gpt-4o", api_key="secret"))
    module.save(saved, save_program=True)
    target = {"pickled": str(saved), "sha256": pickled.digest(saved)}
    told = deploy("pickled", 1, "live", target=target)
    assert (told["inputs"], told["outputs"], told["source_sha256"]) == (
        ["question"],
        ["reasoning", "answer"],
        target["sha256"],
    )
    assert run(ops, "pickled", {"question": "x"}).answer, "it is answered by the request's language model"
    (saved / "program.pkl").write_bytes(b"other")
    assert refused(ops, "programs.load", {"target": target}).details["path"] == "target.sha256"
    assert run(ops, "pickled", {"question": "x"}).answer


def test_a_pickle_that_is_no_program(ops: Operations, tmp_path: Path) -> None:
    for content, code in ((b"no pickle", "REMOTE_ERROR"), (b"\x80\x04K\x05.", "INVALID_REQUEST")):
        (tmp_path / "x.pkl").write_bytes(content)
        target = {"pickled": str(tmp_path / "x.pkl"), "sha256": pickled.digest(tmp_path / "x.pkl")}
        assert refused(ops, "programs.load", {"target": target}).code == code


def test_pickled_programs_are_not_allowed_unless_the_worker_was_told(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"x")
    target = {"pickled": str(tmp_path / "x.pkl"), "sha256": pickled.digest(tmp_path / "x.pkl")}
    with built() as careful:
        error = refused(careful, "programs.load", {"target": target})
    assert (error.code, error.details["path"]) == ("INVALID_REQUEST", "target.pickled")
