"""Workers are forked from processes that have imported what they need. Both launchers' promises: test_launch*."""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator import Orchestrator, errors, processes
from pools.core.events import Exited, Signalled
from pools.launch.command import ChildFds
from pools.launch.launcher import LaunchFailed, LaunchSpec, ZygoteSpec
from pools.launch.nanny import children
from pools.launch.zygote import ROOT
from tests.support import launching
from tests.support.launching import SLEEPER, WAIT_S, Stage, a_stage, alive, nanny_pid
from tests.support.waiting import wait_until


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with a_stage(tmp_path, "zygote", python_path=[str(tmp_path)], preload_limit_s=20.0) as stage:
        yield stage


def module(folder: Path, name: str, text: str) -> ZygoteSpec:
    """Write a module; return the zygote of a pool that preloads it."""
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return ZygoteSpec(name, (name,))


# Begins a module of which `imports` is to say how often it was imported.
COUNT_IMPORT = "with open(__file__ + '.imports', 'a') as file: file.write('.')\n"


def imports(folder: Path, name: str) -> int:
    """Return how often a module that begins with COUNT_IMPORT was imported."""
    return len((folder / f"{name}.py.imports").read_text())


def failure(stage: Stage, worker_id: str) -> str:
    """Wait for a launch to fail; return why."""
    event = stage.wait_for(lambda event: isinstance(event, LaunchFailed) and event.worker_id == worker_id)
    assert isinstance(event, LaunchFailed)
    return event.error


def root_pid(stage: Stage) -> int:
    """Wait until there is a root zygote; return its pid. Nothing outside a launcher tells zygotes from workers."""
    workers = stage.launcher._workers
    stage.wait_until(lambda: ROOT in workers and workers[ROOT].pidfd >= 0, WAIT_S, "the root zygote")
    return workers[ROOT].pid


# --- preload ----------------------------------------------------------------------------------------


def test_modules_are_imported_once_before_workers_are_forked(stage: Stage) -> None:
    zygote = module(
        stage.folder, "ours", "import os, sys\nimporter = os.getpid()\nfirst, here = sys.path[0], os.getcwd()\n"
    )
    script = "ours = sys.modules['ours']; print(ours.importer, ours.first == folder, folder in sys.path, os.getppid())"
    for worker_id in ("a", "b"):
        stage.launch(worker_id, script, zygote=zygote)
    stage.launch("other", "print('ours' in sys.modules)")
    for worker_id in ("a", "b", "other"):
        assert stage.reaped(worker_id).reason == Exited(0), stage.launcher.log_tail(worker_id)
    said = {stage.launcher.log_tail(worker_id)[0] for worker_id in ("a", "b")}
    importer, *rest = said.pop().split()
    assert not said
    assert alive(int(importer))
    assert rest == ["True", "False", str(nanny_pid())]
    assert stage.launcher.log_tail("other") == ["False"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("raise ValueError('no such luck')", ["bad.py", "ValueError: no such luck", "Traceback"]),
        ("import no_such_module_here", ["No module named 'no_such_module_here'"]),
        ("import sys; sys.exit('leaving')", ["SystemExit: leaving"]),
        ("print('last words', flush=True)\nimport os\nos._exit(3)", ["exit code 3", "last words"]),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ["signal 11", "Segmentation fault"]),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), name='busy', daemon=True).start()",
            ["'busy'", "one thread", "launcher: spawn"],
        ),
    ],
)
def test_a_preload_that_fails_fails_its_pools_launches_alone(stage: Stage, text: str, wanted: list[str]) -> None:
    zygote = module(stage.folder, "bad", text)
    for worker_id in ("a", "b"):
        stage.launch(worker_id, SLEEPER, zygote=zygote)
    stage.launch("other", "sys.exit(4)")
    for worker_id in ("a", "b"):
        why = failure(stage, worker_id)
        assert all(words in why for words in ["importing bad (preload) failed", *wanted]), why
    assert stage.reaped("other").reason == Exited(4)
    module(stage.folder, "bad", "# mended")
    stage.launch("a", "sys.exit(5)", zygote=zygote)
    assert stage.reaped("a").reason == Exited(5)


def test_a_preload_that_hangs_says_where(tmp_path: Path) -> None:
    with a_stage(tmp_path, "zygote", python_path=[str(tmp_path)], preload_limit_s=1.0) as stage:
        stage.launch("w", SLEEPER, zygote=module(tmp_path, "slow", f"{COUNT_IMPORT}import time\ntime.sleep(600)\n"))
        why = failure(stage, "w")
    assert "importing slow (preload) failed: it did not answer in time" in why
    assert "slow.py" in why
    assert imports(tmp_path, "slow") == 1  # it ended by a signal, but was not killed by somebody


