"""What a worker is given at its birth, and what is taken back after its death: token, page, stacks, environment."""

from __future__ import annotations

import fcntl
import hmac
import mmap
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from bridge.faultpoints import VARIABLE as FAULT_POINTS
from bridge.protocol.errors import UNAUTHENTICATED, BridgeError, shown
from bridge.protocol.messages import Hello
from bridge.protocol.worker_spec import WorkerSpec, encode_spec
from bridge.worker.stacks import STACKS_BYTES, STACKS_OFFSET
from orchestrator.config import Settings
from orchestrator.config.check import SECRET_KEY
from orchestrator.coordinator.internal import orders
from orchestrator.services.orders import BUILDER
from pools.config import PoolConfig
from pools.core.entries import SLOT_WORDS
from pools.core.events import Launch
from pools.launch.launcher import LaunchSpec, ZygoteSpec
from pools.launch.output import clean

_PAGE_BYTES: Final = SLOT_WORDS * 8
_SECRET_CHARS: Final = 8
# Of what a worker has written of its stacks.
STACK_LINES: Final = 200

# Variables that take effect at a process's start, or at the import of what a zygote has imported.
_READ_EARLY: Final = re.compile(r"PYTHON|LD_|LC_|LANG$|LANGUAGE$|MALLOC_|GLIBC_|DSPY_|LITELLM_|.*_NUM_THREADS$")
# One library thread per worker thread that computes: N workers times N cores' worth of pools starve each other.
THREAD_CAPS: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Buffers of megabytes from memory that is at hand: fresh pages for each cost more than all that is done with them.
ALLOCATION: Final = {"MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TOP_PAD_": "16777216"}


