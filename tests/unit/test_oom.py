"""Which SIGKILL was for memory: where the kernel's count is found, and what it explains."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.coordinator.oom import OomKills, find_counter

OTHERS = "23 1 0:22 / /proc rw,nosuid - proc proc rw\n24 1 0:5 / /dev rw shared:1 - devtmpfs dev rw\n"


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    folder = tmp_path / "cgroup"
    folder.mkdir()
    return folder


def process(tmp_path: Path, cgroup: str, mountinfo: str) -> Path:
    """Return a folder as a process has in /proc."""
    folder = tmp_path / "process"
    folder.mkdir()
    (folder / "cgroup").write_text(cgroup)
    (folder / "mountinfo").write_text(OTHERS + mountinfo)
    return folder


def counter(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("oom_kill 0\n")
    return path


def test_version_2(tmp_path: Path, mounts: Path) -> None:
    file = counter(mounts / "user.slice" / "a b" / "memory.events")
    mount = f"30 24 0:27 / {mounts} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    assert find_counter(process(tmp_path, "0::/user.slice/a b\n", mount)) == file


def test_version_2_of_which_only_a_part_is_mounted(tmp_path: Path, mounts: Path) -> None:
    file = counter(mounts / "inner" / "memory.events")
    mount = f"30 24 0:27 /docker/4f {mounts} ro - cgroup2 cgroup rw\n"
    assert find_counter(process(tmp_path, "0::/docker/4f/inner\n", mount)) == file


def test_version_1_beside_version_2(tmp_path: Path, mounts: Path) -> None:
    file = counter(mounts / "memory" / "jobs" / "memory.oom_control")
    counter(mounts / "unified" / "memory.events")
    mount = (
        f"30 24 0:26 / {mounts}/unified rw - cgroup2 cgroup2 rw\n"
        f"31 24 0:27 / {mounts}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"32 24 0:28 / {mounts}/memory rw - cgroup cgroup rw,memory\n"
    )
    cgroup = "5:cpu,cpuacct:/\n4:memory:/jobs\n1:name=systemd:/x\n0::/\n"
    assert find_counter(process(tmp_path, cgroup, mount)) == file


@pytest.mark.parametrize(
    ("cgroup", "root"), [("0::/other\n", "/docker"), ("0::/\n", "/"), ("3:cpu:/\n", "/")],
    ids=["not below what is mounted", "no file at the root", "no memory controller"],
)  # fmt: skip
def test_none(tmp_path: Path, mounts: Path, cgroup: str, root: str) -> None:
    assert find_counter(process(tmp_path, cgroup, f"30 24 0:27 {root} {mounts} rw - cgroup2 cgroup2 rw\n")) is None
    assert find_counter(tmp_path / "no process") is None


class Kernel:
    """The count, in a file as the kernel shows it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.kill(0)

    def kill(self, times: int = 1) -> None:
        self.count += times
        self.path.write_text(f"low 0\nhigh 0\nmax 17\noom 2\noom_kill {self.count}\noom_group_kill 9\n")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "memory.events")


def test_a_kill_explains_one_death(kernel: Kernel) -> None:
    kills = OomKills(kernel.path)
    for name in "abc":
        kills.launched(name)
    kernel.kill()
    assert kills.explains("a")
    assert not kills.explains("b")
    kernel.kill()
    assert kills.explains("c")


def test_two_kills_explain_two_deaths_told_later(kernel: Kernel) -> None:
    kills = OomKills(kernel.path)
    kills.launched("a")
    kills.launched("b")
    kernel.kill(2)
    assert kills.explains("a")
    assert kills.explains("b")


def test_what_was_before_a_birth_explains_nothing(kernel: Kernel) -> None:
    kernel.kill(3)
    kills = OomKills(kernel.path)
    kills.launched("a")
    assert not kills.explains("a")
    kernel.kill(2)  # nobody's
    kills.launched("b")
    assert not kills.explains("b")


def test_who_is_killed_here_needs_no_explanation(kernel: Kernel) -> None:
    kills = OomKills(kernel.path)
    for name in "abcd":
        kills.launched(name)
    kernel.kill(2)
    kills.killed_here("a")
    assert not kills.explains("a")
    kills.buried("b")
    assert not kills.explains("b")
    kills.all_killed_here()
    assert not kills.explains("c")


@pytest.mark.parametrize("content", [None, "", "oom_kill_disable 0\nunder_oom 0\n"])
def test_without_a_count_nothing_is_guessed(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "memory.oom_control"
    if content is not None:
        path.write_text(content)
    for counter_path in (path, None):
        kills = OomKills(counter_path)
        kills.launched("a")
        assert not kills.explains("a")


@pytest.mark.parametrize("exactly", [True, False])
def test_a_workers_own_group_knows_better(kernel: Kernel, exactly: bool) -> None:
    kills = OomKills(kernel.path)
    kills.launched("a")
    kills.launched("b")
    kernel.kill()
    assert kills.explains("a", exactly) is exactly
    assert kills.explains("b")  # the count of all was not touched
