"""The launcher that forks workers from processes which have imported what they need: zygotes.

The nanny starts one root zygote, a fresh interpreter; it imports DSPy and forks a zygote for each pool with modules to
preload, and the workers of the others. All of them are the nanny's children: a zygote that dies takes nobody along.
Zygotes are processes like workers here, under ids of their own; nobody outside sees an event of theirs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pools.core.events import ExitReason, Signalled
from pools.launch.command import PACKAGES_ROOT, ChildFds, Command, forked_command, worker_command, zygote_command
from pools.launch.launcher import Died, Launched, LauncherEvent, LaunchFailed, LaunchSpec, Reaped, ZygoteSpec
from pools.launch.output import LogLimits
from pools.launch.spawn import SpawnLauncher, _Worker

ROOT: Final = "zygote"
PRELOAD_LIMIT_S: Final = 120.0
# At most so many orders lie in a zygote's socket: the nanny would have to refuse what has no room there.
_UNDER_WAY: Final = 32
# One that dies younger than this is replaced when it is needed, not at once: its successor may do the same.
_GROWN_UP_S: Final = 10.0
# So many zygotes may be killed, before they are ready, while one birth waits; the next one's end fails it.
_KILLED_AT_MOST: Final = 2
_TAIL_LINES: Final = 20
_ROOT_ONLY: Final = ZygoteSpec(ROOT)


@dataclass(slots=True)
class _Birth:
    """A process that a zygote is to fork: a worker, or another zygote."""

    spec: LaunchSpec
    lost: bool = False  # a zygote died over it
    killed: int = 0  # zygotes that a signal ended, before they were ready, while it waited for them
    wanted_signals: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Zygote:
    """A zygote from the first wish for it to its burial."""

    spec: LaunchSpec
    wanted: ZygoteSpec
    ready_at: float | None = None
    error: str = ""
    waiting: deque[_Birth] = field(default_factory=deque)
    under_way: dict[str, _Birth] = field(default_factory=dict)
    unborn: list[str] = field(default_factory=list)
    bereaved: bool = False  # it died with its nanny

    @property
    def zygote_id(self) -> str:
        return self.spec.worker_id


class ZygoteLauncher(SpawnLauncher):
    """Implements `Launcher`. What has no `zygote` in its spec, or another interpreter, is spawned.

    A preload that fails, hangs or starts a thread fails the launches that wait for it, with the reason; the next
    launch tries again. A launch over which a zygote dies is tried once more; one that waits for a zygote which is
    killed, alone or with its nanny, waits for its successor, and that one's.
    """

    def __init__(
        self,
        run_id: str,
        *,
        env: Mapping[str, str],
        python_path: Sequence[str] = (),
        root: Path = PACKAGES_ROOT,
        limits: LogLimits | None = None,
        command: Command | None = None,
        forked: Command | None = None,
        zygote: Command | None = None,
        preload_limit_s: float = PRELOAD_LIMIT_S,
        folder: str = "",
    ) -> None:
        """Start a nanny. Raises OSError.

        env: the root zygote's. python_path: first on sys.path while zygotes import. command, forked, zygote: other
        children. preload_limit_s: from a zygote's start to its being ready. folder: see SpawnLauncher.
        """
        super().__init__(
            run_id, root=root, limits=limits, command=command or worker_command(run_id, root), folder=folder
        )
        self._env = env
        self._python_path = list(python_path)
        self._forked_command = forked or forked_command(run_id)
        self._zygote_command = zygote or zygote_command(run_id, root)
        self._preload_limit_s = preload_limit_s
        self._zygotes: dict[str, _Zygote] = {}
        self._astray: dict[str, _Birth] = {}  # ordered of a zygote that was dead
        self._no_slots_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    # --- the protocol -------------------------------------------------------------------------

    def launch(self, spec: LaunchSpec) -> None:
        """Begin to start a worker; `poll` tells the outcome. Raises ValueError if that worker is alive."""
        if spec.zygote is None or spec.python != sys.executable:
            super().launch(spec)
            return
        if spec.worker_id in self._workers or self._find_waiting(spec.worker_id):
            raise ValueError(f"worker {spec.worker_id} is alive")
        self._ask(self._zygote_of(spec.zygote, spec.env), _Birth(spec))

    def kill(self, worker_id: str, signal_number: int = signal.SIGKILL) -> None:
        """Signal a worker; one that is being launched gets it once it exists. Unknown or dead ids are ignored."""
        found = self._find_waiting(worker_id)
        if found is None:
            super().kill(worker_id, signal_number)
        elif signal_number == signal.SIGKILL:
            # It would live for nothing else, and its zygote may take minutes.
            found[0].waiting.remove(found[1])
            self._tell(Died(worker_id), Reaped(worker_id, Signalled(int(signal.SIGKILL)), 0))
        else:
            found[1].wanted_signals.append(signal_number)

    def poll(self) -> list[LauncherEvent]:
        """Return what happened since the last call, oldest first, draining the workers' output on the way."""
        public: list[LauncherEvent] = []
        events = super().poll()
        while events:
            public += [event for event in events if not self._handled(event)]
            events, self._events = self._events, []
        return public

    def close(self) -> None:
        """Kill and reap every worker, the zygotes and the nanny. Raises TimeoutError if something survives 5 s."""
        if self._no_slots_fd >= 0:
            os.close(self._no_slots_fd)
            self._no_slots_fd = -1
        self._zygotes.clear()
        super().close()

    # --- births ---------------------------------------------------------------------------------

    def _zygote_of(self, wanted: ZygoteSpec, env: Mapping[str, str]) -> _Zygote:
        """Return the zygote that forks such workers, on its way at least."""
        root = self._zygotes.get(ROOT) or self._begin_root()
        if not wanted.preload:
            return root
        zygote_id = f"{ROOT}/{wanted.name}"
        if zygote_id in self._zygotes:
            return self._zygotes[zygote_id]
        spec = LaunchSpec(zygote_id, sys.executable, self._order_of(wanted.preload), self._no_slots_fd, env)
        zygote = self._zygotes[zygote_id] = _Zygote(spec, wanted)
        self._ask(root, _Birth(spec))
        return zygote

    def _begin_root(self) -> _Zygote:
        spec = LaunchSpec(ROOT, sys.executable, self._order_of(()), self._no_slots_fd, self._env)
        zygote = self._zygotes[ROOT] = _Zygote(spec, _ROOT_ONLY)
        message = {"launch": ROOT, "zygote": self._preload_limit_s}
        self._begin(spec, message, self._zygote_command(spec, ChildFds()))
        return zygote

    def _order_of(self, preload: tuple[str, ...]) -> bytes:
        return json.dumps({"preload": preload, "python_path": self._python_path}).encode()

    def _ask(self, zygote: _Zygote, birth: _Birth) -> None:
        zygote.waiting.append(birth)
        self._pump(zygote)

    def _pump(self, zygote: _Zygote) -> None:
        """Have a zygote fork what waits for it, as far as it can take orders."""
        while zygote.ready_at is not None and zygote.waiting and len(zygote.under_way) < _UNDER_WAY:
            birth = zygote.waiting.popleft()
            worker_id = birth.spec.worker_id
            zygote.under_way[worker_id] = birth
            message: dict[str, Any] = {"launch": worker_id, "by": zygote.zygote_id}
            if worker_id in self._zygotes:
                message["zygote"], words = self._preload_limit_s, []
            else:
                words = self._forked_command(birth.spec, ChildFds())
            self._begin(birth.spec, message, words)
            for number in birth.wanted_signals:
                super().kill(worker_id, number)

    def _find_waiting(self, worker_id: str) -> tuple[_Zygote, _Birth] | None:
        for zygote in self._zygotes.values():
            for birth in zygote.waiting:
                if birth.spec.worker_id == worker_id:
                    return zygote, birth
        return None

    # --- what the nanny says --------------------------------------------------------------------

    def _heed(self, message: Mapping[str, Any], fds: list[int]) -> None:
        match message:
            case {"ready": str(zygote_id)}:
                self._zygotes[zygote_id].ready_at = time.monotonic()
                self._pump(self._zygotes[zygote_id])
                return
            case {"broken": str(zygote_id), "error": str(error)}:
                self._zygotes[zygote_id].error = error
                return
            case {"astray": str(worker_id)}:
                self._went_astray(worker_id)
                return
            case {"reaped": str(zygote_id), "unborn": list(unborn), "why": str(why)}:
                zygote = self._zygotes[zygote_id]
                zygote.unborn, zygote.error = unborn, zygote.error or why
        super()._heed(message, fds)

    def _bury(self, worker: _Worker) -> None:
        """Reap what died with its nanny. A zygote that noticed her death first has left by itself."""
        if zygote := self._zygotes.get(worker.worker_id):
            zygote.bereaved = True
        super()._bury(worker)

    def _went_astray(self, worker_id: str) -> None:
        if birth := self._astray.pop(worker_id, None):
            self._try_again(birth)
            return
        for zygote in self._zygotes.values():
            if worker_id in zygote.under_way:
                zygote.unborn.append(worker_id)  # its end has been told, and is handled next

    def _handled(self, event: LauncherEvent) -> bool:
        """Look at an event; return whether it is nobody's business outside."""
        match event:
            case Launched(worker_id) | LaunchFailed(worker_id):
                self._astray.pop(worker_id, None)
                for zygote in list(self._zygotes.values()):
                    if zygote.under_way.pop(worker_id, None):
                        self._pump(zygote)
        if not isinstance(event, Launched | LaunchFailed | Died | Reaped) or event.worker_id not in self._zygotes:
            return False
        match event:
            case LaunchFailed(zygote_id, error):
                self._zygotes[zygote_id].error = error
                self._zygote_ended(zygote_id, None)
            case Reaped(zygote_id, reason):
                self._zygote_ended(zygote_id, reason)
        return True

    def _zygote_ended(self, zygote_id: str, reason: ExitReason | None) -> None:
        """See to those that it was to fork. reason: None if it never came to be."""
        zygote = self._zygotes.pop(zygote_id)
        unborn = [birth for worker_id in zygote.unborn if (birth := zygote.under_way.pop(worker_id, None))]
        self._astray |= zygote.under_way  # ordered when the nanny had buried it already: it will say so
        if zygote.ready_at is None:
            self._never_ready(zygote, reason)
            return
        for birth in zygote.waiting:
            self._ask(self._parent_of(birth), birth)
        for birth in unborn:
            self._try_again(birth)
        if time.monotonic() - zygote.ready_at > _GROWN_UP_S:
            self._zygote_of(zygote.wanted, zygote.spec.env)

    def _never_ready(self, zygote: _Zygote, reason: ExitReason | None) -> None:
        """Fail what waited for a zygote, unless somebody may have killed it: it told of no error, nor was it late."""
        error = self._why_not_ready(zygote, str(reason or ""))
        was_killed = (isinstance(reason, Signalled) or zygote.bereaved) and not zygote.error
        for birth in zygote.waiting:
            birth.killed += was_killed
            if was_killed and birth.killed <= _KILLED_AT_MOST:
                self._ask(self._parent_of(birth), birth)
            else:
                self._fail(birth.spec.worker_id, error)

    def _try_again(self, birth: _Birth) -> None:
        """A zygote has ended over this birth: once is no reason to give up."""
        worker_id = birth.spec.worker_id
        if birth.lost:
            self._fail(worker_id, "two zygotes ended before they had forked it")
            return
        birth.lost = True
        birth.wanted_signals = self._workers[worker_id].wanted_signals
        self._drop(worker_id)
        self._ask(self._parent_of(birth), birth)

    def _parent_of(self, birth: _Birth) -> _Zygote:
        return self._zygote_of(birth.spec.zygote or _ROOT_ONLY, birth.spec.env)

    def _why_not_ready(self, zygote: _Zygote, how: str) -> str:
        preload = zygote.wanted.preload
        what = f"importing {', '.join(preload)} (preload)" if preload else "importing DSPy"
        text = f"{what} failed: {zygote.error or how}"
        if zygote.error and how and not zygote.error.startswith("Traceback"):
            text += f" ({how})"
        tail = self.log_tail(zygote.zygote_id)[-_TAIL_LINES:]
        return "\n".join([text, *tail])
