"""What a pool is told at its birth: frozen values, durations in seconds, checked by whoever made them.

Nothing here reads the environment, a file or the machine; `pools.general`, `pools.optimizer` and `pools.neural` say
what each pool's values are when nobody configures them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

# The most workers that a pool may have.
MAX_SIZE: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartConfig:
    """Restart intensity: at once below `max_restarts` in `window_s`, beyond it after `backoff_s` (first, longest).

    type: permanent = whatever ended a worker, it is started again; transient = not if it left by itself with exit code
    0; temporary = never.
    """

    type: Literal["permanent", "transient", "temporary"] = "permanent"
    max_restarts: int = 20
    window_s: float = 30.0
    backoff_s: tuple[float, float] = (0.1, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """When a breaker opens: at least `failure_rate` of the last `window` outcomes failed, of `min_calls` or more.

    open_s: then, for so long, nothing is let through; after that `probes` requests at a time.
    """

    window: int = 50
    min_calls: int = 10
    failure_rate: float = 0.5
    open_s: float = 10.0
    probes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How a pool batches what callers embed: by max_items, or by what has come max_wait_ms after the first."""

    max_items: int = 64
    max_wait_ms: float = 5.0

    @property
    def prefetch(self) -> int:
        """What a worker holds beyond its slots unless told otherwise: two batches, so that the next is there."""
        return 2 * self.max_items


@dataclass(frozen=True, slots=True, kw_only=True)
class DegradationConfig:
    """When the fleet is in trouble: parts of 1 from which on a signal counts, once it has held for `hold_s`.

    cpu: of the processors, over 10 s, while work waits. memory: in use. queue: of a pool's `max_queue`.
    """

    cpu: float = 0.8
    memory: float = 0.9
    queue: float = 0.5
    hold_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """One pool, every value settled.

    size: workers; 0 = the pool is off. max_size: with it the pool has `size` workers at the least and at the start, and
        grows up to max_size while work waits; None = it has `size` workers.
    slots: attempts that a worker runs at once.
    prefetch: attempts that a worker holds beyond its slots; None = by the operation's median run time.
    batch: with it the workers hold the embedder's model and embed in batches; None = they do neither.
    devices: the GPUs, one for each worker in turn, as CUDA_VISIBLE_DEVICES names them; () = workers see what the
        coordinator sees.
    max_queue: rows that may be queued before a request is refused as Overloaded.
    default_deadline_s: for requests that name none; None = such a request has no deadline.
    heartbeat_limit_s: a worker not heard for so long is killed.
    grace_s: from asking a worker to stop to killing it.
    memory_limit_mb, max_requests, max_age_s: a worker beyond one of them is replaced, its spare first; each worker has
        limits up to a tenth lower or higher than these; 0 = no limit. Memory is that of the worker and of the processes
        it started, and its limit is at least 1.5 times what a worker is born with.
    python: the interpreter of the workers; None = the coordinator's own.
    env: environment variables of the workers, beside those every worker gets.
    breaker: when requests are refused because those before failed; None = never.
    fallback: the pool that takes what this one cannot serve (breaker open, no workers); None = none.
    fallback_operations: operation -> the operation that runs in its place then.
    queue_age_s: a request that has waited so long, while every other waits too, is shed as Overloaded; None = half its
        deadline alone decides.
    launcher: zygote = workers are forked from a process that has imported what they need; spawn = each is a fresh
    interpreter. preload: modules that a zygote imports before it forks.
    internal: the coordinator's own (see `pools.services`): one worker, launched when it is first needed, never beside
        its successor; users reach it by the operations that are at home there, and do not see it among their pools.
    """

    name: str
    size: int
    slots: int
    default_deadline_s: float | None
    heartbeat_limit_s: float
    max_size: int | None = None
    prefetch: int | None = None
    launcher: Literal["zygote", "spawn"] = "zygote"
    max_queue: int = 1000
    heartbeat_interval_s: float = 1.0
    grace_s: float = 5.0
    memory_limit_mb: int = 0
    max_requests: int = 0
    max_age_s: float = 0.0
    restart: RestartConfig = RestartConfig()
    python: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    breaker: BreakerConfig | None = BreakerConfig()
    fallback: str | None = None
    fallback_operations: Mapping[str, str] = field(default_factory=dict)
    queue_age_s: float | None = None
    batch: BatchConfig | None = None
    devices: tuple[str, ...] = ()
    internal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsConfig:
    """Sessions: what one is opened with, and how much there may be of them.

    ttl_s: a session that nobody uses for so long has expired. affinity: what its calls do where its worker has no free
    slot: run elsewhere (hint), wait for it (strict_queue), or fail as WorkerBusy (strict_fail_fast). on_loss: what
    becomes of it when its worker ends: it goes on elsewhere from its last state (restore), or is lost (fail).
    durable: it is kept in the store. max: sessions at once. max_bytes: of state and turns that one may hold;
    total_bytes: that all may. history: turns that are kept of each.
    """

    ttl_s: float = 1800.0
    max: int = 10_000
    affinity: str = "hint"
    on_loss: str = "restore"
    durable: bool = False
    max_bytes: int = 256 * 1024
    total_bytes: int = 256 * 1024 * 1024
    history: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a pool is sized by: cores this process may use, and GPUs it can see.

    devices: these GPUs as CUDA_VISIBLE_DEVICES names them, () = by number.
    """

    cores: int
    gpus: int
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolKind:
    """What makes a pool special: its defaults, its size on a given machine, the operations that are at home in it.

    The size in `defaults` is a placeholder; `on` gives the real one. per_gpu: its workers have a GPU each.
    """

    defaults: PoolConfig
    size_on: Callable[[Machine], int]
    operations: frozenset[str] = frozenset()
    per_gpu: bool = False

    def on(self, machine: Machine, *, name: str | None = None) -> PoolConfig:
        """Return this kind's defaults sized to `machine`, under another name if one is given."""
        devices = (machine.devices or tuple(map(str, range(machine.gpus)))) if self.per_gpu else ()
        return replace(
            self.defaults, name=name or self.defaults.name, size=self.size_on(machine), devices=devices
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """The fleet: its pools, where operations are at home, how much one client may have in flight.

    homes: operation -> pool; what is not listed is at home in `default_pool`. inner: of these, what the coordinator
        alone may ask for.
    client_rows: accepted, unsettled rows per client. principal_rows: per principal, all its clients together.
    poison_deaths: a request is quarantined when so many workers died of it; 0 = never.
    degradation: when less is let in because the fleet is in trouble; None = never.
    sessions: how sessions are kept.
    """

    pools: tuple[PoolConfig, ...]
    homes: Mapping[str, str] = field(default_factory=dict)
    default_pool: str = "general"
    inner: frozenset[str] = frozenset()
    client_rows: int = 4096
    principal_rows: int = 16_384
    poison_deaths: int = 2
    degradation: DegradationConfig | None = None
    sessions: SessionsConfig = SessionsConfig()

    def pool(self, name: str) -> PoolConfig:
        """Return the pool of this name. Raises KeyError if there is none."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)

    def home_of(self, operation: str) -> str:
        """Return the name of the pool an operation runs in when the caller names none."""
        return self.homes.get(operation, self.default_pool)
