"""The store on real databases, a file and a server: what is written is read, once, whoever else reads and writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import inspect

from orchestrator.errors import InvalidRequest, NotFound, StorageError
from orchestrator.services.store import EventRow, SessionRow, SessionSave, Store, VersionDraft, store_path
from orchestrator.services.store.migrations import LATEST
from orchestrator.services.store.schema import metadata
from tests.support.postgres import postgres_server

STATE = {"demos": [1, "é\u2028\0"], "x": 1e300}
DRAFT = VersionDraft(
    name="qa", sha256="a", pool="general", target={"module": "dspy.Predict"}, state=STATE, config={"k": 2**70},
    inputs=("question",), outputs=("answer",), signature="question -> answer", deployed_by="me", deployed_at=1.5,
    note="first",
)  # fmt: skip
SAVE = SessionSave(principal="p", id="s", generation=3, seq=1, ttl_s=60.0, options={"affinity": "hint"})


@pytest.fixture(scope="module", params=["file", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Return what names places for new stores."""
    if request.param == "file":
        yield lambda: str(store_path(tmp_path_factory.mktemp("store")))
        return
    with postgres_server() as server:
        yield server.emptied


@pytest.fixture
def where(fresh: Callable[[], str]) -> str:
    return fresh()


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    with Store.open(where) as store:
        yield store


# --- programs ---------------------------------------------------------------------------------------


def test_a_version_is_read_as_it_was_written(store: Store, where: str) -> None:
    added = store.programs.add_version(DRAFT, "live")
    assert (added.row.version, added.created, added.previous) == (1, True, None)
    with Store.open(where) as again:
        assert again.programs.version("qa", 1) == added.row
    assert {name: getattr(added.row, name) for name in ("state", "config", "inputs", "note", "deployed_at")} == {
        "state": DRAFT.state, "config": DRAFT.config, "inputs": ("question",), "note": "first", "deployed_at": 1.5,
    }  # fmt: skip
    assert [row.version for row in store.programs.versions("qa")] == [1]
    assert store.programs.version("qa", 2) is None
    assert store.programs.version("other", 1) is None


def test_what_the_alias_names_already_is_no_new_version(store: Store) -> None:
    store.programs.add_version(DRAFT, "live")
    # A tuple is read back as a list, and is no other content for that.
    again = store.programs.add_version(
        replace(DRAFT, state={"demos": (1, "é\u2028\0"), "x": 1e300}, note="again"), "live"
    )
    assert (again.row.version, again.created, again.row.note) == (1, False, "first")
    other = store.programs.add_version(replace(DRAFT, pool="neural"), "live")
    assert (other.row.version, other.created, other.previous) == (2, True, 1)
    back = store.programs.add_version(DRAFT, "live")
    assert (back.row.version, back.created, back.previous) == (3, True, 2)
    assert store.programs.add_version(DRAFT, None).row.version == 3
    assert store.programs.add_version(replace(DRAFT, sha256="b"), None).row.version == 4


def test_a_number_is_taken_once_and_written_once(store: Store) -> None:
    taken = [store.programs.take_number("qa") for _ in range(3)]
    assert taken == [1, 2, 3]
    for created in (True, False):
        added = store.programs.add_version(DRAFT, "live", version=2)
        assert (added.row.version, added.created) == (2, created)
    with pytest.raises(StorageError, match="qa has a version 2 already"):
        store.programs.add_version(replace(DRAFT, sha256="b"), "live", version=2)
    store.programs.add_version(replace(DRAFT, sha256="b"), "live", version=3)
    # What failed once may be repeated: the version is there, the alias moves.
    again = store.programs.add_version(DRAFT, "live", version=2)
    assert (again.created, again.previous) == (False, 3)
    assert store.programs.take_number("qa") == 4


def test_aliases_move_and_know_where_they_were(store: Store) -> None:
    for sha256 in "abc":
        store.programs.add_version(replace(DRAFT, sha256=sha256), "live")
    assert store.programs.set_alias("qa", "canary", 1, by="me", at=2.0) is None
    assert store.programs.set_alias("qa", "live", 1, by="you", at=3.0) == 3
    assert store.programs.set_alias("qa", "live", 1, by="nobody", at=4.0) == 3, "what is repeated changes nothing"
    program = store.programs.program("qa")
    assert program is not None
    assert (program.versions, program.last_version) == (3, 3)
    assert {name: tuple(alias) for name, alias in program.aliases.items()} == {
        "canary": (1, None, "me", 2.0), "live": (1, 3, "you", 3.0),
    }  # fmt: skip
    assert store.programs.remove_alias("qa", "canary") is True
    assert store.programs.remove_alias("qa", "canary") is False


