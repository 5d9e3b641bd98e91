"""What must hold of resends: only of what may run again, few, in time, and within the pool's budget."""

from __future__ import annotations

from typing import Final

from pools.core.events import Signalled, WorkerExited
from tests.sim.ledger import Case, Ledger

RESENDS: Final = 2
# Resends of a pool: so many to begin with, and so many more per accepted row.
_BUDGET: Final = 10.0
_BUDGET_PER_ROW: Final = 0.2


def may_be_resent(ledger: Ledger, case: Case, event: WorkerExited, now: float) -> bool:
    """Whether a case whose attempt was lost as it ran may be sent again, instead of being settled."""
    if not case.repeatable or case.cancel or case.resends >= RESENDS:
        return False
    if case.deadline is not None and now >= case.deadline:
        return False
    if isinstance(event.reason, Signalled) and event.reason.out_of_memory:
        return False
    return ledger.resent[case.pool] + 1 <= _BUDGET + _BUDGET_PER_ROW * ledger.accepted_rows[case.pool]
