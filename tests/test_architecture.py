"""The directions and purities that docs/architecture.md promises, read from the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the bottom up: each may import itself and what stands before it.
LAYERS = ("signatures", "bridge", "pools", "orchestrator")
IMPURE = frozenset(
    {
        "zmq",
        "asyncio",
        "subprocess",
        "time",
        "os",
        "threading",
        "socket",
        "select",
        "selectors",
        "signal",
        "multiprocessing",
        "random",
        "psutil",
    }
)
HEAVY = ("dspy", "pydantic", "numpy", "typer", "yaml", "rich", "fastapi", "litellm", "sqlalchemy")


@dataclass(frozen=True)
class Import:
    """One imported module name, `from a import b` counting as `a.b`."""

    path: str
    line: int
    module: str

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def inside(self, *packages: str) -> bool:
        return any(self.module == package or self.module.startswith(f"{package}.") for package in packages)

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in LAYERS:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path, tree: ast.Module) -> Iterator[Import]:
    """Yield every import, also in functions and under TYPE_CHECKING, relative ones resolved."""
    package = path.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(str(path), node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(str(path), node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)):
            yield Import(str(path), node.lineno, name)


def _imported_by_call(node: ast.Call) -> str | None:
    """Return the name in `importlib.import_module("name")` or `__import__("name")`."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return None


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    found = [found for path, tree in sources() for found in imports_of(path, tree)]
    assert found, "no module found: the test looks in the wrong place"
    return found


def test_layers_point_down(imports: list[Import]) -> None:
    wrong = [
        str(each)
        for each in imports
        if each.top in LAYERS and LAYERS.index(each.top) > LAYERS.index(each.path.partition("/")[0])
    ]
    assert wrong == []


def test_dspy_stays_in_the_worker(imports: list[Import]) -> None:
    wrong = [
        str(each) for each in imports if each.top in ("dspy", "litellm") and not each.path.startswith("bridge/worker/")
    ]
    assert wrong == []


def test_databases_stay_in_the_store(imports: list[Import]) -> None:
    databases = ("sqlalchemy", "psycopg", "sqlite3")
    inside = "orchestrator/services/store/"
    assert [str(each) for each in imports if each.top in databases and not each.path.startswith(inside)] == []


def test_pools_see_of_the_bridge_only_the_wire(imports: list[Import]) -> None:
    wrong = [
        str(each)
        for each in imports
        if each.path.startswith("pools/")
        and each.top == "bridge"
        and not each.inside("bridge.protocol", "bridge.transport")
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", ["bridge/protocol", "pools/core"])
def test_pure_folders_do_no_io(imports: list[Import], folder: str) -> None:
    inside = [each for each in imports if each.path.startswith(f"{folder}/")]
    assert inside, f"{folder} imports nothing: the test looks in the wrong place"
    assert [str(each) for each in inside if each.top in IMPURE] == []


# What it reads is pinned by its digest, and it does so only where that is allowed.
UNPICKLES = "bridge/worker/pickled.py"


def test_nothing_from_outside_is_unpickled(imports: list[Import]) -> None:
    modules = ("pickle", "cloudpickle", "dill", "marshal", "shelve")
    wrong = [str(each) for each in imports if each.top in modules and each.path != UNPICKLES]
    for path, tree in sources():
        if str(path) == UNPICKLES:
            continue
        wrong += [
            f"{path}:{node.lineno} uses .{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and node.attr in ("load", "loads", "Unpickler")
        ]
    assert wrong == []


WALL_CLOCK = {
    "time": {"time", "time_ns", "localtime", "gmtime", "CLOCK_REALTIME"},  # a `strftime` is for people
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}


# The second only asks whether a file has the time that it had.
WALL_CLOCK_HOMES = {"bridge/wallclock.py", "orchestrator/cli/reload.py"}


def wall_clock_reads(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield every place that asks for the time of day, or for a file's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if node.attr in WALL_CLOCK.get(of, ()) or node.attr.startswith(("st_mtime", "st_ctime", "getmtime")):
                yield f"{path}:{node.lineno} reads {of}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (
                f"{path}:{node.lineno} imports time.{alias.name}"
                for alias in node.names
                if alias.name in WALL_CLOCK["time"]
            )


def test_the_wall_clock_decides_nothing() -> None:
    """One module asks for it: whoever needs it, to tell people or to keep it with what outlives a run, asks that."""
    found = [
        read for path, tree in sources() if str(path) not in WALL_CLOCK_HOMES for read in wall_clock_reads(path, tree)
    ]
    assert [read for read in found if not read.startswith("signatures/")] == []


@pytest.mark.parametrize(
    "text", ["time.time()", "datetime.datetime.now()", "x.stat().st_mtime", "from time import time", "date.today()"]
)
def test_every_reading_of_the_wall_clock_is_seen(text: str) -> None:
    assert list(wall_clock_reads(Path("x.py"), ast.parse(text)))


@pytest.mark.parametrize("package", LAYERS)
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_importing_the_client_is_light() -> None:
    script = f"import sys, orchestrator; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("pools/core/x.py", "import os.path", "os.path"),
        ("pools/core/x.py", "from . import states", "pools.core.states"),
        ("pools/core/x.py", "from ..launch import nanny", "pools.launch.nanny"),
        ("bridge/x.py", "def f():\n    from pools import core", "pools.core"),
        ("bridge/x.py", "if TYPE_CHECKING:\n    import pools", "pools"),
        ("bridge/x.py", "importlib.import_module('dspy.utils')", "dspy.utils"),
    ],
)
def test_every_way_of_importing_is_read(path: str, text: str, expected: str) -> None:
    assert [each.module for each in imports_of(Path(path), ast.parse(text))] == [expected]
