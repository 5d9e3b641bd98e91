"""How much a client may have unanswered at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

_KEPT_ROUTES: Final = 1024
# A route's window grows by a row after so many replies, and is never halved below this.
_CALM_REPLIES: Final = 8
_LEAST_ROWS: Final = 64


class Route:
    """What rows are counted by: one operation in one pool. A busy operation does not hold up another."""

    __slots__ = ("calm", "large", "operation", "pool", "rows", "shrunk_at", "window_rows")

    def __init__(self, operation: str, pool: str, window_rows: int = 0) -> None:
        self.operation = operation
        self.pool = pool
        self.rows = 0  # unanswered
        self.window_rows = window_rows  # how many may be
        self.calm = 0  # replies since it last grew
        self.shrunk_at = 0  # the highest request id sent when it last shrank
        self.large = False  # an outcome was: the next ones may come through shared memory


class Room:
    """Counts unanswered rows, in all and by route. Methods are called under the connection's lock, but for `route`."""

    def __init__(self, max_in_flight: int, window_rows: int) -> None:
        self.rows = 0  # unanswered, in all
        self._max_in_flight = max_in_flight
        self._window_rows = window_rows  # of a route, to begin with
        self._least_rows = min(window_rows, _LEAST_ROWS)
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
        return self._routes.setdefault((operation, pool), Route(operation, pool, self._window_rows))

    def fits(self, route: Route, rows: int, promised: int = 0) -> bool:
        """Return whether `rows` more, besides those promised to others of the route, may be under way.

        What is alone on its route always may, whatever its rows.
        """
        if promised:
            rows += promised
        elif not route.rows:
            return not self.rows or self.rows + rows <= self._max_in_flight
        if self.rows + rows > self._max_in_flight:
            return False
        return route.rows + rows <= route.window_rows

    def free(self, route: Route, rows: int) -> None:
        """Take settled rows off the books."""
        self.rows -= rows
        route.rows -= rows

    def grow(self, route: Route) -> None:
        """Take note of a reply from a pool that has room in its queue."""
        route.calm += 1
        if route.calm >= _CALM_REPLIES:
            route.calm = 0
            if route.window_rows < self._max_in_flight:
                route.window_rows += 1

    def shrink(self, route: Route, request_id: int, last_id: int) -> None:
        """Take note of a reply from a pool whose queue is more than half full. last_id: the highest id sent.

        Requests that were under way when the window shrank say nothing new: it shrinks once per round trip.
        """
        route.calm = 0
        if request_id > route.shrunk_at:
            route.shrunk_at = last_id
            route.window_rows = min(route.window_rows, max(route.window_rows // 2, self._least_rows))

    def want(self, route: Route, rows: int, notify: Callable[[], object]) -> None:
        """Have `notify` called when that many rows fit; it returns False if they are not wanted any more."""
        self.wanting.setdefault(route, deque()).append((rows, notify))

    def withdraw(self, route: Route, notify: Callable[[], object]) -> None:
        """Forget who wanted room, told of it or not."""
        queue = self.wanting.get(route)
        if queue is not None:
            queue = self.wanting[route] = deque(one for one in queue if one[1] is not notify)
            if not queue:
                del self.wanting[route]
        self.offer()

    def offer(self) -> None:
        """Notify those for whom there is room now."""
        for route in list(self.wanting):
            queue = self.wanting[route]
            promised = 0  # to those just told, who have not sent yet
            while queue and self.fits(route, queue[0][0], promised):
                rows, notify = queue.popleft()
                if notify() is not False:
                    promised += rows
            if not queue:
                del self.wanting[route]

    def end(self) -> None:
        """Notify all: what they wait for does not come."""
        for queue in self.wanting.values():
            for _, notify in queue:
                notify()
        self.wanting.clear()


class Asking:
    """Somebody who needs room again and again, and asks for it once at a time.

    Each asking is a promise, which keeps room from others until it is used.
    """

    def __init__(
        self, has_room: Callable[[int, Callable[[], object]], bool], offer: Callable[[], object],
        news: Callable[[], object],
    ) -> None:  # fmt: skip
        """has_room: of a connection, as is offer, for what is not wanted any more. news: called when there is room."""
        self._has_room = has_room
        self._offer = offer
        self._news = news
        self._asked = self._over = False

    def fits(self, rows: int) -> bool:
        """Return whether there is room for `rows` now; if not, there will be news once there is."""
        if self._asked:
            return False
        self._asked = True  # before, for it may be told at once, by another thread
        if not self._has_room(rows, self._told):
            return False
        self._asked = False
        return True

    def _told(self) -> bool:
        self._asked = False
        if not self._over:
            self._news()
        return not self._over

    def end(self) -> None:
        """Ask for nothing any more."""
        self._over = True
        if self._asked:
            self._offer()