@pytest.mark.parametrize(
    ("end", "tries", "wanted"),
    [("os.kill(os.getpid(), 9)", 3, "signal 9"), ("os._exit(3)", 1, "exit code 3"), ("raise OSError", 1, "OSError")],
)
def test_only_a_preload_that_a_signal_ends_is_tried_again(stage: Stage, end: str, tries: int, wanted: str) -> None:
    zygote = module(stage.folder, "bad", f"{COUNT_IMPORT}import os\nprint('last words', flush=True)\n{end}\n")
    for worker_id in ("a", "b"):
        stage.launch(worker_id, SLEEPER, zygote=zygote)
    for worker_id in ("a", "b"):
        why = failure(stage, worker_id)
        assert why.startswith("importing bad (preload) failed: ")
        assert wanted in why
        assert why.endswith("last words")
    assert imports(stage.folder, "bad") == tries


def test_what_waits_for_a_preload_can_be_killed(stage: Stage) -> None:
    zygote = module(stage.folder, "slow", "import time\ntime.sleep(600)\n")
    stage.launch("w", SLEEPER, zygote=zygote)
    with pytest.raises(ValueError, match="w is alive"):
        stage.launch("w", SLEEPER, zygote=zygote)
    stage.launcher.kill("w")
    assert stage.reaped("w").reason == Signalled(9)


def test_another_interpreter_is_spawned(stage: Stage) -> None:
    link = stage.folder / "python"
    link.symlink_to(sys.executable)
    stage.launch("w", "print(os.path.basename(sys.orig_argv[0]), 'bridge' in sys.modules)", str(link))
    stage.reaped("w")
    assert stage.launcher.log_tail("w") == ["python False"]


# --- what a fork has of its zygote ---------------------------------------------------------------------


def test_a_fork_is_like_a_fresh_process(stage: Stage) -> None:
    zygote = module(
        stage.folder,
        "rude",
        """
        import os, random, signal, tempfile, time
        left = tempfile.TemporaryFile()
        left_fd = left.fileno()
        random.seed(1)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.environ["RUDE"] = "1"
        os.chdir("/")
        os.umask(0)
        """,
    )
    script = """
    import random, gc, threading
    rude = sys.modules["rude"]
    print(os.readlink(f"/proc/self/fd/{rude.left_fd}"), "RUDE" in os.environ, os.getcwd(), os.umask(0o22) == 0)
    print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.pthread_sigmask(signal.SIG_BLOCK, []))
    print(gc.isenabled(), threading.current_thread() is threading.main_thread(), time.strftime("%Z"))
    print(random.random())
    """
    env = {**os.environ, "TZ": "XYZ-3"}
    for worker_id in ("a", "b"):
        stage.scripts[worker_id] = script
        stage.launcher.launch(LaunchSpec(worker_id, sys.executable, b"", stage.slots_fd, env, zygote))
        assert stage.reaped(worker_id).reason == Exited(0), stage.launcher.log_tail(worker_id)
    *same, one = stage.launcher.log_tail("a")
    *same_too, two = stage.launcher.log_tail("b")
    assert same == same_too == [f"/dev/null False {os.getcwd()} False", "True set()", "True True XYZ"]
    assert one != two


def ordered_at_once(stage: Stage, zygote: ZygoteSpec, scripts: dict[str, str]) -> None:
    """Launch workers so that their zygote finds all the orders when it looks. It must have forked one."""
    pid = int(stage.launcher.log_tail("first")[0])
    os.kill(pid, signal.SIGSTOP)
    for worker_id, script in scripts.items():
        stage.launch(worker_id, script, zygote=zygote)
    assert not select.select([stage.launcher], [], [], 0.2)[0]  # the nanny has handed them on
    os.kill(pid, signal.SIGCONT)


def test_workers_ordered_at_once_share_nothing(stage: Stage) -> None:
    zygote = module(stage.folder, "ours", "import os\nimporter = os.getpid()\n")
    stage.launch("first", "print(sys.modules['ours'].importer)", zygote=zygote)
    stage.reaped("first")
    script = """
    import random
    numbers = [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
    pipes = [name for name in numbers if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:")]
    print(sorted(map(int, numbers)), sorted(pipes), os.getppid())
    print(random.random())
    """
    names = [f"w{number}" for number in range(20)]
    ordered_at_once(stage, zygote, dict.fromkeys(names, script))
    assert {stage.reaped(name).reason for name in names} == {Exited(0)}
    said = [stage.launcher.log_tail(name) for name in names]
    assert {lines[0] for lines in said} == {f"[0, 1, 2, 3, 4, 5] ['1', '2', '5'] {nanny_pid()}"}
    assert len({lines[1] for lines in said}) == len(names)


