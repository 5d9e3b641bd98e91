from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import rundir
from orchestrator.errors import ConfigError, Unavailable
from orchestrator.rundir import CoordinatorInfo, DataLock, StarterLock


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    # Below tmp_path itself a name of its own: pytest's directories can be too long for socket paths.
    return tmp_path / "r"


@pytest.fixture(autouse=True)
def long_paths_allowed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "too_long" not in request.node.name:
        monkeypatch.setattr(rundir, "IPC_PATH_BYTES", 4096)


def me(run_id: str = "0" * 32, **changes: object) -> CoordinatorInfo:
    ticks = rundir.process_ticks(os.getpid())
    assert ticks is not None
    info = CoordinatorInfo(
        run_id=run_id,
        endpoint="ipc:///x",
        pid=os.getpid(),
        started_ticks=ticks,
        version="0.1.0",
        data_dir="/d",
        private=False,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


# --- directories ------------------------------------------------------------------------------------


def test_a_private_directory_is_created_with_its_parents(tmp_path: Path) -> None:
    made = rundir.ensure_private(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    assert rundir.ensure_private(made) == made


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o755, 0o777])
def test_a_directory_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    open_one = tmp_path / "open"
    open_one.mkdir()
    open_one.chmod(mode)
    with pytest.raises(Unavailable, match=f"run `chmod 700 {open_one}`"):
        rundir.ensure_private(open_one)
    with pytest.raises(Unavailable, match="chmod 700"):
        rundir.discover(open_one)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    target = rundir.ensure_private(tmp_path / "target")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(Unavailable, match="symbolic link"):
        rundir.ensure_private(tmp_path / "link")


def test_a_dangling_link_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "link", tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(Unavailable):
            rundir.ensure_private(path)
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rundir.ensure_private(tmp_path / "theirs")
    own = os.getuid()
    monkeypatch.setattr(rundir.os, "getuid", lambda: own + 1)
    with pytest.raises(Unavailable, match=f"belongs to user id {own}, not to you"):
        rundir.ensure_private(path)


def test_default_directories(tmp_path: Path) -> None:
    session = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": "/home/someone"}
    fallback = Path(f"/tmp/dspool-{os.getuid()}")
    assert rundir.default_run_dir(session) == tmp_path / "dspool"
    assert rundir.default_run_dir({"XDG_RUNTIME_DIR": str(tmp_path / "absent")}) == fallback
    assert rundir.default_run_dir({"XDG_RUNTIME_DIR": "relative"}) == fallback
    assert rundir.default_run_dir({}) == fallback
    assert rundir.default_run_dir({**session, "DSPOOL_RUN_DIR": "/chosen"}) == Path("/chosen")
    assert rundir.default_data_dir(session) == Path("/home/someone/.local/share/dspool")
    assert rundir.default_data_dir({**session, "XDG_DATA_HOME": "/data"}) == Path("/data/dspool")
    assert rundir.default_data_dir({**session, "XDG_DATA_HOME": "data"}) == Path("/home/someone/.local/share/dspool")


# --- runs -------------------------------------------------------------------------------------------


def test_runs_have_ids_and_directories_of_their_own(run_dir: Path) -> None:
    runs = [rundir.new_run(run_dir) for _ in range(3)]
    assert len({run_id for run_id, _ in runs}) == 3
    for run_id, directory in runs:
        assert len(bytes.fromhex(run_id)) == 16
        assert directory == run_dir / run_id
        assert directory.stat().st_mode & 0o777 == 0o700


def test_a_run_dir_that_is_too_long_for_sockets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sockets need 57 or less") as caught:
        rundir.new_run(tmp_path / ("x" * 60))
    assert caught.value.path == "run_dir"


def test_discover_finds_what_was_published(run_dir: Path) -> None:
    assert rundir.discover(run_dir) is None
    run_id, _ = rundir.new_run(run_dir)
    assert rundir.discover(run_dir) is None
    rundir.publish(run_dir, me(run_id))
    assert rundir.discover(run_dir) == rundir.read_info(run_dir, run_id) == me(run_id)
    assert sorted(os.listdir(run_dir)) == sorted([run_id, "current.json"])


def test_a_private_run_is_not_discovered(run_dir: Path) -> None:
    run_id, _ = rundir.new_run(run_dir)
    rundir.publish(run_dir, me(run_id, private=True))
    assert rundir.discover(run_dir) is None
    assert rundir.read_info(run_dir, run_id) is not None


def test_a_dead_coordinator_is_not_discovered(run_dir: Path) -> None:
    run_id, _ = rundir.new_run(run_dir)
    # The same pid, another start: the pid was given to another process.
    rundir.publish(run_dir, me(run_id, started_ticks=me().started_ticks - 1))
    assert rundir.discover(run_dir) is None


