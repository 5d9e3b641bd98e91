from __future__ import annotations

import pytest

from pools.config import RestartConfig
from pools.core.restart import RestartPolicy

CONFIG = RestartConfig(max_restarts=3, window_s=10.0, backoff_s=(0.5, 4.0))


def policy(jitter: float = 1.0) -> RestartPolicy:
    return RestartPolicy(CONFIG, lambda: jitter)


def test_at_once_within_the_intensity_then_doubling_to_the_longest() -> None:
    restarts = policy()
    delays = [restarts.crashed(now=100.0) for _ in range(8)]
    assert delays == [0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 4.0]
    assert restarts.count == 8


def test_the_window_slides() -> None:
    restarts = policy()
    assert [restarts.crashed(now=now) for now in (100.0, 104.0, 108.0, 109.9)] == [0.0, 0.0, 0.0, 0.5]
    assert restarts.crashed(now=110.0) == 0.0  # the first left the window
    assert restarts.crashed(now=110.1) == 0.5  # and the backoff began afresh


def test_a_failed_boot_waits_from_the_first() -> None:
    restarts = policy()
    assert [restarts.boot_failed() for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, 4.0]
    assert (restarts.count, restarts.failed_boots) == (5, 5)


def test_a_ready_worker_ends_the_backoff_of_failed_boots() -> None:
    restarts = policy()
    restarts.boot_failed()
    restarts.boot_failed()
    restarts.recovered(now=100.0)
    assert restarts.failed_boots == 0
    assert restarts.boot_failed() == 0.5


def test_a_crash_loop_of_ready_workers_keeps_its_backoff() -> None:
    restarts = policy()
    delays = []
    for _ in range(6):
        delays.append(restarts.crashed(now=100.0))
        restarts.recovered(now=100.0)
    assert delays == [0.0, 0.0, 0.0, 0.5, 1.0, 2.0]


def test_crashes_of_long_ago_do_not_keep_the_backoff_of_failed_boots() -> None:
    restarts = policy()
    for _ in range(3):
        restarts.crashed(now=100.0)
    restarts.boot_failed()
    restarts.recovered(now=500.0)
    assert restarts.boot_failed() == 0.5


@pytest.mark.parametrize(("jitter", "expected"), [(0.0, 0.25), (0.5, 0.375), (0.999, 0.49975)])
def test_jitter_is_half_to_full(jitter: float, expected: float) -> None:
    assert policy(jitter).boot_failed() == pytest.approx(expected)


def test_a_very_long_row_of_failures_overflows_nothing() -> None:
    restarts = policy()
    assert [restarts.boot_failed() for _ in range(2000)][-1] == 4.0
