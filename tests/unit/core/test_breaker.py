from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pools.config import BreakerConfig
from pools.core.breaker import CLOSED, HALF_OPEN, OPEN, PROBE_S, Breaker

START_S = 1000.0
CONFIG = BreakerConfig(window=10, min_calls=4, failure_rate=0.5, open_s=5.0, probes=1)


class Counted:
    """A breaker and its caller's counter."""

    def __init__(self, config: BreakerConfig = CONFIG, operations: int = 1) -> None:
        self.breaker = Breaker(config, operations=operations)
        self.outcomes = 0

    def fail(self, times: int = 1, operation: str = "a", now: float = START_S) -> list[bool]:
        opened = []
        for _ in range(times):
            self.outcomes += 1
            opened.append(self.breaker.failed(self.outcomes, operation, now))
        return opened

    def succeed(self, times: int = 1) -> None:
        for _ in range(times):
            self.outcomes += 1
            self.breaker.succeeded(self.outcomes)

    def counts(self) -> tuple[int, int]:
        return self.breaker.counts(self.outcomes)


def opened(config: BreakerConfig = CONFIG) -> Counted:
    one = Counted(config)
    assert one.fail(config.min_calls)[-1]
    return one


# --- closed ---------------------------------------------------------------------------------------------


def test_it_opens_at_the_failure_that_makes_min_calls() -> None:
    one = Counted()
    assert one.fail(4) == [False, False, False, True]
    assert one.breaker.state(START_S) == OPEN
    assert one.counts() == (4, 4)


def test_it_opens_at_the_failure_that_makes_the_rate() -> None:
    one = Counted()
    one.succeed(4)
    assert one.fail(4) == [False, False, False, True]
    assert one.counts() == (4, 8)


def test_successes_keep_it_closed() -> None:
    one = Counted()
    for _ in range(50):
        one.succeed(2)
        assert one.fail() == [False]
    assert one.breaker.state(START_S) == CLOSED
    assert one.breaker.wait_s(START_S) is None


def test_it_looks_at_the_last_outcomes_alone() -> None:
    one = Counted()
    one.succeed(1000)
    assert one.counts() == (0, 10)
    assert one.fail(5) == [False, False, False, False, True]


def test_a_success_that_makes_min_calls_does_not_open_it() -> None:
    one = Counted()
    one.fail(3)
    one.succeed()
    assert one.breaker.state(START_S) == CLOSED
    assert one.fail() == [True]


def test_failures_leave_the_window() -> None:
    one = Counted()
    one.fail(3)
    one.succeed(10)
    assert one.counts() == (0, 10)


def test_one_operation_alone_does_not_open_what_is_shared() -> None:
    one = Counted(operations=2)
    assert not any(one.fail(100, "a"))
    assert one.fail(1, "b") == [True]


def test_a_count_that_begins_anew_forgets() -> None:
    one = Counted()
    one.succeed(100)
    one.fail(3)
    one.outcomes = 0
    assert one.fail(4) == [False, False, False, True]
    assert one.counts() == (4, 4)


@given(
    outcomes=st.lists(st.booleans(), max_size=80),
    window=st.integers(1, 12),
    min_calls=st.integers(1, 12),
    rate=st.sampled_from([0.01, 0.3, 0.5, 1.0]),
)
def test_it_opens_when_a_list_of_the_last_outcomes_says_so(
    outcomes: list[bool], window: int, min_calls: int, rate: float
) -> None:
    one = Counted(BreakerConfig(window=window, min_calls=min_calls, failure_rate=rate))
    last: deque[bool] = deque(maxlen=window)
    for failure in outcomes:
        last.append(failure)
        if not failure:
            one.succeed()
        else:
            expected = len(last) >= min_calls and sum(last) >= rate * len(last)
            assert one.fail() == [expected]
            if expected:
                assert one.counts() == (sum(last), len(last))
                return
        assert one.counts() == (sum(last), len(last))


# --- open -----------------------------------------------------------------------------------------------


def test_open_says_how_long_it_stays_so() -> None:
    breaker = opened().breaker
    assert breaker.wait_s(START_S) == 5.0
    assert breaker.wait_s(START_S + 4.0) == 1.0
    assert breaker.state(START_S + 4.999) == OPEN
    assert breaker.state(START_S + 5.0) == HALF_OPEN
    assert breaker.wait_s(START_S + 5.0) is None


# --- half open ------------------------------------------------------------------------------------------


def test_a_probe_at_a_time() -> None:
    breaker = opened().breaker
    now = START_S + 5.0
    assert breaker.lease(1, None, now) is True
    assert breaker.wait_s(now) == 5.0  # the lease ends later; nobody is told to wait longer than an open breaker would
    breaker.release(1)
    assert breaker.wait_s(now) is None
    assert breaker.lease(2, None, now) is False


def test_as_many_probes_as_configured() -> None:
    breaker = opened(BreakerConfig(min_calls=4, open_s=5.0, probes=3)).breaker
    now = START_S + 6.0
    for request_id in range(3):
        assert breaker.wait_s(now) is None
        breaker.lease(request_id, None, now)
    assert breaker.wait_s(now) is not None


@pytest.mark.parametrize(
    ("deadline_s", "lease_s"), [(2.0, 2.0), (None, PROBE_S), (300.0, PROBE_S)], ids=["deadline", "none", "far"]
)
def test_a_lease_ends_at_its_deadline_or_after_a_while(deadline_s: float | None, lease_s: float) -> None:
    breaker = opened().breaker
    now = START_S + 5.0
    breaker.lease(1, None if deadline_s is None else now + deadline_s, now)
    wait_s = breaker.wait_s(now + lease_s - 1.0)
    assert wait_s == 1.0
    assert breaker.wait_s(now + lease_s) is None


def test_a_success_closes_it_and_forgets() -> None:
    one = opened()
    one.breaker.lease(1, None, START_S + 5.0)
    one.succeed()
    assert one.breaker.state(START_S + 5.0) == CLOSED
    assert one.counts() == (0, 0)
    assert one.fail(4, now=START_S + 6.0) == [False, False, False, True]
    assert one.breaker.opens == 2


def test_a_failure_opens_it_again_for_as_long() -> None:
    one = opened()
    now = START_S + 7.0
    one.breaker.lease(1, None, now)
    assert one.fail(now=now + 0.5) == [True]
    assert one.breaker.wait_s(now + 0.5) == 5.0
    assert one.breaker.opens == 2
    assert one.counts() == (4, 4)  # what opened it first
    assert one.breaker.lease(2, None, now + 6.0) is True


def test_a_lease_is_given_only_where_there_is_need() -> None:
    breaker = Breaker(CONFIG)
    assert breaker.lease(1, None, START_S) is False
    assert breaker.state(START_S) == CLOSED
