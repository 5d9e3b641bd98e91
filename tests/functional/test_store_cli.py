"""`dspool store`: what it tells of a store, and its exit codes."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.services.store import Store, store_path
from orchestrator.services.store.migrations import LATEST
from tests.support.store_writes import write, wrong


class Told(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def dspool(*words: str | Path) -> Told:
    done = CliRunner().invoke(app, ["store", *map(str, words)])
    return Told(done.exit_code, done.stdout, done.stderr)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data directory with a store, beside the configuration of the current folder that names it."""
    data = tmp_path / "data"
    data.mkdir()
    with Store.open(store_path(data)) as store:
        for number in range(6):
            write(store, number)
    (tmp_path / "dspool.yaml").write_text(json.dumps({"data_dir": str(data), "run_dir": str(tmp_path / "run")}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSPOOL_RUN_DIR", str(tmp_path / "run"))
    return data


def test_info_tells_what_there_is(folder: Path) -> None:
    for options in ((), ("--data-dir", folder), ("--config", folder.parent / "dspool.yaml")):
        told = dspool("info", *options, "--json").json
        assert (told["where"], told["kind"], told["schema"]) == (str(store_path(folder)), "sqlite", LATEST)
        assert [told[name] for name in ("programs", "versions", "sessions", "turns", "events")] == [1, 2, 2, 2, 6]
    assert "\nevents: 6\n" in dspool("info").out
    both = dspool("info", "--data-dir", folder, "--config", "dspool.yaml")
    assert (both.code, "give one of them" in both.err) == (2, True)


def test_check_tells_damage_and_fails(folder: Path) -> None:
    path = store_path(folder)
    assert dspool("check", "--json").json == {"where": str(path), "good": True, "damage": []}
    assert dspool("check").out == f"{path}: nothing is damaged\n"
    good = path.read_bytes()
    path.write_bytes(good[:4096] + b"\xff" * 4096 + good[8192:])
    told = dspool("check", "--json")
    assert (told.code, told.json["error"]["code"], told.json["error"]["details"]["reason"]) == (1, "STORAGE", "corrupt")
    assert str(path) in dspool("check").err
    # Well-formed pages, and a row that names one which is not there: the quick look at the start does not see it.
    path.write_bytes(good)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM program_versions WHERE version = 2")
        connection.commit()
    told = dspool("check", "--json")
    assert (told.code, told.json["good"], len(told.json["damage"])) == (1, False, 1)
    assert "program_aliases" in dspool("check").out


def test_backup_writes_a_store(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copies" / "store.sqlite3"
    copy.parent.mkdir()
    with Store.open(store_path(folder)) as in_use:
        write(in_use, 6)
        told = dspool("backup", copy, "--json")
    assert told.json == {"where": str(store_path(folder)), "file": str(copy), "bytes": copy.stat().st_size}
    assert dspool("info", "--data-dir", copy.parent, "--json").json["versions"] == 3
    with Store.open(copy) as store:
        assert wrong(store, 7) == []
    again = dspool("backup", copy)
    assert (again.code, "exists already" in again.err) == (2, True)


def test_where_there_is_none(tmp_path: Path, folder: Path) -> None:
    for words in (("info",), ("check",), ("backup", tmp_path / "copy")):
        told = dspool(*words, "--data-dir", tmp_path / "nowhere")
        assert (told.code, "there is no store" in told.err) == (2, True)
    assert not (tmp_path / "nowhere").exists()
