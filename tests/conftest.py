"""What every test gets: a private temporary folder and, for tests on real processes, a census that nothing is left."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.support.census import MARK, Census

LEFT_TIMEOUT_S = 5.0
# A socket's path must fit the kernel's 107 bytes: run folders made by tests start with a short one.
_root: Path | None = None
_saved_environ: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Give this run, and every process that it starts, an environment of its own."""
    global _root
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background of a script: what the tests start would be deaf to Ctrl-C, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _saved_environ.update(os.environ)
    # COLUMNS, LINES: whoever runs the tests may set them, and terminals of the tests have sizes of their own.
    for name in [name for name in os.environ if name.startswith("DSPOOL_") or name in ("COLUMNS", "LINES")]:
        del os.environ[name]
    base = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())
    _root = Path(tempfile.mkdtemp(prefix="ds", dir=base))
    for name, variable in {"run": "XDG_RUNTIME_DIR", "data": "XDG_DATA_HOME", "cache": "XDG_CACHE_HOME"}.items():
        (_root / name).mkdir(mode=0o700)
        os.environ[variable] = str(_root / name)
    os.environ["TMPDIR"] = tempfile.tempdir = str(_root)
    os.environ["DSPY_CACHEDIR"] = str(_root / "cache" / "dspy")
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the network for prices
    os.environ[MARK] = secrets.token_hex(8)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the collector of garbage, and let it pass over what was collected: it stays to the end.

    It would walk over half a million objects again and again: a third of the time that collecting tests takes, and a
    quarter of a second each time that a test asks for a full collection.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    os.environ.clear()
    os.environ.update(_saved_environ)
    tempfile.tempdir = None
    if _root is not None:
        shutil.rmtree(_root)


def _assert_nothing_left(before: Census, whose: str) -> None:
    deadline = time.monotonic() + LEFT_TIMEOUT_S
    while left := Census.take().difference(before):
        if time.monotonic() >= deadline:
            pytest.fail(
                f"{whose} left behind, {LEFT_TIMEOUT_S:g} s after its end:\n  " + "\n  ".join(left), pytrace=False
            )
        gc.collect()
        time.sleep(0.02)


def _is_functional(request: pytest.FixtureRequest) -> bool:
    return "functional" in request.path.parts


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    if not _is_functional(request):
        yield
        return
    before = Census.take()
    yield
    _assert_nothing_left(before, request.node.name)


@pytest.fixture(autouse=True)
def _test_leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    if not _is_functional(request):
        yield
        return
    before = Census.take()
    yield
    _assert_nothing_left(before, request.node.name)


@pytest.fixture
def run_dirs() -> Iterator[Callable[[], Path]]:
    """Return a function that makes private (0700) folders with short paths, removed after the test.

    A socket path inside, `<folder>/<32 hex digits>/<name>`, has room in the kernel's 107 bytes.
    """
    made: list[Path] = []

    def make() -> Path:
        path = Path(tempfile.mkdtemp(prefix="r"))
        assert len(os.fsencode(path)) <= 40, f"{path} is too long for a run folder"
        made.append(path)
        return path

    yield make
    for path in made:
        shutil.rmtree(path)
