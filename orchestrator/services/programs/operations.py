"""The operations `programs.*`: each is in the store when it is answered, and the coordinator has been told."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from bridge.protocol.errors import INVALID_REQUEST, NOT_FOUND, TOO_LARGE, BridgeError, not_found
from bridge.protocol.values import encode_value
from bridge.wallclock import unix_now
from bridge.worker import arguments
from bridge.worker.arguments import invalid, shown
from bridge.worker.call import Call
from orchestrator.errors import DspoolError, StorageError
from orchestrator.services.link import Link
from orchestrator.services.programs import configured, deployment, loading
from orchestrator.services.programs.deployment import LIVE, Deployment
from orchestrator.services.programs.diff import diff
from orchestrator.services.programs.turns import Turns
from orchestrator.services.store import ProgramRow, Store, VersionDraft, VersionRow, VersionSummary

log = logging.getLogger("bridge.services")

Operation = Callable[[Any, Call], Any]

# Of a message that tells of a program: the rest is room for names and aliases.
_FILLED: Final = 0.9
# How many programs are read at once for the coordinator: each may have states of megabytes.
_PAGE: Final = 32
# Of a version.
_SENT: Final = ("name", "sha256", "pool", "target", "state", "config", "source", "source_sha256")


class Programs:
    """Deploys versions, moves aliases, tells what there is. Thread-safe.

    keeper: returns the store, or raises StorageError. configured: the programs of the configuration, by name.
    """

    def __init__(
        self, keeper: Callable[[], Store], link: Link, configured: Mapping[str, Mapping[str, Any]], *,
        allow_pickled: bool = False,
    ) -> None:  # fmt: skip
        self._store = keeper
        self._link = link
        self._configured = configured
        self._allow_pickled = allow_pickled
        self._turns = Turns()
        self._closing = threading.Event()

    def operations(self) -> dict[str, Operation]:
        """Return what can be asked, by name."""
        known: dict[str, Operation] = {
            "programs.deploy": self._deploy, "programs.list": self._list, "programs.versions": self._versions,
            "programs.version": self._version, "programs.diff": self._diff, "programs.alias": self._alias,
            "programs.unalias": self._unalias, "programs.rollback": self._rollback,
            "programs.undeploy": self._undeploy,
        }  # fmt: skip
        return {name: functools.partial(_run, operation) for name, operation in known.items()}

    def sync(self, store: Store) -> None:
        """Tell the coordinator of every program in a store that was just opened, and that these are all."""
        names = [program.name for program in store.programs.list()]
        for page in (names[at : at + _PAGE] for at in range(0, len(names), _PAGE)):
            for program, rows in store.programs.served(*page):
                self._set(program.name, [(row.version, row) for row in rows], _named_by(program))
        self._link.programs_synced(names)

    def start(self) -> None:
        """Deploy what is new in the configuration since it was deployed. Blocks; tells what could not be done."""
        configured.deploy(self._configured, self._link, self._deploy_configured, self._closing)

    def close(self) -> None:
        """Begin nothing more."""
        self._closing.set()

    # --- deploying --------------------------------------------------------------------------------

    def _deploy(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `programs.deploy {name, target, pool, state, config, alias, warm, note}`.

        Returns {name, version, sha256, pool, alias, created, previous}: created is false where what the alias names has
        this very content; previous is what it named before.
        """
        wanted = deployment.read(args, self._link.pools, allow_pickled=self._allow_pickled)
        with self._turns.of(wanted.name, call):
            loaded = loading.load(self._link.client, wanted.spec, call.remaining_s())
            return self._keep(wanted, _draft(wanted, loaded, call.principal), call)

    def _deploy_configured(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Deploy as nobody's call, in the name of the configuration, unless this has been deployed since it last was.

        What others have let `live` name after that stays.
        """
        wanted = deployment.read(dict(args), self._link.pools, allow_pickled=self._allow_pickled)
        with self._turns.of(wanted.name, None):
            draft = _draft(wanted, loading.load(self._link.own, wanted.spec, None), configured.PRINCIPAL)
            known = self._store().programs.known(draft)
            if known is not None:
                return {"version": known, "created": False}
            return self._keep(wanted, draft, None)

    def _keep(self, wanted: Deployment, draft: VersionDraft, call: Call | None) -> dict[str, Any]:
        """Commit a version that a worker has loaded, have its alias name it, and tell the coordinator."""
        store = self._store()
        self._check_size(store, draft)
        number = self._warm(store, draft, wanted.alias, call) if wanted.warm else None
        check = None if call is None else call.check
        added = store.programs.add_version(draft, wanted.alias, number, check=check)
        self._tell(store, wanted.name)
        row = added.row
        return {
            "name": row.name, "version": row.version, "sha256": row.sha256, "pool": row.pool, "alias": wanted.alias,
            "created": added.created, "previous": added.previous,
        }  # fmt: skip

    def _warm(self, store: Store, draft: VersionDraft, alias: str, call: Call | None) -> int | None:
        """Have every ready worker of its pool load a version before a name leads to it; return its number.

        None: it has one, for the alias names this content already. If a worker cannot load it nothing has changed.
        """
        now = self._named(store, draft.name, alias)
        client = self._link.client if call is not None else self._link.own
        remaining_s = None if call is None else call.remaining_s()
        if now is not None and now.content == draft.content:
            loading.warm(client, draft.name, now.version, draft.pool, remaining_s)
            return None
        number = store.programs.take_number(draft.name)
        try:
            self._tell(store, draft.name, pending=(number, draft))
            loading.warm(client, draft.name, number, draft.pool, remaining_s)
        except BaseException:
            self._tell(store, draft.name)
            raise
        return number

    def _named(self, store: Store, name: str, alias: str) -> VersionRow | None:
        program = store.programs.program(name)
        row = None if program is None else program.aliases.get(alias)
        return None if row is None else store.programs.version(name, row.version)

    def _check_size(self, store: Store, draft: VersionDraft, number: int = 0) -> None:
        """Raise BridgeError(TOO_LARGE) if the coordinator could not be told of what is to be served beside the rest.

        number: of a version that is kept already.
        """
        size = len(_payload(draft, number))
        for _, rows in store.programs.served(draft.name):
            size += sum(len(_payload(row, row.version)) for row in rows if row.version != number)
        limit = int(self._link.own.connection.message_bytes * _FILLED)
        if size > limit:
            text = (
                f"{draft.name}: the versions that aliases name would have {size:,} bytes together, the limit is "
                f"{limit:,}: remove an alias, or raise limits.message_bytes"
            )
            raise BridgeError(TOO_LARGE, text, details={"bytes": size, "limit_bytes": limit})

    def _tell(self, store: Store, name: str, *, pending: tuple[int, VersionDraft] | None = None) -> None:
        """Tell the coordinator what a program is now. pending: a version beside, that no name leads to yet."""
        aliases: dict[str, int] = {}
        versions: list[tuple[int, VersionDraft]] = [] if pending is None else [pending]
        for program, rows in store.programs.served(name):
            versions += [(row.version, row) for row in rows]
            aliases = _named_by(program)
        self._set(name, versions, aliases)

    def _set(self, name: str, versions: Sequence[tuple[int, VersionDraft]], aliases: Mapping[str, int]) -> None:
        told = [{"version": number, "pool": row.pool, "payload": _payload(row, number)} for number, row in versions]
        self._link.set_program(name, told, aliases)

    # --- aliases ------------------------------------------------------------------------------------

    def _alias(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `programs.alias {name, alias, version}`; version: a number, or another alias.

        Returns {name, alias, version, previous}.
        """
        given = arguments.read(args, "programs.alias", required=("name", "alias", "version"))
        name, alias = _name(given), deployment.alias_name(given["alias"])
        with self._turns.of(name, call):
            store = self._store()
            number = _number(self._program(store, name), given["version"], "version")
            return self._move(store, name, alias, number, call)

    def _rollback(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `programs.rollback {name, version}`: have `live` name an earlier version; None = the one before.

        Returns {name, alias, version, previous}.
        """
        given = arguments.read(args, "programs.rollback", required=("name",), optional=("version",))
        name = _name(given)
        with self._turns.of(name, call):
            store = self._store()
            program = self._program(store, name)
            wanted = given.get("version")
            if wanted is None:
                live = program.aliases.get(LIVE)
                wanted = None if live is None else live.previous
                if wanted is None:
                    text = f"{name}: no version was live before; say which one is to be"
                    raise BridgeError(NOT_FOUND, text, details={"suggestions": []})
            return self._move(store, name, LIVE, _number(program, wanted, "version"), call)

    def _move(self, store: Store, name: str, alias: str, number: int, call: Call) -> dict[str, Any]:
        row = store.programs.version(name, number)
        if row is None:
            known = [one.version for one in store.programs.versions(name)]
            raise _no_version(name, number, known)
        self._check_size(store, row, number)
        previous = store.programs.set_alias(name, alias, number, by=call.principal, at=unix_now(), check=call.check)
        self._tell(store, name)
        return {"name": name, "alias": alias, "version": number, "previous": previous}

    def _unalias(self, args: Any, call: Call) -> bool:
        """Operation `programs.unalias {name, alias}`. `live` stays: to have nothing called, undeploy."""
        given = arguments.read(args, "programs.unalias", required=("name", "alias"))
        name, alias = _name(given), deployment.alias_name(given["alias"])
        if alias == LIVE:
            raise invalid("alias", f"alias: {LIVE} is what {name} means by its name alone; undeploy removes a program")
        with self._turns.of(name, call):
            store = self._store()
            program = self._program(store, name)
            if alias not in program.aliases:
                raise not_found("alias", alias, program.aliases)
            store.programs.remove_alias(name, alias, check=call.check)
            self._tell(store, name)
        return True

    def _undeploy(self, args: Any, call: Call) -> bool:
        """Operation `programs.undeploy {name}`: forget it with all its versions. What runs of it ends as it would."""
        name = _name(arguments.read(args, "programs.undeploy", required=("name",)))
        with self._turns.of(name, call):
            store = self._store()
            self._program(store, name)
            store.programs.remove(name, check=call.check)
            self._tell(store, name)
        return True

    # --- looking ------------------------------------------------------------------------------------

    def _list(self, args: Any, call: Call) -> list[dict[str, Any]]:
        """Operation `programs.list {}`: a row for each program, as its live version is, else the newest one."""
        arguments.read(args, "programs.list")
        store = self._store()
        return [
            {**_summary(one), "aliases": dict(sorted(_named_by(program).items())), "versions": program.versions}
            for program, one in store.programs.summaries(LIVE)
        ]

    def _versions(self, args: Any, call: Call) -> list[dict[str, Any]]:
        """Operation `programs.versions {name}`: a row for each version, the oldest first, with its aliases."""
        name = _name(arguments.read(args, "programs.versions", required=("name",)))
        store = self._store()
        program = self._program(store, name)
        return [{**_summary(one), "aliases": _aliases(program, one.version)} for one in store.programs.versions(name)]

    def _version(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `programs.version {name, version}`: the whole of it, with its state; version: number or alias."""
        given = arguments.read(args, "programs.version", required=("name",), optional=("version",))
        name = _name(given)
        store = self._store()
        program = self._program(store, name)
        row = self._whole(store, program, given.get("version") or LIVE, "version")
        told = {key: getattr(row, key) for key in VersionSummary._fields}
        return {**_plain(told), "state": row.state, "aliases": _aliases(program, row.version)}

    def _diff(self, args: Any, call: Call) -> dict[str, Any]:
        """Operation `programs.diff {name, a, b}`; see `diff.diff`."""
        given = arguments.read(args, "programs.diff", required=("name", "a", "b"))
        name = _name(given)
        store = self._store()
        program = self._program(store, name)
        return diff(*(self._whole(store, program, given[key], key) for key in ("a", "b")))

    def _whole(self, store: Store, program: ProgramRow, version: Any, path: str) -> VersionRow:
        number = _number(program, version, path)
        row = store.programs.version(program.name, number)
        if row is None:
            raise _no_version(program.name, number, [one.version for one in store.programs.versions(program.name)])
        return row

    def _program(self, store: Store, name: str) -> ProgramRow:
        program = store.programs.program(name)
        if program is None:
            raise not_found("program", name, [one.name for one in store.programs.list()])
        return program


def _draft(wanted: Deployment, loaded: Mapping[str, Any], by: str) -> VersionDraft:
    """Return what is to be kept of a program that a worker has loaded."""
    return VersionDraft(
        name=wanted.name, sha256=str(loaded["sha256"]), pool=wanted.pool, target=wanted.target, state=loaded["state"],
        config=wanted.config, inputs=tuple(loaded["inputs"]), outputs=tuple(loaded["outputs"]),
        signature=loaded["signature"] or "", deployed_by=by, deployed_at=unix_now(), note=wanted.note,
        source=loaded["source"], source_sha256=loaded["source_sha256"], predictors=loaded.get("predictors"),
    )  # fmt: skip


def _payload(row: VersionDraft, number: int) -> bytes:
    """Return what workers are sent of a version."""
    return encode_value({"version": number, **{key: getattr(row, key) for key in _SENT}})


def _run(operation: Operation, args: Any, call: Call) -> Any:
    with _travelling():
        return operation(args, call)


@contextmanager
def _travelling() -> Iterator[None]:
    """Raise what the client or the store raised as an error that travels as it is."""
    try:
        yield
    except StorageError:
        raise
    except DspoolError as exc:
        details = {key: value for key, value in exc.details.items() if key != "nested"}
        raise BridgeError(exc.code, exc.message, retryable=exc.retryable, details=details) from exc


def _name(given: Mapping[str, Any]) -> str:
    name = given["name"]
    if not isinstance(name, str) or not name:
        raise invalid("name", f"name: {shown(name)} is no program name")
    return name


def _number(program: ProgramRow, version: Any, path: str) -> int:
    """Return the number of a version that is named by it, or by an alias."""
    if isinstance(version, str):
        row = program.aliases.get(version)
        if row is None:
            raise not_found("alias", version, program.aliases)
        return row.version
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise BridgeError(
            INVALID_REQUEST, f"{path}: {shown(version)} is neither a version's number nor an alias",
            details={"path": path},
        )  # fmt: skip
    return version


def _no_version(name: str, number: int, known: Sequence[int]) -> BridgeError:
    kept = "none" if not known else f"{known[0]} to {known[-1]}" if len(known) > 1 else f"{known[0]} alone"
    return BridgeError(NOT_FOUND, f"{name} has no version {number} (it has {kept})", details={"suggestions": []})


def _named_by(program: ProgramRow) -> dict[str, int]:
    return {alias: row.version for alias, row in program.aliases.items()}


def _aliases(program: ProgramRow, version: int) -> list[str]:
    return sorted(alias for alias, row in program.aliases.items() if row.version == version)


def _summary(one: VersionSummary) -> dict[str, Any]:
    return _plain(one._asdict())


def _plain(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as users see it: without a signature it has none, and lists are lists."""
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()}
    return {**listed, "signature": listed["signature"] or None}