def test_a_process_in_between_that_is_killed_fails_one_birth(stage: Stage) -> None:
    # The first process in between is killed at its second fork: nobody is told of that child.
    zygote = module(
        stage.folder,
        "deadly",
        """
        import os, signal
        importer, forks, mark = os.getpid(), 0, __file__ + ".killed"
        def forked():
            global forks
            forks += os.getpid() != importer
            if forks == 2 and not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        os.register_at_fork(after_in_parent=forked)
        """,
    )
    stage.launch("first", "print(sys.modules['deadly'].importer)", zygote=zygote)
    stage.reaped("first")
    ordered_at_once(stage, zygote, dict.fromkeys("abcd", SLEEPER))
    workers = {stage.launched("a"), stage.launched("c"), stage.launched("d")}
    assert "ended with -9" in failure(stage, "b")

    def below() -> set[int]:
        return {each.pid for each in psutil.Process(nanny_pid()).children(recursive=True)}

    zygotes = {root_pid(stage), int(stage.launcher.log_tail("first")[0])}
    stage.wait_until(lambda: below() == zygotes | workers, 2.0, "the death of the child that nobody was told of")


# --- deaths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["root", "pool"])
def test_a_zygotes_workers_outlive_it_and_it_is_replaced(stage: Stage, which: str) -> None:
    zygote = module(stage.folder, "ours", "import os\nimporter = os.getpid()\n")
    stage.launch("old", f"print(sys.modules['ours'].importer, flush=True); {SLEEPER}", zygote=zygote)
    worker = stage.pid("old")
    stage.wait_until(lambda: bool(stage.launcher.log_tail("old")), WAIT_S, "its output")
    pool_zygote = int(stage.launcher.log_tail("old")[0])
    victim = pool_zygote if which == "pool" else root_pid(stage)
    os.kill(victim, signal.SIGKILL)
    stage.wait_until(lambda: not alive(victim), WAIT_S, "the zygote's death")
    stage.launch("new", "print(sys.modules['ours'].importer); sys.exit(6)", zygote=zygote)
    stage.launch("plain", "sys.exit(7)")
    assert [stage.reaped(name).reason for name in ("new", "plain")] == [Exited(6), Exited(7)]
    assert (stage.launcher.log_tail("new") == [str(pool_zygote)]) is (which == "root")
    assert alive(worker)
    stage.launcher.kill("old", signal.SIGTERM)
    assert stage.reaped("old").reason == Signalled(15)
    assert not {event.worker_id for event in stage.events} - {"old", "new", "plain"}  # type: ignore[union-attr]


@pytest.mark.parametrize("with_nanny", [False, True])
@pytest.mark.parametrize("which", ["root", "pool"])
def test_launches_outlive_zygotes_that_are_killed_while_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, with_nanny: bool
) -> None:
    slow = f"folder = {str(tmp_path)!r}\n" + textwrap.dedent(
        """
        import os, time
        with open(f"{folder}/part", "w") as file: file.write(str(os.getpid()))
        os.rename(f"{folder}/part", f"{folder}/importing")
        while not os.path.exists(f"{folder}/go"): time.sleep(0.005)
        """
    )
    if which == "root":
        usual = launching.zygote_command

        def slow_zygote(spec: LaunchSpec, fds: ChildFds) -> list[str]:
            *python, script = usual(spec, fds)[:4]
            return [*python, slow + script, *usual(spec, fds)[4:]]

        monkeypatch.setattr(launching, "zygote_command", slow_zygote)
    with a_stage(tmp_path, "zygote", python_path=[str(tmp_path)]) as stage:
        zygote = module(tmp_path, "ours", slow if which == "pool" else "")
        for worker_id in ("a", "b"):
            stage.launch(worker_id, "sys.exit('ours' not in sys.modules)", zygote=zygote)
        stage.launch("plain", "sys.exit('ours' in sys.modules)")
        if which == "pool":
            stage.reaped("plain")  # its zygote is ready: it waits for none that is killed
        nanny = 0
        for _ in range(2):
            pid = stage.pid("importing")
            (tmp_path / "importing").unlink()
            if with_nanny:
                nanny = nanny_pid(dead=nanny)
            os.kill(nanny or pid, signal.SIGKILL)
        (tmp_path / "go").touch()
        for worker_id in ("a", "b", "plain"):
            assert stage.reaped(worker_id).reason == Exited(0)
            assert stage.of(worker_id) == ["Launched", "Died", "Reaped"]


