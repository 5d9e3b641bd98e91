"""What a worker is given at its birth, and what is taken back after its death: token, page, environment."""

from __future__ import annotations

import hmac
import mmap
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from bridge.protocol.messages import Hello
from bridge.protocol.worker_spec import WorkerSpec, encode_spec
from orchestrator.config import Settings
from pools.core.entries import SLOT_WORDS
from pools.core.events import Launch
from pools.launch.launcher import LaunchSpec

_PAGE_BYTES: Final = SLOT_WORDS * 8
_SECRET_CHARS: Final = 8

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


class Page:
    """A started-slots page: memory shared with one worker, read here, written there."""

    def __init__(self, worker_id: str) -> None:
        self.fd = os.memfd_create(f"slots-{worker_id}", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _PAGE_BYTES)
        self._map = mmap.mmap(self.fd, _PAGE_BYTES)
        self.words: Sequence[int] = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Give the memory back. The words must not be read any more."""
        assert isinstance(self.words, memoryview)
        self.words.release()
        self.words = ()
        self._map.close()
        os.close(self.fd)


class Births:
    """Makes launch specifications; knows which worker may say Hello with which token."""

    def __init__(self, settings: Settings, *, run_id: str, endpoint: str) -> None:
        self._settings = settings
        self._run_id = run_id
        self._endpoint = endpoint
        self._tokens: dict[str, bytes] = {}
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
        token = self._tokens[launch.worker_id] = secrets.token_bytes(32)
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
            python_path=list(settings.python_path),
            faults=settings.faults,
            log_level=settings.log_level,
            cache_dir=str(settings.data_dir / "dspy-cache"),
        )
        return LaunchSpec(
            worker_id=launch.worker_id,
            python=pool.python or sys.executable,
            worker_spec=encode_spec(spec),
            slots_fd=self._pages[launch.worker_id].fd,
            env=environment(settings, pool.env, os.environ),
        )

    def admits(self, hello: Hello) -> bool:
        """Return whether this Hello comes from the worker it names; a token works once."""
        token = self._tokens.get(hello.worker_id)
        if token is None or not hmac.compare_digest(token, hello.token):
            return False
        del self._tokens[hello.worker_id]
        return True

    def bury(self, worker_id: str) -> None:
        """Give back what a dead worker had."""
        self._tokens.pop(worker_id, None)
        page = self._pages.pop(worker_id, None)
        if page is not None:
            page.close()

    def close(self) -> None:
        """Give everything back."""
        for worker_id in list(self._pages):
            self.bury(worker_id)


def environment(settings: Settings, pool_env: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment: the coordinator's, without dspool's own settings and the language models' keys.

    A key reaches a worker in its memory file alone: generated code and child processes inherit the environment.
    """
    keys = [lm.api_key.get_secret_value() for lm in settings.lms.values() if lm.api_key is not None]
    env = {
        name: value
        for name, value in environ.items()
        if not name.startswith("DSPOOL_") and not any(_is_part(value, key) for key in keys)
    }
    env.update(THREAD_CAPS)
    env.update(pool_env)
    return env


def _is_part(value: str, key: str) -> bool:
    """Whether a variable is a key or what a key was made from (`Bearer ${TOKEN}`); short words are in anything."""
    return bool(value) and (value == key or (len(value) >= _SECRET_CHARS and value in key))
