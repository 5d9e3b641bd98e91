"""How much of the memory is in use: which files say so, and what they mean."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.coordinator.memory import MemoryGauge

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    250 kB\nHugePages_Total:       0\n"
MIB = 1 << 20


class Machine:
    """A mounted hierarchy, a process in it, and /proc/meminfo, as plain files."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "cgroup"
        self.meminfo = folder / "meminfo"
        self.meminfo.write_text(MEMINFO)
        self.process = folder / "process"
        self.process.mkdir()

    def group_2(self, path: str, limit: str, used: int = 0, spare: tuple[int, int, int] = (0, 0, 0)) -> Path:
        """Make a group of version 2."""
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        inactive, active, slab = spare
        lines = f"inactive_file {inactive}\nactive_file {active}\nslab_reclaimable {slab}\nslab_unreclaimable 8\n"
        (folder / "memory.stat").write_text(f"anon 5\nfile 7\nworkingset_inactive_file 9\n{lines}")
        return folder

    def group_1(self, path: str, limit: int, used: int, inactive: int, active: int) -> None:
        """Make a group of version 1."""
        folder = self.mount / path
        folder.mkdir(parents=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(
            f"active_file 1\ntotal_inactive_file {inactive}\ntotal_active_file {active}\n"
        )

    def gauge(self, group: str = "0::/scope/leaf\n", kind: str = "cgroup2 cgroup2 rw") -> MemoryGauge:
        (self.process / "cgroup").write_text(group)
        (self.process / "mountinfo").write_text(f"30 24 0:27 / {self.mount} rw - {kind}\n")
        return MemoryGauge(self.process, self.meminfo)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_limit_the_machine_counts(machine: Machine) -> None:
    machine.group_2("scope/leaf", "max", 900)
    gauge = machine.gauge()
    assert gauge.used() == 0.75
    machine.meminfo.write_text(MEMINFO.replace(" 250", "  40"))
    assert gauge.used() == 0.96
    gauge.close()
    assert gauge.used() is None


def test_a_group_counts_without_what_is_given_back_when_it_is_needed(machine: Machine) -> None:
    folder = machine.group_2("scope/leaf", str(100 * MIB), 90 * MIB, (15 * MIB, 10 * MIB, 5 * MIB))
    gauge = machine.gauge()
    assert gauge.used() == pytest.approx(0.6)
    (folder / "memory.current").write_text(f"{200 * MIB}\n")
    assert gauge.used() == 1.0
    (folder / "memory.max").write_text("max\n")  # lifted meanwhile
    assert gauge.used() == 0.0
    gauge.close()


def test_of_several_limits_the_nearest_counts(machine: Machine) -> None:
    machine.group_2("", "max", 1)
    machine.group_2("scope", "1000", 800)
    machine.group_2("scope/leaf", "1000", 300)
    gauge = machine.gauge()
    assert gauge.used() == pytest.approx(0.8)
    gauge.close()


@pytest.mark.parametrize(("limit", "used"), [(1000, 0.5), (9223372036854771712, 0.75)])
def test_version_1(machine: Machine, limit: int, used: float) -> None:
    machine.group_1("jobs", limit, 900, 300, 100)
    gauge = machine.gauge("4:memory:/jobs\n0::/\n", "cgroup cgroup rw,memory")
    assert gauge.used() == used
    gauge.close()


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 5 kB\n"])
def test_a_kernel_that_does_not_say(machine: Machine, text: str) -> None:
    machine.meminfo.write_text(text)
    gauge = machine.gauge()
    assert gauge.used() is None
    gauge.close()
    machine.meminfo.unlink()
    assert machine.gauge().used() is None


def test_a_reading_of_this_machine_costs_next_to_nothing() -> None:
    gauge = MemoryGauge()
    costs_s = []
    for _ in range(50):
        began = time.perf_counter()
        used = gauge.used()
        costs_s.append(time.perf_counter() - began)
    gauge.close()
    assert used is not None
    assert 0.0 < used < 1.0
    # 0.05 ms where nothing else runs; the best of fifty is that, however busy the machine is.
    assert min(costs_s) < 0.0003
