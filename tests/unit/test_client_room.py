"""Counting rows: in all, by route, and how a route's window follows what its pool can take."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from orchestrator.client.room import Asking, Room, Route


def book(room: Room, route: Route, rows: int) -> None:
    room.rows += rows
    route.rows += rows


def test_a_route_takes_its_window_and_all_together_the_limit() -> None:
    room = Room(10, 6)
    echo, ping = room.route("echo"), room.route("ping")
    assert room.fits(echo, 6)
    book(room, echo, 6)
    assert not room.fits(echo, 1)
    assert room.fits(ping, 4)
    book(room, ping, 4)
    assert not room.fits(room.route("sleep"), 1)
    room.free(echo, 6)
    assert room.fits(ping, 2)
    assert not room.fits(ping, 3)


def test_what_is_alone_fits_whatever_its_rows() -> None:
    room = Room(10, 6)
    assert room.fits(room.route("echo"), 64)
    book(room, room.route("echo"), 1)
    assert not room.fits(room.route("echo"), 64)


def test_routes_are_by_operation_and_pool() -> None:
    room = Room(10, 6)
    assert room.route("echo") is room.route("echo", "")
    assert room.route("echo") is not room.route("echo", "general")


def test_of_many_routes_only_those_in_use_are_kept() -> None:
    room = Room(10_000, 6)
    busy = room.route("busy")
    book(room, busy, 1)
    for number in range(5000):
        room.route(f"operation {number}")
    assert len(room._routes) <= 1025
    assert room.route("busy") is busy


def test_who_waits_is_told_in_turn_and_no_more_than_fit() -> None:
    room = Room(100, 4)
    echo = room.route("echo")
    book(room, echo, 4)
    told: list[int] = []
    for number in range(5):
        room.want(echo, 2, partial(told.append, number))
    room.offer()
    assert told == []
    room.free(echo, 4)
    room.offer()
    assert told == [0, 1]
    room.end()
    assert told == [0, 1, 2, 3, 4]
    assert room.wanting == {}


def test_who_withdraws_makes_room_for_the_next() -> None:
    room = Room(100, 4)
    echo = room.route("echo")
    book(room, echo, 4)
    told: list[str] = []

    def first() -> None:
        told.append("first")

    room.want(echo, 4, first)
    room.want(echo, 2, lambda: told.append("second"))
    room.free(echo, 2)
    room.offer()
    assert told == []
    room.withdraw(echo, first)
    assert told == ["second"]
    assert room.wanting == {}


def test_a_window_grows_by_a_row_with_each_eight_calm_replies() -> None:
    room = Room(66, 64)
    echo = room.route("echo")
    for _ in range(7):
        room.grow(echo)
    assert echo.window_rows == 64
    room.grow(echo)
    assert echo.window_rows == 65
    for _ in range(100):
        room.grow(echo)
    assert echo.window_rows == 66
    assert room.route("ping").window_rows == 64


def test_a_window_halves_once_per_round_trip() -> None:
    room = Room(4096, 1000)
    echo = room.route("echo")
    room.shrink(echo, request_id=5, last_id=100)
    room.shrink(echo, request_id=6, last_id=101)
    room.shrink(echo, request_id=100, last_id=150)
    assert echo.window_rows == 500
    room.shrink(echo, request_id=101, last_id=160)
    assert echo.window_rows == 250


@pytest.mark.parametrize(("start", "least"), [(1000, 64), (65, 64), (40, 40), (1, 1)])
def test_a_window_is_never_below_64_rows_or_its_start(start: int, least: int) -> None:
    room = Room(4096, start)
    echo = room.route("echo")
    for number in range(1, 20):
        room.shrink(echo, request_id=number, last_id=number)
    assert echo.window_rows == least


def test_the_books_close_whatever_the_order() -> None:
    room, seeded = Room(300, 100), random.Random(11)
    routes = [room.route("echo"), room.route("echo", "general"), room.route("ping")]
    under_way: list[tuple[Route, int]] = []
    for _ in range(2000):
        route, rows = seeded.choice(routes), seeded.randint(1, 20)
        if room.fits(route, rows):
            book(room, route, rows)
            under_way.append((route, rows))
        elif under_way:
            room.free(*under_way.pop(seeded.randrange(len(under_way))))
        assert room.rows == sum(route.rows for route in routes) <= 300
        assert all(route.rows <= 100 for route in routes)
    for booked in under_way:
        room.free(*booked)
    assert [room.rows, *(route.rows for route in routes)] == [0, 0, 0, 0]


def test_what_is_not_wanted_any_more_is_offered_to_the_next() -> None:
    room, told = Room(2, 2), []
    echo = room.route("echo")
    book(room, echo, 2)
    for number in range(6):
        room.want(echo, 1, lambda number=number: told.append(number) if number >= 4 else False)
    room.offer()
    assert told == []
    room.free(echo, 2)
    room.offer()
    assert told == [4, 5]
    assert room.wanting == {}


class Line:
    """A route of a connection, and somebody who sends on it."""

    def __init__(self, window_rows: int) -> None:
        self.room = Room(100, window_rows)
        self.route = self.room.route("echo")
        self.news = 0
        self.asking = Asking(self.has_room, self.room.offer, self._hear)

    def has_room(self, rows: int, notify: Callable[[], object]) -> bool:
        if self.room.fits(self.route, rows):
            return True
        self.room.want(self.route, rows, notify)
        return False

    def _hear(self) -> None:
        self.news += 1

    def settle(self, rows: int) -> None:
        self.room.free(self.route, rows)
        self.room.offer()

    def asked(self) -> int:
        return sum(map(len, self.room.wanting.values()))


def test_room_is_asked_for_once_until_it_is_there() -> None:
    line = Line(4)
    book(line.room, line.route, 4)
    assert not line.asking.fits(2)
    line.settle(1)
    assert not line.asking.fits(2)  # something was settled; what was asked for is not there yet
    assert (line.news, line.asked()) == (0, 1)
    line.settle(1)
    assert (line.news, line.asked()) == (1, 0)
    assert line.asking.fits(2)


def test_who_asks_no_more_leaves_the_room_to_the_next() -> None:
    line = Line(4)
    book(line.room, line.route, 4)
    assert not line.asking.fits(4)
    told: list[int] = []
    line.room.want(line.route, 4, partial(told.append, 1))
    line.asking.end()
    line.settle(4)
    assert (line.news, told, line.asked()) == (0, [1], 0)
