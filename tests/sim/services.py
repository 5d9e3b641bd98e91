"""The coordinator's own process among the workers: launched when it is first asked, refused while it is down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pools.config import FleetConfig, PoolConfig, RestartConfig
from tests.sim.ledger import OUT, SETTLED, Case, Desk, Ledger
from tests.sim.step import Step, broken

if TYPE_CHECKING:
    from random import Random

NAME: Final = "services"
PLACE: Final = f"{NAME}-1"
ASKED: Final = "store.info"
INNER: Final = "sessions.save"
# Of ten histories one asks it.
_EVERY: Final = 10


def has_services(seed: int) -> bool:
    """Whether the coordinator's own process is asked in a history."""
    return seed // 7 % _EVERY == 3


def with_services(random: Random, config: FleetConfig) -> dict[str, Any]:
    """Draw the internal pool; return what it changes of a configuration."""
    restart = RestartConfig(max_restarts=int(random.random() * 3), window_s=10.0, backoff_s=(0.1, 2.0))
    pool = PoolConfig(
        name=NAME, internal=True, size=1, slots=1 + int(random.random() * 3), prefetch=0, max_queue=1000, grace_s=0.5,
        heartbeat_limit_s=5.0, default_deadline_s=5.0, restart=restart,
    )  # fmt: skip
    return {
        "pools": (*config.pools, pool),
        "homes": {**config.homes, ASKED: NAME, INNER: NAME},
        "inner": frozenset((INNER,)),
    }


class Services:
    """What is known of the internal pool of one history. tables: the fleet's, read for whether it can boot."""

    def __init__(self, ledger: Ledger, step: Step, tables: Any) -> None:
        self._ledger = ledger
        self._step = step
        self._pool = tables.pools.get(NAME)
        self._was_ready = False
        self._ready: Desk | None = None
        self._is_down = False  # as the event came

    def arrived(self, case: Case) -> None:
        """A request for it has arrived: note whether it is down."""
        self._is_down = self._was_ready and not self._serves()

    def _serves(self) -> bool:
        worker = self._pool.places[1].worker
        desk = self._ready
        return desk is not None and worker is not None and worker.worker_id == desk.worker_id and desk.takes_work

    def accepted(self, case: Case) -> None:
        """A request was accepted for it."""
        if self._is_down:
            broken("what is down refuses", repr(case))
        if case.operation == INNER:
            broken("the coordinator alone asks that", repr(case))
        if not self._pool.asked:
            broken("launched when it is first asked", repr(case))
        self._ledger.seen["asked of services"] += 1
        self._ledger.seen["waits for its first boot"] += not self._was_ready

    def may_be_refused(self, case: Case) -> bool:
        """Whether a request may be refused because it is down."""
        self._ledger.seen["refused while it is down"] += self._is_down
        return self._is_down or self._pool.boot_error is not None

    def ready(self, desk: Desk) -> None:
        """It is ready."""
        self._was_ready, self._ready = True, desk

    def exited(self, desk: Desk) -> None:
        """It has ended: all that it held, and what waited behind that once it had been ready, is refused."""
        for epoch in sorted(desk.attempts):
            case = desk.take(epoch)
            if case is not None and case.state != SETTLED:
                self._step.lost.add(case.request_id)
                self._step.must_settle.append(case)
        if self._was_ready:
            self._step.must_settle.extend(self._ledger.queues[NAME].values())

    def why_not(self, case: Case, executed: str) -> str:
        """Return why one that it held should not have been told so; the empty string if it should."""
        if case.state != OUT:
            return ""
        if case.request_id not in self._step.lost or case.desk is None:
            return "it lives"
        self._ledger.seen["lost with services"] += 1
        return "" if executed == ("maybe" if case.desk.marked(case.epoch) else "no") else f"executed={executed}"
