"""A store in trouble: it is named, it is kept, the error says what helps; and when that is done it goes on."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from orchestrator.errors import InvalidRequest, StorageError
from orchestrator.services.store import Store, store_path
from orchestrator.services.store.database import journal_of
from orchestrator.services.store.migrations import LATEST
from tests.support.acceptance import ROOT
from tests.support.postgres import Server, postgres_server
from tests.support.store_crashes import store_of
from tests.support.store_writes import write, wrong

_PAGE = 4096


def script(name: str, path: Path, *prefix: str) -> Any:
    """Run a process that meets trouble; return what it told."""
    command = [*prefix, sys.executable, "-W", "error", "-m", "tests.support.store_script", name, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a store is with some writes in it."""
    path = store_path(tmp_path)
    with Store.open(path) as store:
        for number in range(12):
            write(store, number)
    return path


def failure(path: Path | str, **options: Any) -> StorageError:
    with pytest.raises(StorageError) as caught:
        Store.open(path, **options)
    error = caught.value
    assert (error.code, error.file) == ("STORAGE", str(path))
    assert str(path) in str(error)
    return error


# --- no room ----------------------------------------------------------------------------------------


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    written, first, (still, again), damage = script("limited", store_path(tmp_path))
    assert written == still > 10
    assert first == again
    assert (first["reason"], first["retryable"], first["file"]) == ("io", True, str(store_path(tmp_path)))
    assert "a limit on the size of files is reached" in first["message"]
    assert damage == []


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[Path, list[str]]:
    """Return a folder, and what runs a command with a disk of 1 MB mounted there, seen by nobody else."""
    mount = f'mount -t tmpfs -o size=1m,mode=0700 tmpfs {tmp_path} && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here: that needs root, and unshare")
    return tmp_path, prefix


def test_a_full_disk(small_disk: tuple[Path, list[str]]) -> None:
    folder, prefix = small_disk
    written, first, (still, again), damage = script("small_disk", store_path(folder), *prefix)
    assert written == still > 5
    assert (first["reason"], first["retryable"], again["reason"]) == ("full", True, "full")
    assert "its disk is full" in first["message"]
    assert damage == []


def test_no_room_for_a_new_store(small_disk: tuple[Path, list[str]]) -> None:
    folder, prefix = small_disk
    first, second = script("no_room", store_path(folder), *prefix)
    assert (first["reason"], first["retryable"], first["file"]) == ("full", True, str(store_path(folder)))
    assert second is None, "nothing was left behind that is in the way"


# --- not ours to write ------------------------------------------------------------------------------


@pytest.fixture
def bound() -> list[str]:
    """Return what runs a command that is bound by the modes of files, also where root runs the tests."""
    if os.getuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("root cannot be bound by the modes of files here: that needs setpriv")
    return prefix


def test_a_file_that_may_not_be_written(path: Path, bound: list[str]) -> None:
    before = path.read_bytes()
    path.chmod(0o400)
    told = script("opened", path, *bound)
    assert (told["reason"], told["retryable"], told["file"]) == ("read_only", False, str(path))
    assert f"{path} may not be written" in told["message"]
    assert "make both writable for this user" in told["message"]
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path], "what was left behind could not be written, either"


def test_a_folder_that_may_not_be_written(path: Path, bound: list[str]) -> None:
    path.parent.chmod(0o500)
    try:
        told = script("opened", path, *bound)
        assert (told["reason"], f"{path.parent} may not be written" in told["message"]) == ("read_only", True)
    finally:
        path.parent.chmod(0o700)


def test_no_folder(tmp_path: Path) -> None:
    assert failure(tmp_path / "nowhere" / "store.sqlite3").reason == "cannot_open"


# --- damaged, foreign, newer ------------------------------------------------------------------------


def test_every_damaged_page_is_seen_and_left_as_it_is(path: Path) -> None:
    good = path.read_bytes()
    # The first byte tells pages of tables and indexes from those that are the rest of a long text, which has no form.
    pages = [start for start in range(0, len(good), _PAGE) if start == 0 or good[start] in (2, 5, 10, 13)]
    assert len(pages) > 12
    for start in pages:
        # All bits of the head of a page; the first page begins with that of the file.
        damaged = good[:start] + bytes(byte ^ 0xFF for byte in good[start : start + 8]) + good[start + 8 :]
        path.write_bytes(damaged)
        error = failure(path)
        assert (error.reason, error.retryable) == ("corrupt", False)
        assert "dspool store backup" in str(error)
        assert "it is kept as it is" in str(error)
        assert path.read_bytes() == damaged
    path.write_bytes(good)
    with Store.open(path) as store:
        assert wrong(store, 12) == []


@pytest.mark.parametrize("size", [0, 1, 99, 4096, 4096 * 5 + 7])
def test_a_file_that_was_cut_off(path: Path, size: int) -> None:
    os.truncate(path, size)
    before = path.read_bytes()
    for readonly in (True, False):
        assert failure(path, readonly=readonly).reason == "corrupt"
        assert path.read_bytes() == before


def test_damage_that_comes_while_it_is_open(path: Path) -> None:
    with Store.open(path) as store:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(_PAGE)
            file.write(b"\xff" * (size - _PAGE))
        with pytest.raises(StorageError) as caught:
            store.programs.versions("qa")
        assert (caught.value.reason, caught.value.file) == ("corrupt", str(path))
    assert failure(path).reason == "corrupt"


