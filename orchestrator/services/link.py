"""How the services process talks to its coordinator: as a client, known as its worker's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from orchestrator.client.client import Client
from orchestrator.client.nested import SharedConnection, connect_nested

PRINCIPAL: Final = "services"
# A coordinator that does not answer its own process within that hangs, and this process will be ended with it.
_LIMIT_S: Final = 30.0


class OwnClient(Client):
    """A client that is known as this worker's, and whose calls are nested in nothing."""

    def __init__(self, endpoint: str) -> None:
        self.connection = SharedConnection(endpoint, principal=PRINCIPAL)


class Link:
    """The line to the coordinator. Thread-safe.

    client: what it is asked for inside an operation is nested in that, in the name of its caller; elsewhere it is a
    plain client. own: what it is asked for is nested in nothing and ends with nobody: for what must happen whatever
    becomes of the caller. pools: the names of the pools that users know.

    All methods raise DspoolError: Unauthenticated where this process is not to live any more.
    """

    def __init__(self, endpoint: str, pools: Sequence[str]) -> None:
        self.client = connect_nested(Client, endpoint, PRINCIPAL)
        self.own = OwnClient(endpoint)
        self.pools = list(pools)

    def set_program(self, name: str, versions: Iterable[Mapping[str, Any]], aliases: Mapping[str, int]) -> None:
        """Say what a program is from now on.

        versions: of those that an alias names, {version, pool, payload}: what workers are sent of it. None: it is gone.
        """
        told = {"name": name, "versions": [dict(one) for one in versions], "aliases": dict(aliases)}
        self._tell("dspool.program_set", told)

    def programs_synced(self, names: Iterable[str]) -> None:
        """Say that all programs have been told, and their names: any other is gone."""
        self._tell("dspool.program_sync", {"names": list(names)})

    def restore_sessions(self, rows: Sequence[Mapping[str, Any]], *, last: bool) -> bool:
        """Hand over sessions of the store. last: these are the last ones. Return False if no more are wanted."""
        return bool(self._tell("dspool.session_restore", {"rows": [dict(row) for row in rows], "last": last}))

    def known_store(self) -> str:
        """Return the identity of the store that this run of the coordinator has, "" = none was opened yet."""
        return str(self._tell("dspool.store_known", {}))

    def store_opened(self, identity: str, last_run: int) -> None:
        """Say which store this run has from now on, and the latest run that has left events or sessions there."""
        self._tell("dspool.store_opened", {"identity": identity, "last_run": last_run})

    def report_store(self, store: Mapping[str, Any] | None, problem: str) -> None:
        """Say which store is open, None = none is, and what is wrong with it, "" = nothing."""
        self._tell("dspool.store_state", {"store": None if store is None else dict(store), "problem": problem})

    def programs_to_deploy(self) -> list[str]:
        """Return the programs of the configuration that this run has not been told of, or that they are left."""
        return [str(name) for name in self._tell("dspool.programs_to_deploy", {})]

    def report_program(self, name: str, problem: str, *, left: bool) -> None:
        """Say why a program of the configuration could not be deployed, "" = it was. left: it will be tried again."""
        self._tell("dspool.program_configured", {"name": name, "problem": problem, "left": left})

    def close(self) -> None:
        """Ask for nothing more."""
        self.client.close()
        self.own.close()

    def _tell(self, operation: str, args: Mapping[str, Any]) -> Any:
        return self.own.execute(operation, dict(args), deadline_s=_LIMIT_S)
