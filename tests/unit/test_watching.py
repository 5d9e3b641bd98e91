"""Who is called when descriptors become readable."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from orchestrator.coordinator.watching import Watching, open_pidfd


@pytest.fixture
def watching() -> Iterator[Watching]:
    made = Watching()
    yield made
    made.close()


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe() for _ in range(3)]
    yield made
    for fd in sum(made, ()):
        os.close(fd)


def test_who_became_readable_is_called(watching: Watching, pipes: list[tuple[int, int]]) -> None:
    called: list[int] = []
    for place, (read_fd, _) in enumerate(pipes):
        watching.add(read_fd, lambda now, place=place: called.append(place))  # type: ignore[misc]
    os.write(pipes[1][1], b"x")
    for handler in watching.wait(None):
        handler(0.0)
    assert called == [1]
    watching.remove(pipes[1][0])
    assert list(watching.wait(0.0)) == []


def test_what_was_removed_in_the_same_turn_is_not_called(watching: Watching, pipes: list[tuple[int, int]]) -> None:
    called: list[int] = []

    def only_me(own_fd: int) -> None:
        called.append(own_fd)
        for read_fd, _ in pipes:
            if read_fd != own_fd:
                watching.remove(read_fd)

    for read_fd, write_fd in pipes:
        watching.add(read_fd, lambda now, read_fd=read_fd: only_me(read_fd))  # type: ignore[misc]
        os.write(write_fd, b"x")
    for handler in watching.wait(None):
        handler(0.0)
    assert len(called) == 1


def test_what_is_removed_between_the_wait_and_the_calls_is_not_called(
    watching: Watching, pipes: list[tuple[int, int]]
) -> None:
    read_fd, write_fd = pipes[0]
    watching.add(read_fd, lambda now: pytest.fail("called"))
    os.write(write_fd, b"x")
    due = watching.wait(None)
    watching.remove(read_fd)
    assert list(due) == []


def test_a_process_that_has_ended_is_told_once_it_has(watching: Watching) -> None:
    ended: list[float] = []
    own = open_pidfd(os.getpid())
    assert own is not None
    watching.add_pidfd(own, ended.append)
    assert list(watching.wait(0.0)) == []
    watching.remove(own)
    os.close(own)
    assert open_pidfd(0) is None
    assert open_pidfd(2**22 + 1) is None