def test_a_store_without_its_file(path: Path) -> None:
    with Store.open(path) as store:
        write(store, 12)
        shutil.copy(journal_of(path), path.parent / "kept")
    path.unlink()
    (path.parent / "kept").rename(journal_of(path))
    before = journal_of(path).read_bytes()
    assert "its journal store.sqlite3-wal is still there" in str(failure(path))
    assert journal_of(path).read_bytes() == before
    assert not path.exists()
    journal_of(path).unlink()
    Store.open(path).close()


@pytest.mark.parametrize("how", ["gone", "replaced"])
def test_nothing_is_written_into_a_file_that_is_not_the_store_any_more(path: Path, tmp_path: Path, how: str) -> None:
    with Store.open(path) as store:
        write(store, 12)
        path.rename(away := tmp_path / "away")
        if how == "replaced":
            shutil.copy(away, path)
        with pytest.raises(StorageError) as caught:
            write(store, 13)
        assert (caught.value.reason, caught.value.file) == ("corrupt" if how == "gone" else "foreign", str(path))
        away.rename(path)
        write(store, 13)
    with Store.open(path) as store:
        assert wrong(store, 14) == []


def test_what_is_no_store(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("This is no database, but long enough to be taken for one. " * 100)
    assert failure(text).reason == "corrupt"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = other.read_bytes()
    error = failure(other)
    assert (error.reason, "is not a store of dspool" in str(error)) == ("foreign", True)
    assert other.read_bytes() == before
    with pytest.raises(InvalidRequest, match="a store is a file, or a database by postgresql"):
        Store.open("mysql://root:geheim@host/db")


def test_a_store_of_a_newer_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE schema_info SET version = {LATEST + 1}")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    for readonly in (True, False):
        error = failure(path, readonly=readonly)
        assert (error.reason, error.retryable) == ("newer_schema", False)
        assert f"its schema is {LATEST + 1}, this version knows {LATEST}" in str(error)
        assert path.read_bytes() == before


def test_an_older_store_can_be_looked_at_as_it_is(tmp_path: Path) -> None:
    path = store_path(tmp_path)
    store_of(str(path), 1)
    before = path.read_bytes()
    with Store.open(path, readonly=True) as store:
        told = store.info()
        assert (told["schema"], told["programs"], told["versions"], told["sessions"], told["events"]) == (1, 1, 3, 0, 0)
        assert store.check() == []
    assert path.read_bytes() == before


# --- copies -----------------------------------------------------------------------------------------


def test_a_backup_is_a_store(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with Store.open(path) as store:
        write(store, 12)
        assert store.backup(target) == target.stat().st_size > 0
        write(store, 13)
        with pytest.raises(InvalidRequest, match="exists already"):
            store.backup(target)
        with pytest.raises(StorageError):
            store.backup(tmp_path / "nowhere" / "copy")
    assert target.stat().st_mode & 0o777 == 0o600
    assert not [entry.name for entry in tmp_path.iterdir() if "part" in entry.name]
    with Store.open(target) as copy:
        assert wrong(copy, 13) == []
        write(copy, 13)
        assert wrong(copy, 14) == []


# --- PostgreSQL -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


def test_a_server_that_is_gone_and_comes_back(server: Server) -> None:
    with Store.open(server.emptied()) as store:
        store.hold()
        write(store, 0)
        server.cut()
        for attempt in (lambda: write(store, 1), lambda: store.programs.list(), lambda: Store.open(server.url)):
            with pytest.raises(StorageError, match="cannot be reached") as caught:
                attempt()
            assert (caught.value.reason, caught.value.retryable) == ("unreachable", True)
        server.mend()
        for number in range(1, 6):
            write(store, number)
        assert wrong(store, 6) == []
        with Store.open(server.url) as other:
            with pytest.raises(StorageError) as caught:
                other.hold(0.1)
            assert caught.value.reason == "locked", "it is held again"
            server.cut()
            server.mend()
            other.hold()
            for _ in range(2):
                with pytest.raises(StorageError) as caught:
                    write(store, 6)
                assert caught.value.reason == "locked", "another one was faster"
        write(store, 6)
        assert wrong(store, 7) == []


def test_a_database_that_refuses(server: Server) -> None:
    secret = "geheim&7"
    for url in (
        server.url.replace("/postgres?", "/nowhere?").replace("dspool@", f"dspool:{quote(secret)}@"),
        f"{server.url.replace('dspool@', 'nobody@')}&password={quote(secret)}",
    ):
        with pytest.raises(StorageError, match=r"see `store\.url` in the configuration") as caught:
            Store.open(url)
        assert (caught.value.reason, caught.value.retryable) == ("cannot_open", False)
        told = f"{caught.value} {caught.value.details}"
        assert secret not in told
        assert quote(secret) not in told


def test_a_newer_schema_in_a_server(server: Server) -> None:
    url = server.emptied()
    Store.open(url).close()
    server.execute(f"UPDATE dspool.schema_info SET version = {LATEST + 1}")
    with pytest.raises(StorageError) as caught:
        Store.open(url)
    assert caught.value.reason == "newer_schema"
    server.emptied()
    with pytest.raises(StorageError, match="is not a store of dspool"):
        Store.open(url, readonly=True)


def test_a_server_is_backed_up_with_its_own_tools(server: Server, tmp_path: Path) -> None:
    with Store.open(server.emptied()) as store, pytest.raises(InvalidRequest, match="pg_dump --schema=dspool"):
        store.backup(tmp_path / "copy")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match=r"pip install 'dspool\[postgres\]'") as caught:
        Store.open("postgresql+psycopg://me@nowhere.invalid/db")
    assert caught.value.reason == "cannot_open"
