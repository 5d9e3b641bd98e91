"""The pool of the services process: the control plane, which the coordinator keeps for itself.

Its one worker is a fresh interpreter without DSPy: it holds the store, programs and what sessions and events leave
there, and waits for most of what it does (a disk, a worker that loads a program). What it does is either done or not
when it dies, so it is started again at once, and asked again.
"""

from __future__ import annotations

from typing import Final

from pools.config import PoolConfig, RestartConfig

NAME: Final = "services"

SERVICES: Final = PoolConfig(
    name=NAME,
    internal=True,
    size=1,
    slots=16,
    prefetch=0,
    launcher="spawn",
    default_deadline_s=120.0,
    heartbeat_limit_s=30.0,
    # Whoever kills it again and again finds it back within these seconds of the last time.
    restart=RestartConfig(backoff_s=(0.1, 2.0)),
    breaker=None,
)

# What everybody may ask for, by its name alone.
OPERATIONS: Final = frozenset(
    {
        "programs.deploy", "programs.list", "programs.versions", "programs.version", "programs.diff", "programs.alias",
        "programs.unalias", "programs.rollback", "programs.undeploy", "events.read", "store.info",
    }
)  # fmt: skip
# What the coordinator alone asks for.
INNER: Final = frozenset({"sessions.save", "events.save"})
# Accepted with `faults: true` alone.
FAULTS: Final = frozenset({"services.burn"})