def test_an_alias_names_what_is_there(store: Store) -> None:
    store.programs.add_version(DRAFT, "live")
    with pytest.raises(NotFound, match="qa has no version 7: it has 1 alone"):
        store.programs.set_alias("qa", "live", 7)
    with pytest.raises(NotFound, match="no program is named 'qaa'") as caught:
        store.programs.set_alias("qaa", "live", 1)
    assert caught.value.suggestions == ["qa"]
    assert store.programs.list() == [store.programs.program("qa")]


def test_a_removed_program_leaves_its_numbers_behind(store: Store) -> None:
    store.programs.add_version(DRAFT, "live")
    store.programs.add_version(replace(DRAFT, sha256="b"), "live")
    assert store.programs.remove("qa") is True
    assert store.programs.remove("qa") is False
    assert (store.programs.list(), store.programs.served(), store.programs.program("qa")) == ([], [], None)
    assert store.programs.add_version(DRAFT, "live").row.version == 3


def test_served_is_what_aliases_name(store: Store) -> None:
    for name in ("qa", "rag", "none"):
        for sha256 in "abc":
            store.programs.add_version(replace(DRAFT, name=name, sha256=sha256), None if name == "none" else "live")
    store.programs.set_alias("qa", "canary", 1)
    store.programs.set_alias("qa", "old", 1)
    served = {program.name: [row.version for row in rows] for program, rows in store.programs.served()}
    assert served == {"none": [], "qa": [1, 3], "rag": [3]}
    [(program, rows)] = store.programs.served("qa")
    assert (sorted(program.aliases), [row.sha256 for row in rows]) == (["canary", "live", "old"], ["a", "c"])


@pytest.mark.parametrize(
    "draft",
    [
        replace(DRAFT, state=float("nan")), replace(DRAFT, state={1, 2}), replace(DRAFT, name="a\0b"),
        replace(DRAFT, note="\ud800"), replace(DRAFT, target=b"bytes"),
    ],
    ids=["nan", "set", "nul", "surrogate", "bytes"],
)  # fmt: skip
def test_what_no_database_takes_is_refused(store: Store, draft: VersionDraft) -> None:
    with pytest.raises(InvalidRequest, match="cannot be stored"):
        store.programs.add_version(draft, "live")
    assert store.programs.list() == []
    assert store.programs.add_version(DRAFT, "live").row.version == 1, "no number was taken"


# --- sessions ---------------------------------------------------------------------------------------


def loaded(store: Store) -> dict[str, SessionRow]:
    return {row.id: row for row in store.sessions.load()}


def test_a_session_keeps_its_newest_state_and_its_turns(store: Store) -> None:
    store.sessions.save([replace(SAVE, state=b"\0one", calls=1, stats=b"s", touched_at=1.0, turns=[(1, b"t1")])])
    store.sessions.save([replace(SAVE, seq=2, calls=2, touched_at=2.0, turns=[(1, b"again"), (2, b"t2")])])
    row = loaded(store)["s"]
    assert (row.key, row.generation, row.seq, row.options) == (("p", "s"), 3, 2, {"affinity": "hint"})
    assert (row.state, row.calls, row.touched_at, list(row.turns)) == (b"\0one", 2, 2.0, [(1, b"t1"), (2, b"t2")])
    store.sessions.save([replace(SAVE, seq=3, state=b"", turns=[(3, b"t3")], first_turn=3)])
    assert (loaded(store)["s"].state, list(loaded(store)["s"].turns)) == (b"", [(3, b"t3")])


