"""Where a request runs instead of where it was asked for. One hop: a fallback has no fallback."""

from __future__ import annotations

from bridge.protocol.errors import BridgeError
from pools.core.entries import PoolEntry
from pools.core.tables import Tables


def elsewhere(tables: Tables, pool: PoolEntry, operation: str) -> tuple[PoolEntry, str] | None:
    """Return the pool and the operation that stand in for an operation that `pool` cannot serve now, or None.

    An operation's stand-in runs in the pool's fallback, without one where it is at home; an operation that has no
    stand-in runs itself in the pool's fallback.
    """
    config = pool.config
    instead = config.fallback_operations.get(operation, operation)
    name = config.fallback
    if name is None and instead != operation:
        name = tables.home_of(instead)
    other = tables.user_pools.get(name) if name is not None else None
    if other is None or (other is pool and instead == operation):
        return None
    return other, instead


def refused_twice(refusal: BridgeError, why: BridgeError) -> BridgeError:
    """Return the refusal of the pool that was asked, with why its fallback refuses too as `details.fallback`."""
    details = {**refusal.details, "fallback": f"{why.code}: {why.message}"}
    return BridgeError(refusal.code, refusal.message, retryable=refusal.retryable, details=details)
