"""How much a client may have unanswered at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

_KEPT_ROUTES: Final = 1024


class Route:
    """What rows are counted by: one operation in one pool. A busy operation does not hold up another."""

    __slots__ = ("operation", "pool", "rows")

    def __init__(self, operation: str, pool: str) -> None:
        self.operation = operation
        self.pool = pool
        self.rows = 0  # unanswered


class Room:
    """Counts unanswered rows, in all and by route. Methods are called under the connection's lock, but for `route`."""

    def __init__(self, max_in_flight: int, window_rows: int) -> None:
        self.rows = 0  # unanswered, in all
        self._max_in_flight = max_in_flight
        self._window_rows = window_rows
        self._routes: dict[tuple[str, str], Route] = {}
        # Who waits for room, first come, first served.
        self.wanting: dict[Route, deque[tuple[int, Callable[[], object]]]] = {}

    def route(self, operation: str, pool: str = "") -> Route:
        """Return the route of an operation."""
        return self._routes.get((operation, pool)) or self._add(operation, pool)

    def _add(self, operation: str, pool: str) -> Route:
        # Of many names only those with rows under way are worth their memory.
        if len(self._routes) >= _KEPT_ROUTES:
            self._routes = {key: route for key, route in list(self._routes.items()) if route.rows}
        return self._routes.setdefault((operation, pool), Route(operation, pool))

    def fits(self, route: Route, rows: int) -> bool:
        """Return whether `rows` more may be under way. What is alone on its route always may, whatever its rows."""
        if self.rows and self.rows + rows > self._max_in_flight:
            return False
        return not route.rows or route.rows + rows <= self._window_rows

    def free(self, route: Route, rows: int) -> None:
        """Take settled rows off the books."""
        self.rows -= rows
        route.rows -= rows

    def want(self, route: Route, rows: int, notify: Callable[[], object]) -> None:
        """Have `notify` called when that many rows fit."""
        self.wanting.setdefault(route, deque()).append((rows, notify))

    def offer(self) -> None:
        """Notify those for whom there is room now."""
        for route in list(self.wanting):
            queue = self.wanting[route]
            promised = 0  # to those just told, who have not sent yet
            while queue and self.fits(route, promised + queue[0][0]):
                rows, notify = queue.popleft()
                promised += rows
                notify()
            if not queue:
                del self.wanting[route]

    def end(self) -> None:
        """Notify all: what they wait for does not come."""
        for queue in self.wanting.values():
            for _, notify in queue:
                notify()
        self.wanting.clear()
