"""Coordinators that must not start: what is wrong reaches the caller, typed, and nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Orchestrator, connect, errors
from tests.support.failures import failing

POOLS = {"general": {"size": 1}, "optimizer": {"size": 0}, "neural": {"size": 0}}


def start(config: Any = None, **overrides: Any) -> None:
    with Orchestrator(config, **{"pools": POOLS, **overrides}):
        pytest.fail("it started")


# --- configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("pools:\n  general:\n    sise: 2\n", [(3, "pools.general.sise", "did you mean 'size'?")]),
        ("pools:\n  further: {size: two}\n", [(2, "pools.further.size", "auto, a whole number from 0 to 1024 or ")]),
        ("lms:\n  gpt:\n    model: openai/x\n    api_key: ${NO_SUCH_VARIABLE_OF_OURS}\n",
         [(4, "lms.gpt.api_key", "NO_SUCH_VARIABLE_OF_OURS is not set")]),
        ("log_level: ${NO_END\n", [(1, "log_level", "${NAME}")]),
        ("pools: [1,\n", [(2, "", "is not YAML")]),
        ("faults: yes\nfaults: no\n", [(2, "faults", "a second time; the first is on line 1")]),
        ("pols: {}\nfaults: maybe\nlimits:\n  nesting: deep\n  message_bytes: -1\n", [
            (1, "pols", "did you mean 'pools'?"), (2, "faults", "boolean"), (4, "limits.nesting", "integer"),
            (5, "limits.message_bytes", "greater than"),
        ]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_by_line(tmp_path: Path, text: str, problems: list[tuple[int, str, str]]) -> None:
    file = tmp_path / "dspool.yaml"
    file.write_text(text)
    error = failing(errors.ConfigError, lambda: start(file), "in the configuration")
    assert isinstance(error, errors.InvalidRequest)
    assert len(error.problems) == len(problems)
    for found, (line, path, said) in zip(error.problems, problems, strict=True):
        assert (found["where"], found["path"]) == (f"{file}:{line}", path)
        assert said in found["message"]
        assert f"{file}:{line}: {path}: {found['message']}".replace(": : ", ": ") in str(error)


@pytest.mark.parametrize(
    ("overrides", "path", "said"),
    [
        ({"poools": {}}, "poools", "did you mean 'pools'?"),
        ({"pools": {"general": {"sise": 1}}}, "pools.general.sise", "did you mean 'size'?"),
        ({"pools": 3}, "pools", "must be a mapping"),
        ({"pools": {"general": {"size": True}}}, "pools.general.size", "got True"),
        ({"pools": {"general": {"grace_s": float("nan")}}}, "pools.general.grace_s", "finite number"),
        ({"lms": {"x": {"model": "openai/x", "api_key": ["sekrit"]}}}, "lms.x.api_key", "must be text"),
        ({"lms": {"x": {"model": object()}}}, "lms.x.model", "is of type object"),
        ({"pools": {"general": {"env": {"A": [1, {2}]}}}}, "pools.general.env.A.1", "is of type set"),
        ({"log_level": b"info"}, "log_level", "is of type bytes"),
        ({"data_dir": 7}, "data_dir", "must be text"),
    ],
)
def test_wrong_overrides_are_told_by_path(overrides: dict[str, Any], path: str, said: str) -> None:
    error = failing(errors.ConfigError, lambda: start(**overrides), "override: ", path, said, path=path)
    assert [problem["path"] for problem in error.problems] == [path]
    assert "sekrit" not in str(error) + repr(error.details)


def test_wrong_variables_of_the_environment_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPOOL_POOLS__GENERAL__SISE", "2")
    failing(errors.ConfigError, start, "DSPOOL_POOLS__GENERAL__SISE", "did you mean 'size'?", path="pools.general.sise")


def test_a_wrong_schedule_of_faults_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPOOL_FAULT_POINTS", "garbage")
    error = failing(errors.ConfigError, lambda: start(faults=True), "DSPOOL_FAULT_POINTS: is no schedule of faults")
    assert isinstance(error, errors.ConfigError)
    assert [problem["where"] for problem in error.problems] == ["DSPOOL_FAULT_POINTS"]


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    failing(errors.ConfigError, lambda: start(tmp_path / "none.yaml"), "none.yaml", "No such file")
    failing(errors.ConfigError, lambda: start(tmp_path), "Is a directory")
    failing(errors.ConfigError, lambda: start(5), "config must be the path of a file, got int", path="config")


# --- directories --------------------------------------------------------------------------------------


def test_one_coordinator_for_one_data_directory(run_dirs: Callable[[], Path]) -> None:
    data_dir = run_dirs()
    with Orchestrator(pools=POOLS, data_dir=data_dir) as first, first.client() as client:
        failing(
            errors.Unavailable, lambda: start(data_dir=data_dir), str(data_dir), f"pid {first.pid}", "`dspool down`"
        )
        assert client.ping()["pong"]
    with Orchestrator(pools=POOLS, data_dir=data_dir) as second, second.client() as client:
        assert client.ping()["pong"]


def _loose(path: Path) -> None:
    path.mkdir()
    path.chmod(0o710)


def _link(path: Path) -> None:
    (path.parent / "real").mkdir(mode=0o700)
    path.symlink_to(path.parent / "real")


def _foreign(path: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, os.getuid() + 1, -1)


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")


@pytest.mark.parametrize("key", ["run_dir", "data_dir"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_loose, "chmod 700"),
        (_link, "symbolic link"),
        (Path.touch, "not a directory"),
        pytest.param(_foreign, "belongs to user id", marks=as_root),
    ],
)
def test_a_directory_that_is_not_ours_alone_is_refused(
    run_dirs: Callable[[], Path], key: str, make: Callable[[Path], None], said: str
) -> None:
    path = run_dirs() / "d"
    make(path)
    before = path.lstat()
    failing(errors.Unavailable, lambda: start(**{key: path}), str(path), said)
    assert (path.lstat().st_mode, path.lstat().st_uid) == (before.st_mode, before.st_uid), "it was changed"
    if path.is_dir():
        assert list(path.iterdir()) == []


def test_a_path_too_long_for_sockets_is_refused(run_dirs: Callable[[], Path]) -> None:
    failing(errors.ConfigError, lambda: start(run_dir=run_dirs() / ("r" * 90)), "sockets need", path="run_dir")


# --- workers ------------------------------------------------------------------------------------------


def test_workers_that_cannot_boot_are_told_with_their_last_words(tmp_path: Path) -> None:
    (tmp_path / "dspy.py").write_text("raise OSError('this is no dspy')\n")
    error = failing(
        errors.Unavailable, lambda: start(python_path=[tmp_path]), "pool general cannot start", "this is no dspy"
    )
    assert str(tmp_path / "dspy.py") in str(error)


# --- nobody there -------------------------------------------------------------------------------------


def test_connecting_to_nobody_says_what_to_run(run_dirs: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_dirs()
    failing(errors.Unavailable, lambda: connect(f"ipc://{folder}/none.sock"), f"{folder}/none.sock", "`dspool up`")
    failing(errors.Unavailable, lambda: connect("http://localhost"), "http://localhost", "ipc:///")
    monkeypatch.setenv("DSPOOL_RUN_DIR", str(folder))
    failing(errors.Unavailable, lambda: connect(start=False), str(folder), "`dspool up -d`")
    folder.chmod(0o755)
    failing(errors.Unavailable, lambda: connect(start=False), str(folder), "chmod 700")


def test_an_orchestrator_that_does_not_run_says_so() -> None:
    failing(errors.Unavailable, lambda: Orchestrator().client(), "`with` block")