def test_a_launch_under_way_at_a_dying_zygote_is_tried_again(stage: Stage) -> None:
    stage.launch("first", "pass")
    stage.reaped("first")
    zygote = root_pid(stage)
    os.kill(zygote, signal.SIGSTOP)
    stage.launch("w", "print(me); sys.exit(3)")
    assert not select.select([stage.launcher], [], [], 0.2)[0]
    os.kill(zygote, signal.SIGKILL)
    assert stage.reaped("w").reason == Exited(3)
    assert stage.launcher.log_tail("w") == ["w"]
    assert stage.of("w") == ["Launched", "Died", "Reaped"]


def test_a_zygote_may_die_at_any_moment(stage: Stage) -> None:
    rng, names = random.Random(5), []
    for turn in range(8):
        if turn % 2:  # else it may die before it is ready
            stage.launch(f"first{turn}", "pass")
            stage.ended(f"first{turn}")
        fresh = [f"w{turn}.{number}" for number in range(4)]
        for name in fresh:
            stage.launch(name, "if os.fork() == 0: os.setsid(); time.sleep(600)\nsys.exit(3)")
        for _ in range(rng.randrange(1, 8)):
            select.select([stage.launcher], [], [], 0.02)
            stage.events += stage.launcher.poll()
        os.kill(root_pid(stage), signal.SIGKILL)
        for name in fresh:
            stage.ended(name)
            if stage.of(name) != ["LaunchFailed"]:
                assert stage.of(name) == ["Launched", "Died", "Reaped"]
                assert stage.reaped(name).reason == Exited(3)
        names += fresh
    assert any("Launched" in stage.of(name) for name in names)
    stage.launch("last", SLEEPER)
    last = stage.pid("last")

    def below() -> set[int]:
        return {each.pid for each in psutil.Process(nanny_pid()).children(recursive=True)}

    stage.wait_until(lambda: below() == {root_pid(stage), last}, 2.0, "the death of all that workers left")


def test_zygotes_end_with_their_nanny(stage: Stage) -> None:
    zygote = module(stage.folder, "ours", "")
    stage.launch("w", SLEEPER, zygote=zygote)
    stage.pid("w")
    worker = stage.launched("w")
    pids = [each.pid for each in psutil.Process(nanny_pid()).children()]
    assert len(pids) == 3
    os.kill(root_pid(stage), signal.SIGSTOP)
    os.kill(nanny_pid(), signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids if pid != worker), 2.0, "the zygotes' end")
    assert stage.reaped("w").reason == Signalled(9)
    stage.wait_until(lambda: not set(pids) & set(children()), 2.0, "their burial")


# --- with DSPy ------------------------------------------------------------------------------------------


def pools(**general: object) -> dict[str, object]:
    """Return one worker for general, none elsewhere."""
    return {"general": {"launcher": "zygote", "size": 1, **general}, "optimizer": {"size": 0}, "neural": {"size": 0}}


def test_a_killed_worker_is_replaced_by_a_fork(tmp_path: Path) -> None:
    module(tmp_path, "my_models", "import os\nimporter = os.getpid()\n")
    (tmp_path / "program.py").write_text(
        "import os, dspy, my_models\n"
        "class Who(dspy.Module):\n"
        "    def forward(self): return {'importer': my_models.importer, 'pid': os.getpid()}\n"
    )
    with Orchestrator(pools=pools(preload=["my_models"]), python_path=[str(tmp_path)]) as orc:
        client = orc.client()
        client.deploy("who", "program:Who")
        first = client.program("who")()
        run_id = Path(orc.run_dir).name
        services = client.stats()["services"]["pid"]
        assert {found.pid for found in processes.of_run(run_id)} == {first["pid"], services}
        assert processes.orphans() == []
        os.kill(first["pid"], signal.SIGKILL)
        wait_until(lambda: client.stats()["pools"]["general"]["restarts"] == 1, WAIT_S, "the restart")
        began_s = time.monotonic()
        second = client.program("who")()
        assert time.monotonic() - began_s < 5.0
        assert second["pid"] != first["pid"]
        assert second["importer"] == first["importer"] not in (first["pid"], second["pid"])
        assert client.predict("question -> answer", question="Still there?").answer


def test_a_broken_preload_degrades_its_pool_and_no_other(tmp_path: Path) -> None:
    module(tmp_path, "my_models", "raise ValueError('weights are missing')")
    broken = {"launcher": "zygote", "size": 1, "preload": ["my_models"]}
    with pytest.raises(errors.Unavailable, match="weights are missing"):
        Orchestrator(pools={**pools(), "side": broken}, python_path=[str(tmp_path)]).__enter__()
