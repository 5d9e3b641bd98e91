"""A PostgreSQL server of the tests' own: private folder, one socket, no network; gone with the context that made it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.waiting import wait_until

_START_S: Final = 30.0
_STOP_S: Final = 10.0
# A server refuses to be run by root.
_USERS: Final = ("postgres", "nobody")
_SOCKET: Final = ".s.PGSQL.5432"
_END_OTHERS: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
)
_WANTED: Final = "apt install postgresql, or put initdb and postgres on the PATH"


def binaries() -> Path | None:
    """Return the folder of `initdb` and `postgres`: of Debian's package, the newest, else of the PATH."""
    versions = Path("/usr/lib/postgresql").glob("[0-9]*/bin/initdb")
    found = sorted(versions, key=lambda path: float(path.parts[-3]), reverse=True)
    on_path = shutil.which("initdb")
    every = [*found, *([Path(on_path).resolve()] if on_path else [])]
    return next((path.parent for path in every if (path.parent / "postgres").exists()), None)


@dataclass
class Server:
    """A running server. It does not sync: what is killed in tests are its clients."""

    folder: Path
    bin: Path
    identity: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its database, as `store.url` takes it."""
        return self._plain_url.replace("://", "+psycopg://")

    @property
    def _plain_url(self) -> str:
        return f"postgresql://dspool@/postgres?host={self.folder}"

    def emptied(self) -> str:
        """Remove the store that is there, whoever uses it; return the address for a new one."""
        self.execute(_END_OTHERS)
        self.execute("DROP SCHEMA IF EXISTS dspool CASCADE")
        return self.url

    def cut(self) -> None:
        """End all connections, and let nobody connect until `mend`."""
        socket = self.folder / _SOCKET
        self.execute(_END_OTHERS)
        socket.rename(socket.with_suffix(".cut"))

    def mend(self) -> None:
        """Let clients connect again."""
        socket = self.folder / _SOCKET
        socket.with_suffix(".cut").rename(socket)

    def execute(self, statement: str) -> None:
        """Execute a statement as the server's owner."""
        import psycopg

        with psycopg.connect(self._plain_url, autocommit=True) as connection:
            connection.execute(statement)

    def start(self) -> None:
        """Start it; returns when it answers."""
        log = (self.folder / "log").open("ab")
        options = ["listen_addresses=", f"unix_socket_directories={self.folder}", "dynamic_shared_memory_type=mmap"]
        options += ["shared_buffers=16MB", "max_connections=40", "fsync=off"]
        command = [str(self.bin / "postgres"), "-D", str(self.folder / "data"), *(f"--{one}" for one in options)]
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self.identity)
        wait_until(self._answers, _START_S, f"PostgreSQL answers; its log: {self.folder / 'log'}")

    def _answers(self) -> bool:
        import psycopg

        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            psycopg.connect(self._plain_url).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stop it at once, whoever is connected."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(_STOP_S)
            finally:
                self.process.kill()
                self.process.wait()
                self.process = None


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Run a server. Skips the test, saying what to do, where there is none, or no user that could run it."""
    pytest.importorskip("psycopg", reason="no psycopg: pip install 'dspool[postgres]'")
    folder_of_binaries = binaries()
    if folder_of_binaries is None:
        pytest.skip(f"no PostgreSQL server is installed: {_WANTED}")
    identity = _identity()
    # Beside the folders of the tests: these belong to root alone where root runs them.
    folder = Path(tempfile.mkdtemp(prefix="dspg", dir="/tmp"))
    try:
        if identity:
            os.chown(folder, identity["user"], identity["group"])
        command = [str(folder_of_binaries / "initdb"), "-D", str(folder / "data"), "-U", "dspool", "-A", "trust", "-N"]
        done = subprocess.run(
            [*command, "-E", "UTF8", "--locale=C"], capture_output=True, text=True, cwd="/", timeout=60, **identity
        )
        assert done.returncode == 0, done.stderr
        server = Server(folder, folder_of_binaries, identity)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _identity() -> dict[str, Any]:
    """Return as whom to run it, for `subprocess`: as ourselves, or as another user where we are root."""
    if os.getuid() != 0:
        return {}
    for name in _USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip(f"PostgreSQL cannot be run by root, and there is no user named {' or '.join(_USERS)}")