def test_a_failed_write_leaves_nothing(run_dir: Path) -> None:
    run_id, directory = rundir.new_run(run_dir)
    (directory / "coordinator.json").mkdir()
    with pytest.raises(IsADirectoryError):
        rundir.publish(run_dir, me(run_id))
    assert sorted(os.listdir(directory)) == ["coordinator.json", "owner"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}', "\xff"])
def test_a_damaged_file_is_no_coordinator(run_dir: Path, content: str) -> None:
    rundir.ensure_private(run_dir)
    (run_dir / "current.json").write_text(content, encoding="latin-1")
    assert rundir.discover(run_dir) is None


def test_fields_of_a_later_version_are_ignored(run_dir: Path) -> None:
    run_id, _ = rundir.new_run(run_dir)
    rundir.publish(run_dir, me(run_id))
    current = run_dir / "current.json"
    current.write_text(json.dumps({**json.loads(current.read_text()), "later": 1}))
    assert rundir.discover(run_dir) == me(run_id)
    current.write_text(json.dumps({**json.loads(current.read_text()), "pid": "1"}))
    assert rundir.discover(run_dir) is None


def test_ending_a_run_removes_its_traces_only(run_dir: Path) -> None:
    (first, _), (second, _) = rundir.new_run(run_dir), rundir.new_run(run_dir)
    rundir.publish(run_dir, me(first))
    rundir.publish(run_dir, me(second))
    rundir.end_run(run_dir, first)
    assert rundir.discover(run_dir) == me(second)
    rundir.end_run(run_dir, second)
    rundir.end_run(run_dir, second)
    assert os.listdir(run_dir) == []


def test_sweep_removes_what_the_dead_left(run_dir: Path) -> None:
    assert rundir.sweep(run_dir) == []
    (alive, _), (dead, dead_dir), (starting, starting_dir), (abandoned, abandoned_dir), (bare, bare_dir) = (
        rundir.new_run(run_dir) for _ in range(5)
    )
    rundir.publish(run_dir, me(alive))
    rundir.publish(run_dir, me(dead, private=True, started_ticks=1))
    (dead_dir / "frontend").write_text("")
    os.utime(starting_dir, (1, 1))  # its age says nothing: the clock may have jumped
    (abandoned_dir / "owner").write_text(f"{os.getpid()} 1")
    (bare_dir / "owner").unlink()
    (run_dir / "notes").mkdir()
    assert sorted(rundir.sweep(run_dir)) == sorted([dead, abandoned, bare])
    assert sorted(os.listdir(run_dir)) == sorted([alive, starting, "current.json", "notes"])


def test_process_ticks_name_a_process() -> None:
    assert rundir.process_ticks(os.getpid()) == rundir.process_ticks(os.getpid())
    assert rundir.process_ticks(2**22 + 1) is None


def test_process_ticks_are_read_behind_any_command_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    answer = f"7 (a) R 1 (b)) S {fields}".encode()
    (tmp_path / "stat").write_bytes(answer)
    monkeypatch.setattr("builtins.open", lambda *_: Path.open(tmp_path / "stat", "rb"))
    assert rundir.process_ticks(7) == 22
    (tmp_path / "stat").write_bytes(answer.replace(b") S", b") Z"))
    assert rundir.process_ticks(7) is None


# --- locks ------------------------------------------------------------------------------------------


def test_one_coordinator_per_data_dir(tmp_path: Path) -> None:
    with DataLock(tmp_path / "data") as held:
        with pytest.raises(Unavailable, match=f"in use by the coordinator with pid {os.getpid()}: stop it"):
            DataLock(tmp_path / "data")
        DataLock(tmp_path / "other").release()
    held.release()
    DataLock(tmp_path / "data").release()


def test_the_starter_lock_waits_and_then_says_who_holds_it(run_dir: Path) -> None:
    message = f"process {os.getpid()} has been starting a coordinator"
    with StarterLock(run_dir), pytest.raises(Unavailable, match=message):
        StarterLock(run_dir, timeout_s=0)
    StarterLock(run_dir, timeout_s=0).release()


def test_the_starter_lock_is_taken_when_it_gets_free(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = StarterLock(run_dir)
    waits: list[float] = []

    def release_while_the_other_waits(seconds: float) -> None:
        waits.append(seconds)
        first.release()

    monkeypatch.setattr(rundir.time, "sleep", release_while_the_other_waits)
    StarterLock(run_dir, timeout_s=60).release()
    assert len(waits) == 1


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    data = rundir.ensure_private(tmp_path / "data")
    (data / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(Unavailable, match="cannot open the lock"):
        DataLock(data)
    assert not (tmp_path / "victim").exists()


def test_locks_leave_no_descriptors(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with DataLock(tmp_path / "data"), pytest.raises(Unavailable):
        DataLock(tmp_path / "data")
    assert os.listdir("/proc/self/fd") == before
