"""How much of the processors is in use: which files say so, and what they mean."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.coordinator.load import CpuGauge


class Machine:
    """/proc/stat, and groups of version 2 above a process, as plain files."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "cgroup"
        self.stat = folder / "stat"
        self.process = folder / "process"
        self.process.mkdir()
        (self.process / "cgroup").write_text("0::/scope/leaf\n")
        (self.process / "mountinfo").write_text(f"30 24 0:27 / {self.mount} rw - cgroup2 cgroup2 rw\n")
        self.ticks(busy=0, idle=0)

    def ticks(self, busy: int, idle: int) -> None:
        """So many ticks are over since the start: as user, system and stolen; as idle and iowait."""
        part = busy // 4
        fields = (busy - 2 * part, 0, part, idle // 2, idle - idle // 2, 0, 0, part, 77, 0)
        self.stat.write_text(f"cpu  {' '.join(map(str, fields))}\ncpu0 1 1 1 1\nintr 5\n")

    def group(self, path: str, quota: str, usage_s: float) -> None:
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
        (folder / "cpu.stat").write_text(f"usage_usec {int(usage_s * 1e6)}\nuser_usec 1\nnr_periods 3\n")

    def gauge(self) -> CpuGauge:
        return CpuGauge(self.process, self.stat)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_ran_is_counted_since_the_first_look(machine: Machine) -> None:
    gauge = machine.gauge()
    assert gauge.used(100.0) is None
    machine.ticks(busy=60, idle=140)
    assert gauge.used(101.0) == 0.3
    machine.ticks(busy=260, idle=140)
    assert gauge.used(102.0) == 0.65
    gauge.close()


def test_ten_seconds_are_looked_at(machine: Machine) -> None:
    gauge = machine.gauge()
    busy = 0
    for now in range(31):
        busy += 200 if now > 20 else 0
        machine.ticks(busy=busy, idle=200 * now - busy if now <= 20 else 4000)
        used = gauge.used(float(now))
    assert used == 1.0
    gauge.close()


def test_a_group_counts_by_its_quota_and_who_has_least_left_counts(machine: Machine) -> None:
    machine.group("scope", quota="50000", usage_s=10.0)
    machine.group("scope/leaf", quota="max", usage_s=10.0)
    gauge = machine.gauge()
    gauge.used(100.0)
    machine.ticks(busy=100, idle=900)
    machine.group("scope", quota="50000", usage_s=12.0)
    assert gauge.used(105.0) == pytest.approx(0.8)
    machine.ticks(busy=1900, idle=900 + 100)
    assert gauge.used(106.0) == pytest.approx(1900 / 2900, abs=0.1)
    gauge.close()


def test_where_nobody_says_there_is_no_number(machine: Machine) -> None:
    machine.stat.unlink()
    gauge = machine.gauge()
    assert gauge.used(1.0) is None
    assert gauge.used(2.0) is None
    gauge.close()


def test_what_makes_no_sense_is_no_number(machine: Machine) -> None:
    gauge = machine.gauge()
    gauge.used(1.0)
    machine.stat.write_text("cpu  what\n")
    assert gauge.used(2.0) is None
    gauge.close()


def test_this_machine_says_so() -> None:
    gauge = CpuGauge()
    gauge.used(time.monotonic())
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        pass
    used = gauge.used(time.monotonic())
    assert used is not None
    assert 0.0 < used <= 1.0
    gauge.close()