def test_what_comes_late_does_not_turn_a_session_back(store: Store) -> None:
    new = replace(SAVE, seq=5, state=b"new", turns=[(5, b"t")])
    store.sessions.save([new])
    store.sessions.save([replace(SAVE, seq=4, state=b"old"), replace(SAVE, generation=2, seq=9, ended=True), new])
    assert (loaded(store)["s"].state, loaded(store)["s"].seq) == (b"new", 5)
    store.sessions.save([replace(SAVE, generation=4, seq=0)])
    begun_anew = loaded(store)["s"]
    assert (begun_anew.generation, begun_anew.seq, begun_anew.state, list(begun_anew.turns)) == (4, 0, None, [])
    for _ in range(2):
        store.sessions.save([replace(SAVE, generation=4, seq=1, ended=True)])
        assert loaded(store) == {}


def test_a_batch_is_kept_whole_or_not_at_all(store: Store) -> None:
    store.sessions.save([replace(SAVE, state=b"before")])
    with pytest.raises(InvalidRequest):
        store.sessions.save([replace(SAVE, seq=2, state=b"after"), replace(SAVE, id="t", options={"x": float("inf")})])
    assert {row.id: row.state for row in store.sessions.load()} == {"s": b"before"}


def test_of_a_batch_what_can_be_is_kept(store: Store) -> None:
    store.sessions.save([replace(SAVE, state=b"before", turns=[(1, b"t")])])
    bad = replace(SAVE, principal="p\0"), replace(SAVE, generation=4, options={"x": float("inf")})
    refused = store.sessions.save_most([replace(SAVE, id="t"), *bad, replace(SAVE, id="u", turns=[(2, b"t")])])
    assert list(refused) == [("p\0", "s"), ("p", "s")]
    assert set(loaded(store)) == {"s", "t", "u"}
    assert (loaded(store)["s"].state, list(loaded(store)["s"].turns)) == (b"before", [(1, b"t")]), "as it was"


def test_sessions_are_read_in_pages(store: Store) -> None:
    ids = [f"{number:03}" for number in range(50)]
    store.sessions.save([replace(SAVE, principal=of, id=id_, state=b"x" * 1000) for of in ("a", "b") for id_ in ids])
    keys: list[tuple[str, str]] = []
    pages = 0
    while page := store.sessions.load(keys[-1] if keys else None, limit=7):
        keys += [row.key for row in page]
        pages += 1
    assert (keys, pages) == ([(of, id_) for of in ("a", "b") for id_ in ids], 15)
    assert len(store.sessions.load(max_bytes=4500)) == 4
    assert len(store.sessions.load(("b", "048"), max_bytes=10)) == 1, "one is given however large it is"
    assert store.sessions.count() == 100


def test_sessions_end_by_name_and_by_time(store: Store) -> None:
    given = [
        replace(SAVE, id=f"{number}", ttl_s=float(number), touched_at=100.0, turns=[(1, b"t")]) for number in range(5)
    ]
    store.sessions.save(given)
    store.sessions.remove([("p", "4"), ("nobody", "4")])
    assert sorted(store.sessions.expire(102.0)) == [("p", "0"), ("p", "1")]
    assert list(loaded(store)) == ["2", "3"]
    assert store.info()["turns"] == 2


# --- events -----------------------------------------------------------------------------------------


def test_events_are_kept_once_and_read_in_their_order(store: Store) -> None:
    assert (store.events.first_seq(), store.events.last_seq(), store.events.read()) == (0, 0, [])
    base = 7 << 32
    rows = [EventRow(base + number, 1.25 * number, "worker_exited", "info", {"n": number}) for number in range(1, 11)]
    store.events.append(rows[5:])
    store.events.append(rows)
    assert store.events.read() == rows
    assert store.events.read(base + 4, limit=2) == rows[4:6]
    assert (store.events.first_seq(), store.events.last_seq()) == (base + 1, base + 10)
    assert [store.events.trim(keep) for keep in (20, 4, 4)] == [0, 6, 0]
    assert store.events.read() == rows[6:]
    assert (store.events.trim(0), store.events.read()) == (4, [])


# --- together ---------------------------------------------------------------------------------------