class Page:
    """Memory shared with one worker, read here, written there: its started slots, and behind them its stacks.

    Its size is sealed: reading a page that a worker has cut off would be this process's end (SIGBUS).
    """

    def __init__(self, worker_id: str) -> None:
        self.fd = os.memfd_create(f"slots-{worker_id}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, STACKS_OFFSET + STACKS_BYTES)  # what is never written takes no memory
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._map = mmap.mmap(self.fd, _PAGE_BYTES)
        self.words: Sequence[int] = memoryview(self._map).cast("Q")

    def stacks(self) -> tuple[str, ...]:
        """Return the lines that the worker's signal handlers have written, safe to print; at most STACK_LINES."""
        written = os.pread(self.fd, STACKS_BYTES, STACKS_OFFSET).partition(b"\0")[0]
        lines = written.split(b"\n") if written else []
        if lines and not lines[-1]:
            lines.pop()
        if len(lines) > STACK_LINES:
            lines[STACK_LINES - 1 :] = [b"[%d lines more]" % (len(lines) - STACK_LINES + 1)]
        return tuple(map(clean, lines))

    def close(self) -> None:
        """Give the memory back. The words must not be read any more."""
        assert isinstance(self.words, memoryview)
        self.words.release()
        self.words = ()
        self._map.close()
        os.close(self.fd)


class Births:
    """Makes launch specifications; knows which worker may say Hello with which token, and whose clients with which."""

    def __init__(
        self, settings: Settings, *, run_id: str, endpoint: str, client_endpoint: str = "", shared_dir: str = ""
    ) -> None:
        self._settings = settings
        self._shared_dir = shared_dir
        self._run_id = run_id
        self._endpoint = endpoint
        self._client_endpoint = client_endpoint
        self._tokens: dict[str, bytes] = {}
        self._client_tokens: dict[str, str] = {}
        self._pages: dict[str, Page] = {}

    def open_page(self, worker_id: str) -> Sequence[int]:
        """Make the started-slots page of a new worker; return its words, none if there is no room for one."""
        try:
            page = self._pages[worker_id] = Page(worker_id)
        except OSError:
            return ()  # launch_spec says so
        return page.words

    def launch_spec(self, launch: Launch) -> LaunchSpec:
        """Return what the launcher needs for this worker. Raises OSError if it has no started-slots page."""
        settings = self._settings
        if launch.worker_id not in self._pages:
            raise OSError(f"no memory or descriptor for the started-slots page of {launch.worker_id}")
        pool = settings.fleet.pool(launch.pool)
        return LaunchSpec(
            worker_id=launch.worker_id,
            python=pool.python or sys.executable,
            worker_spec=encode_spec(self._worker_spec(launch, pool)),
            slots_fd=self._pages[launch.worker_id].fd,
            env=environment(settings, {**device_of(pool, launch.place), **pool.env}, os.environ),
            zygote=zygote_spec(pool),
        )

    def _worker_spec(self, launch: Launch, pool: PoolConfig) -> WorkerSpec:
        """Return what a worker is told, with new tokens for it and for its clients."""
        settings = self._settings
        token = self._tokens[launch.worker_id] = secrets.token_bytes(32)
        client_token = self._client_tokens[launch.worker_id] = secrets.token_hex(32)
        spec = WorkerSpec(
            endpoint=self._endpoint,
            run_id=self._run_id,
            token=token,
            worker_id=launch.worker_id,
            pool=launch.pool,
            incarnation=launch.incarnation,
            slots=pool.slots,
            heartbeat_interval_s=pool.heartbeat_interval_s,
            message_bytes=settings.limits.message_bytes,
            nesting=settings.limits.nesting,
            lms={name: lm.for_worker() for name, lm in settings.lms.items()},
            embedder=settings.embedder.for_worker(),
            mcp={name: server.for_worker() for name, server in settings.mcp.items()},
            batch={} if pool.batch is None else asdict(pool.batch),
            python_path=list(settings.python_path),
            faults=settings.faults,
            log_level=settings.log_level,
            cache_dir=_cache_dir(settings),
            client_endpoint=self._client_endpoint,
            shared_dir=self._shared_dir,
            client_token=client_token,
            session_bytes=settings.fleet.sessions.max_bytes,
            session_turns=settings.fleet.sessions.history,
            allow_pickled_programs=settings.allow_pickled_programs,
        )
        if pool.internal:
            # None of it is for the coordinator's own process, which runs no code of users and finds none of theirs.
            told = orders(settings).as_plain()
            return replace(spec, builder=BUILDER, services=told, lms={}, embedder={}, mcp={}, python_path=[])
        return spec

    def admits(self, hello: Hello) -> bool:
        """Return whether this Hello comes from the worker it names; a token works once."""
        token = self._tokens.get(hello.worker_id)
        if token is None or not hmac.compare_digest(token, hello.token):
            return False
        del self._tokens[hello.worker_id]
        return True

    def worker_of(self, hello: Hello) -> str:
        """Return the worker whose programs this client serves, "" if it names none. A token works until the burial.

        Raises BridgeError(UNAUTHENTICATED) if it is not that worker's, or of a worker that nobody knows.
        """
        if not hello.worker_id and not hello.token:
            return ""
        token = self._client_tokens.get(hello.worker_id, "")
        if not token or not hmac.compare_digest(token.encode(), hello.token):
            raise BridgeError(
                UNAUTHENTICATED,
                f"this client says that it belongs to worker {shown(hello.worker_id)} and does not have its token, or "
                "that worker has ended: programs call connect() in the worker that runs them; all others say neither",
            )
        return hello.worker_id

    def stacks(self, worker_id: str) -> tuple[str, ...]:
        """Return what a worker, living or dead and not buried, has written of its stacks."""
        page = self._pages.get(worker_id)
        return page.stacks() if page is not None else ()

    def bury(self, worker_id: str) -> None:
        """Give back what a dead worker had."""
        self._tokens.pop(worker_id, None)
        self._client_tokens.pop(worker_id, None)
        page = self._pages.pop(worker_id, None)
        if page is not None:
            page.close()

    def close(self) -> None:
        """Give everything back."""
        for worker_id in list(self._pages):
            self.bury(worker_id)


def device_of(pool: PoolConfig, place: int) -> dict[str, str]:
    """Return the variable that gives a worker its GPU: one each, in turn where there are more workers than GPUs."""
    devices = pool.devices
    return {"CUDA_VISIBLE_DEVICES": devices[(place - 1) % len(devices)]} if devices else {}


def environment(settings: Settings, pool_env: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment: the coordinator's, without dspool's own settings and the language models' keys.

    A key reaches a worker in its memory file alone: generated code and child processes inherit the environment.
    """
    configured = (settings.embedder.api_key, *(lm.api_key for lm in settings.lms.values()))
    keys = [secret.get_secret_value() for secret in configured if secret is not None]
    if settings.store.url is not None and (password := urlsplit(settings.store.url.get_secret_value()).password):
        keys += [password, unquote(password)]
    keys += [key for one in settings.mcp.values() for name, key in one.env.items() if SECRET_KEY.search(name)]
    # The one of ours that stays, the schedule of fault points, is there in a run with faults alone.
    env = {
        name: value
        for name, value in environ.items()
        if (not name.startswith("DSPOOL_") or name == FAULT_POINTS) and not any(_is_part(value, key) for key in keys)
    }
    env = {**ALLOCATION, **env, **THREAD_CAPS}
    env.update(pool_env)
    return env


def zygote_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the root zygote: what every worker has, and what DSPy is to find at its import."""
    return environment(settings, {"DSPY_CACHEDIR": _cache_dir(settings)}, environ)


def zygote_spec(pool: PoolConfig) -> ZygoteSpec | None:
    """Return what the workers of a pool are forked from, or None if they are to be spawned.

    A fork can neither have another interpreter nor another environment than its zygote's where that is read before
    any Python code runs, or when a library is loaded.
    """
    early = any(_READ_EARLY.match(name) for name in pool.env)
    if pool.launcher == "spawn" or pool.python is not None or early:
        return None
    return ZygoteSpec(pool.name, pool.preload)


def _cache_dir(settings: Settings) -> str:
    return str(settings.data_dir / "dspy-cache")


def _is_part(value: str, key: str) -> bool:
    """Whether a variable is a key or what a key was made from (`Bearer ${TOKEN}`); short words are in anything."""
    return bool(value) and (value == key or (len(value) >= _SECRET_CHARS and value in key))
