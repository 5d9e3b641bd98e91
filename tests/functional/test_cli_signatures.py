"""`dspool signatures`, as its users run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, Orchestrator
from signatures import parse
from signatures.schema.writer import json_schema
from tests.support.acceptance import pools

ROOT = Path(__file__).resolve().parents[2]
TEXT = "Route it: ticket: str[..40] \"what was written\", n: int = 3 -> team: Literal['a', 'b'], score: float[0..1]"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `dspool signatures WORDS…` in a folder of the test's own."""

    def run(*words: str, stdin: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "signatures", *words], input=stdin or "", capture_output=True,
            text=True, timeout=60, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "DSPOOL_RUN_DIR": str(tmp_path / "run"), **environ},
        )  # fmt: skip

    return run


# --- check ----------------------------------------------------------------------------------------


def test_check_tells_every_mistake_with_its_place(run: Run, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "raise SystemExit('imported')\nimport dspy\nqa = dspy.Predict('a: strng -> b: itn')\n"
    )
    (tmp_path / "dspool.yaml").write_text("programs:\n  qa: {module: dspy.Predict, signature: a -> b}\n")
    done = run("check", "app.py", "dspool.yaml")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "app.py:3:23: unknown type 'strng'; did you mean 'str'?",
        "  qa = dspy.Predict('a: strng -> b: itn')",
        "  " + 22 * " " + "^",
        "app.py:3:35: unknown type 'itn'; did you mean 'int'?",
        "  qa = dspy.Predict('a: strng -> b: itn')",
        "  " + 34 * " " + "^",
        "2 problems in 2 signatures, 2 files",
    ]
    document = json.loads(run("check", "app.py", "dspool.yaml", "--json").stdout)
    assert [(one["file"], one["line"], one["column"]) for one in document["problems"]] == [
        ("app.py", 3, 23), ("app.py", 3, 35),
    ]  # fmt: skip
    assert (document["signatures"], document["files"], document["unreadable"]) == (2, ["app.py", "dspool.yaml"], [])


def test_check_reads_standard_input_and_exits_0_when_all_is_well(run: Run) -> None:
    done = run("check", "-", stdin="# mine\nquestion -> answer\n\nn: int[0..9] -> m: int\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 problems in 2 signatures, 1 file\n", "")
    done = run("check", "-", stdin="question answer\n")
    assert done.returncode == 1
    assert done.stdout.startswith("<stdin>:1:")