def test_many_threads_read_and_write_at_once(store: Store) -> None:
    failed = threading.Event()

    def watch() -> None:
        while not failed.is_set() and not done.is_set():
            for program, rows in store.programs.served():
                if program.aliases["live"].version not in [row.version for row in rows]:
                    failed.set()  # an alias without its version: not one state

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as threads:
        drafts = [replace(DRAFT, name=f"p{number % 3}", sha256=str(number)) for number in range(60)]
        added = list(threads.map(lambda draft: store.programs.add_version(draft, "live"), drafts))
    done.set()
    watcher.join(10)
    assert not failed.is_set()
    for name in ("p0", "p1", "p2"):
        assert sorted(each.row.version for each in added if each.row.name == name) == list(range(1, 21))


def test_two_processes_worth_of_stores_share_one_database(store: Store, where: str) -> None:
    with Store.open(where) as other, ThreadPoolExecutor(2) as threads:

        def add(number: int) -> int:
            writer = (store, other)[number % 2]
            return writer.programs.add_version(replace(DRAFT, sha256=str(number)), "live").row.version

        assert sorted(threads.map(add, range(40))) == list(range(1, 41))
        assert store.programs.versions("qa") == other.programs.versions("qa")


def test_who_writes_for_too_long_is_waited_for_only_so_long(store: Store, where: str) -> None:
    with Store.open(where, busy_timeout_s=0.2) as other:
        with store._database.write():
            with pytest.raises(StorageError, match="is in use by another process") as caught:
                other.programs.add_version(DRAFT, "live")
            assert (caught.value.reason, caught.value.retryable) == ("locked", True)
            assert other.programs.list() == [], "readers wait for nobody"
        assert other.programs.add_version(DRAFT, "live").created


def test_one_holds_it(store: Store, where: str) -> None:
    store.hold()
    store.hold()
    with Store.open(where) as other:
        with pytest.raises(StorageError) as caught:
            other.hold(0.1)
        assert caught.value.reason == "locked"
        store.close()
        other.hold(1.0)
        other.programs.add_version(DRAFT, "live")


def test_it_can_be_read_while_it_is_used(store: Store, where: str) -> None:
    store.programs.add_version(DRAFT, "live")
    with Store.open(where, readonly=True) as reader:
        assert reader.programs.list() == store.programs.list()
        with pytest.raises(StorageError):
            reader.programs.remove("qa")
    assert store.programs.program("qa") is not None
    told = store.info()
    assert [told[name] for name in ("programs", "versions", "sessions", "turns", "events")] == [1, 1, 0, 0, 0]
    assert (told["schema"], told["latest_schema"], told["where"]) == (LATEST, LATEST, store.where)
    assert told["bytes"] > 0
    assert store.check() == []


def test_a_store_is_told_from_another(store: Store, where: str) -> None:
    known = store.identity()
    Store.open(where, known=known).close()
    with pytest.raises(StorageError, match="another store") as caught:
        Store.open(where, known="of another")
    assert caught.value.reason == "foreign"
    store.close()


def test_two_stores_have_two_identities(fresh: Callable[[], str]) -> None:
    found = []
    for _ in range(2):
        with Store.open(fresh()) as store:
            found.append(store.identity())
    assert len(set(found)) == 2
    with pytest.raises(StorageError, match="is gone") as caught:
        Store.open(place := fresh(), known=found[0])
    assert caught.value.reason == "corrupt"
    with pytest.raises(StorageError):
        Store.open(place, readonly=True)


def test_the_latest_run_is_that_of_events_and_of_sessions(store: Store) -> None:
    assert store.last_run() == 0
    store.events.append([EventRow(3 << 32 | 9, 1.0, "happened", "info", {})])
    assert store.last_run() == 3
    store.sessions.save([replace(SAVE, generation=5 << 32 | 1)])
    assert store.last_run() == 5


def test_the_tables_are_what_migrations_make(store: Store, where: str) -> None:
    schema = None if "://" not in where else "dspool"
    with store._database.read() as connection:
        found = inspect(connection)
        assert set(found.get_table_names(schema=schema)) == set(metadata.tables)
        for name, table in metadata.tables.items():
            columns: dict[str, Any] = {one["name"]: one for one in found.get_columns(name, schema=schema)}
            assert list(columns) == list(table.columns.keys())
            assert {key for key, one in columns.items() if not one["nullable"]} == {
                column.name for column in table.columns if not column.nullable
            }
            keys = found.get_pk_constraint(name, schema=schema)["constrained_columns"]
            assert keys == [column.name for column in table.primary_key]