def test_check_goes_on_after_a_file_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (\n")
    (tmp_path / "texts").write_text("no arrow\n")
    done = run("check", "missing.py", "broken.py", ".", "texts")
    assert done.returncode == 2
    assert "missing.py: No such file" in done.stderr
    assert "broken.py: no Python" in done.stderr
    assert ".: Is a directory" in done.stderr
    assert "texts:1:" in done.stdout
    document = run("check", "missing.py", "--json")
    assert document.returncode == 2
    assert len(json.loads(document.stdout)["unreadable"]) == 1


def test_the_projects_own_sources_are_right(run: Run) -> None:
    files = [str(path) for folder in ("orchestrator", "bridge", "signatures") for path in (ROOT / folder).rglob("*.py")]
    done = run("check", *files)
    assert done.returncode == 0, done.stdout


# --- show and schema ------------------------------------------------------------------------------


def test_show_a_text(run: Run) -> None:
    done = run("show", TEXT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"input +ticket +str +\[\.\.40\] +what was written", done.stdout)
    assert re.search(r"input +n +int +3", done.stdout)
    assert re.search(r"output +score +float +\[0\.\.1\]", done.stdout)
    assert "instructions: Route it" in done.stdout
    assert parse(TEXT).sha256 in done.stdout
    document = json.loads(run("show", "-", "--json", stdin=TEXT).stdout)
    assert document["sha256"] == parse(TEXT).sha256
    assert document["inputs"][0] == {
        "name": "ticket", "type": "str", "typed": True, "required": True, "constraints": {"max_length": 40},
        "description": "what was written",
    }  # fmt: skip
    assert document["inputs"][1]["default"] == 3


SOURCE = """\
from __future__ import annotations

from beside import LONGEST
from signatures import Field, Signature


class Triage(Signature):
    "Route it."

    ticket: str = Field(input=True, max_length=LONGEST)
    team: str = Field(output=True)


TEXT = "a: int -> b"
OTHER = 5
"""
DSPY_SOURCE = """\
from __future__ import annotations

import dspy


class QA(dspy.Signature):
    "Answer."

    question: str = dspy.InputField()
    answer: list[str] = dspy.OutputField(desc="short ones")
"""


def test_show_what_a_file_declares(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "app.py").write_text(SOURCE)
    (tmp_path / "sub" / "qa.py").write_text(DSPY_SOURCE)
    (tmp_path / "sub" / "beside.py").write_text("LONGEST = 9\n")

    def shown(target: str) -> Any:
        done = run("show", f"sub/{target}", "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)["text"]

    assert shown("app.py:Triage").endswith("ticket: str[..9] -> team")
    assert shown("qa.py:QA").endswith('question: str -> answer: list[str] "short ones"')
    assert shown("app.py:TEXT") == "a: int -> b"
    for name, said in (("OTHER", "no signature"), ("Missing", "has no 'Missing'")):
        done = run("show", f"sub/app.py:{name}")
        assert done.returncode == 2
        assert said in done.stderr


@pytest.mark.parametrize("command", ["show", "schema"])
def test_what_cannot_be_shown_is_told(run: Run, tmp_path: Path, command: str) -> None:
    done = run(command, "a: strng,\nb: itn -> c")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("^") == 2
    (tmp_path / "bad.py").write_text("from signatures import parse\nX = parse('a: strng -> b')\n")
    assert "did you mean 'str'" in run(command, "bad.py:X").stderr
    (tmp_path / "raises.py").write_text("1 / 0\n")
    assert "ZeroDivisionError" in run(command, "raises.py:X").stderr
    assert "no such file" in run(command, "none.py:X").stderr


BAD_FILES = {
    "exits.py": ("import sys; sys.exit(7)", "SystemExit: 7"),
    "base.py": ("class Odd(BaseException): ...\nraise Odd('x')", "Odd: x"),
    "speechless.py": ("class E(Exception):\n def __str__(self): raise ValueError\nraise E", "speechless.E"),
    "lazy.py": ("def __getattr__(name): raise RuntimeError('lazy')", "RuntimeError: lazy"),
    "other.py": ("class X:\n @property\n def spec(self): raise ValueError('no')\nX = X()", "no signature"),
    "nul.py": ("x = 1\0", "SyntaxError"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_does_what_it_should_not(run: Run, tmp_path: Path, name: str) -> None:
    source, said = BAD_FILES[name]
    (tmp_path / name).write_text(source)
    done = run("show", f"{name}:X", "--json")
    assert (done.returncode, done.stderr) == (2, "")
    assert said in json.loads(done.stdout)["error"]["message"]


def test_a_file_may_print_and_be_called_as_a_module_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    source = "from signatures import parse\nprint('noise')\nX = parse('a -> b')\n"
    (tmp_path / "sub" / "signatures.py").write_text(source)
    done = run("show", "sub/signatures.py:X", "--json")
    assert (done.returncode, done.stderr) == (0, "noise\n")
    assert json.loads(done.stdout)["text"] == "a -> b"


def test_schema_is_the_json_schema(run: Run) -> None:
    done = run("schema", TEXT)
    assert json.loads(done.stdout) == json_schema(parse(TEXT).spec)


# --- stubs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deployed() -> Iterator[Client]:
    with Orchestrator(pools=pools(1)) as orc, orc.client() as client:
        client.deploy("triage", {"module": "dspy.ChainOfThought", "signature": TEXT})
        client.deploy("repeater", str(ROOT / "tests" / "support" / "programs" / "repeater.py:Repeater"))
        yield client


USE = """\
from __future__ import annotations

from typing import TYPE_CHECKING, cast

from orchestrator import connect

if TYPE_CHECKING:
    from programs import Client

client = cast("Client", connect())
found = client.program("triage")(ticket="…")
reveal_type(found.team)
reveal_type(found.score)
reveal_type(found.reasoning)
client.program("repeater")(whatever=1)
client.program("triage")(tickt="…")
client.program("triage")(ticket=5)
"""


def test_stubs_of_what_is_deployed(deployed: Client, run: Run, tmp_path: Path) -> None:
    environ = {"DSPOOL_ENDPOINT": deployed.endpoint}
    printed = run("stubs", **environ)
    assert (printed.returncode, printed.stderr) == (0, "")
    written = run("stubs", "--out", "programs.pyi", **environ)
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "programs.pyi").read_text() == printed.stdout
    (tmp_path / "use.py").write_text(USE, encoding="utf-8")
    files = [str(tmp_path / name) for name in ("use.py", "programs.pyi")]
    cache = str(ROOT / ".mypy_cache" / "tests")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache]
    done = subprocess.run(
        [*command, *files],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "MYPYPATH": f"{ROOT}:{tmp_path}"},
    )
    assert done.stderr == ""
    out = done.stdout
    wrong = re.findall(r"(use|programs)\.pyi?:(\d+): error: .*\[([\w-]+)\]", out)
    assert wrong == [("use", "16", "call-arg"), ("use", "17", "arg-type")], out
    assert re.findall(r'Revealed type is "(.*)"', out.replace("builtins.", "")) == [
        "Literal['a'] | Literal['b']", "float", "str",
    ]  # fmt: skip


def test_stubs_of_some_programs(deployed: Client, run: Run) -> None:
    environ = {"DSPOOL_ENDPOINT": deployed.endpoint}
    assert "class Triage(Protocol)" not in run("stubs", "repeater", **environ).stdout
    document = json.loads(run("stubs", "--json", **environ).stdout)
    assert document["programs"].keys() == {"triage", "repeater"}
    assert document["programs"]["repeater"] is None
    done = run("stubs", "triag", **environ)
    assert done.returncode == 2
    assert "did you mean 'triage'" in done.stderr
    assert run("stubs").returncode == 3
    done = run("stubs", "--out", "nowhere/programs.pyi", **environ)
    assert done.returncode == 2
    assert "cannot be written: No such file" in done.stderr
