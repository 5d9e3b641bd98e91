"""Sessions on real workers: one worker, one call at a time, one memory; what becomes of them when workers die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bridge.protocol.prediction import Meta
from orchestrator import AsyncClient, Client, Orchestrator, errors
from orchestrator.cli.app import app
from orchestrator.client.future import Future
from orchestrator.client.request import Call
from orchestrator.client.sessions import Session
from orchestrator.client.stream import Final
from tests.support.waiting import wait_until

TALKER = f"{Path(__file__).parents[1] / 'support' / 'programs' / 'talker.py'}:Talker"
WAIT_S = 20.0
_COUNTING = """
import sys
from orchestrator import Client
with Client(sys.argv[1]) as client, client.session("shared") as session:
    print("open", flush=True)
    sys.stdin.readline()
    for number in range(int(sys.argv[2])):
        session.call("talker", question="now", wait_s=0.001)
"""


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[Orchestrator]:
    pools = {"general": {"size": 2, "slots": 1, "prefetch": 0}, "optimizer": {"size": 0}, "neural": {"size": 0}}
    with Orchestrator(pools=pools, sessions={"max_bytes": 200_000}) as orchestrator:
        with orchestrator.client() as client:
            client.deploy("talker", TALKER)
        yield orchestrator


@pytest.fixture
def client(orchestrator: Orchestrator) -> Iterator[Client]:
    with orchestrator.client() as client:
        wait_until(lambda: client.stats()["pools"]["general"]["ready"] == 2, WAIT_S, "two workers")
        yield client
        for row in client.sessions():
            client.expire_session(row["id"])


def listed(client: Client, worker: str | None) -> dict[str, Any]:
    return next(row for row in client.workers() if row["id"] == worker)


def meta(future: Future) -> Meta:
    assert future.meta is not None
    return future.meta


def kill(client: Client, worker: str | None) -> None:
    """Kill a worker and wait until it is seen to be dead."""
    os.kill(listed(client, worker)["pid"], signal.SIGKILL)
    wait_until(lambda: listed(client, worker)["state"] == "exited", WAIT_S, "its end")


@contextmanager
def busy(client: Client, worker: str | None, seconds: float = 1.0) -> Iterator[None]:
    """Have a worker's only slot taken for a while, by a session of its own."""
    with ExitStack() as stack:
        for number in range(20):
            other = stack.enter_context(client.session(f"busy-{number}", affinity="strict_queue"))
            # Bound where there is room: while the other worker is held it is the one that is meant.
            if other.execute("ping")["worker"] == worker:
                break
            other.submit("sleep", {"seconds": 0.2})
        else:
            pytest.fail("no session came to the worker")
        held = other.submit("sleep", {"seconds": seconds})
        wait_until(lambda: listed(client, worker)["in_flight"], WAIT_S, "its work")
        yield
        held.cancel()


# --- one worker, one memory -------------------------------------------------------------------------


def test_100_calls_of_a_session_run_on_one_worker_and_remember(client: Client) -> None:
    with client.session("hundred") as session:
        assert session.worker is None
        answers = [session.submit("talker", {"question": str(number)}) for number in range(100)]
        values = [answer.result(WAIT_S) for answer in answers]
        assert [value.count for value in values] == list(range(1, 101))
        assert {meta(answer).worker for answer in answers} == {session.worker}
        assert [value.local for value in values] == list(range(1, 101))
        assert values[-1].heard == [str(number) for number in range(99)]
        assert dict(session.state) == {"count": 100}
        metrics = session.metrics()
        assert (metrics["count"], metrics["success_rate"]) == (100, 1.0)
        assert 0 < metrics["mean_ms"] <= metrics["p95_ms"] * 10
        assert metrics["trend"] in ("improving", "steady", "degrading")
        history = session.history()
        assert [turn["inputs"]["question"] for turn in history] == [str(number) for number in range(100)]
        assert history[-1]["outputs"].answer == "99!"
        assert {turn["worker"] for turn in history} == {session.worker}


def test_a_session_is_the_same_for_all_who_name_it(client: Client, orchestrator: Orchestrator) -> None:
    assert client.execute("talker", {"question": "a"}, session="open").count == 1
    with orchestrator.client() as other, other.session("open") as session:
        assert session.call("talker", question="b").heard == ["a"]
        session.state["mark"] = {"deep": [1, 2]}
    with client.session("open") as session:  # leaving it did not end it
        assert session.state["mark"] == {"deep": [1, 2]}
    assert client.session_info("open")["calls"] == 2
    assert [row["id"] for row in client.sessions()] == ["open"]


def test_a_state_is_a_mapping_that_is_written_through(client: Client) -> None:
    with client.session("state") as session:
        state = session.state
        state["a"] = 1
        state.update(b={"c": (1, 2)}, d=None)
        assert state.copy() == {"a": 1, "b": {"c": (1, 2)}, "d": None}
        assert (len(state), sorted(state), state.get("x", 7)) == (3, ["a", "b", "d"], 7)
        assert "a" in state
        assert "x" not in state
        assert state.pop("a") == 1
        with pytest.raises(KeyError):
            state["a"]
        with pytest.raises(KeyError):
            del state["a"]
        assert session.call("talker", question="q").count == 1
        assert state["count"] == 1
        state.clear()
        assert not state
        with pytest.raises(errors.InvalidRequest):
            state["bad"] = object()
        assert (session.history()[0]["operation"], session.metrics()["count"]) == ("talker", 1)


class Noting(Client):
    """Notes how large the answers are."""

    sizes: list[int]

    def _run(self, call: Call[Any]) -> Any:
        future = self._put(call.operation, call.args, call.pool, call.deadline_s, call.lm, call.terms)
        self.sizes.append(len(repr(future.result(WAIT_S))))
        return super()._run(call)


def test_what_is_asked_of_a_session_comes_without_the_rest(client: Client) -> None:
    with Noting(client.endpoint) as noting, client.session("large") as session:
        session.state["text"] = "x" * 100_000
        session.call("talker", question="y" * 4_000)
        noting.sizes = []
        same = noting.session("large")
        assert (same.worker, same.metrics()["count"]) == (session.info()["worker"], 1)
        assert max(noting.sizes) < 2_000
        assert same.state["count"] == 1
        assert 100_000 < noting.sizes[-1] < 110_000
        assert len(same.history()) == 1
        assert 4_000 < noting.sizes[-1] < 20_000
        assert len(same.info()["history"]) == 1
        assert noting.sizes[-1] > 104_000


def test_a_failed_call_leaves_the_state_and_says_so_in_the_history(client: Client) -> None:
    with client.session("failing") as session:
        session.call("talker", question="a")
        with pytest.raises(errors.RemoteError, match="as asked"):
            session.call("talker", question="b", fail=True)
        assert session.state["count"] == 1
        assert session.call("talker", question="c").heard == ["a"]
        assert [(turn["ok"], turn["error"]) for turn in session.history()] == [
            (True, None), (False, "REMOTE_ERROR"), (True, None),
        ]  # fmt: skip
        assert session.metrics()["success_rate"] == pytest.approx(2 / 3)


def test_a_state_beyond_its_quota_is_refused_and_rolled_back(client: Client) -> None:
    with client.session("much") as session:
        session.call("talker", question="a")
        with pytest.raises(errors.TooLarge, match="max_bytes"):
            session.call("talker", question="b", mb=1.0)
        with pytest.raises(errors.TooLarge):
            session.state["much"] = "x" * 300_000
        assert session.call("talker", question="c").count == 2


def test_a_module_goes_on_with_a_conversation(client: Client) -> None:
    args = {"signature": "question, history: dspy.History -> answer", "inputs": {"question": "one"}}
    with client.session("chat") as session:
        assert session.execute("dspy.Predict", args).answer
        *tokens, final = session.stream("dspy.Predict", args)
        assert isinstance(final, Final)
        assert final.value.answer
        assert tokens
        assert [turn["ok"] for turn in session.history()] == [True, True]


def test_a_conversation_goes_on_with_the_next_version_of_a_program(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "again.py"
    path.write_text(Path(TALKER.partition(":")[0]).read_text())
    first = client.deploy("changing", f"{path}:Talker")
    with client.session("redeployed") as session:
        session.call("changing", question="a")
        path.write_text(path.read_text().replace('"{question}!"', '"{question}?"'))
        assert client.deploy("changing", f"{path}:Talker").version == first.version + 1
        value = session.call("changing", question="b")
        assert (value.answer, value.count, value.heard) == ("b?", 2, ["a"])
        assert {turn["operation"] for turn in session.history()} == {"changing"}


# --- affinity ---------------------------------------------------------------------------------------


def test_a_hint_gives_way_and_takes_its_memory_along(client: Client) -> None:
    with client.session("hint") as session:
        session.call("talker", question="a")
        home = session.worker
        with busy(client, home):
            moved = session.call("talker", question="b")
        assert session.worker != home
        assert (moved.count, moved.heard, moved.local) == (2, ["a"], 1)


def test_a_strict_session_waits_for_its_worker(client: Client) -> None:
    with client.session("strict", affinity="strict_queue") as session:
        session.call("talker", question="a")
        home = session.worker
        with busy(client, home, 0.5):
            asked = session.submit("talker", {"question": "b"})
            assert asked.result(WAIT_S).local == 2
        assert meta(asked).worker == home
        assert meta(asked).queue_ms > 50


def test_a_strict_session_that_fails_fast_says_who_is_busy(client: Client) -> None:
    with client.session("fast", affinity="strict_fail_fast") as session:
        session.call("talker", question="a")
        home = session.worker
        with busy(client, home):
            with pytest.raises(errors.WorkerBusy) as caught:
                session.call("talker", question="b")
            assert (caught.value.details["worker"], caught.value.retryable) == (home, True)
        wait_until(lambda: not listed(client, home)["in_flight"], WAIT_S, "room")
        assert session.call("talker", question="b").local == 2
        running = session.submit("talker", {"question": "c", "wait_s": 0.5})
        with pytest.raises(errors.WorkerBusy, match="another call"):
            session.call("talker", question="d")
        assert running.result(WAIT_S).count == 3


def test_a_first_call_that_waits_gets_its_worker_like_any_other(client: Client) -> None:
    held = [client.submit("sleep", {"seconds": 0.3}) for _ in range(4)]
    with client.session("queued", affinity="strict_queue") as session:
        asked = [session.submit("talker", {"question": str(number)}) for number in range(3)]
        assert [one.result(WAIT_S).count for one in asked] == [1, 2, 3]
        assert len({meta(one).worker for one in asked}) == 1
    for one in held:
        one.result(WAIT_S)


def test_two_first_calls_at_once_agree_on_one_worker(client: Client, orchestrator: Orchestrator) -> None:
    with orchestrator.client() as other:
        for number in range(10):
            asked = [one.submit("talker", {"question": "q"}, session=f"pair-{number}") for one in (client, other)]
            assert {one.result(WAIT_S).count for one in asked} == {1, 2}
            assert len({meta(one).worker for one in asked}) == 1


def test_two_processes_lose_no_update_of_each_other(client: Client, orchestrator: Orchestrator) -> None:
    command = [sys.executable, "-c", _COUNTING, orchestrator.endpoint, "30"]
    both = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        for _ in range(2)
    ]
    try:
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
        for process in both:
            process.communicate("go\n", timeout=WAIT_S)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert [process.returncode for process in both] == [0, 0]
    with client.session("shared") as session:
        assert session.state["count"] == 60
        assert len({turn["worker"] for turn in session.history()}) == 1


def test_a_program_may_ask_in_another_session_and_not_in_its_own(client: Client) -> None:
    with client.session("outer") as session:
        assert session.call("talker", question="a", ask="inner").session == "inner"
        with pytest.raises(errors.InvalidRequest, match="nested"):
            session.call("talker", question="b", ask="outer")
        assert (session.state["count"], client.session("inner").state["count"]) == (1, 1)


# --- loss -------------------------------------------------------------------------------------------


def test_a_session_goes_on_elsewhere_when_its_worker_is_killed(client: Client) -> None:
    with client.session("restored") as session:
        for question in ("a", "b"):
            session.call("talker", question=question)
        session.state["mark"] = 7
        before = session.worker
        kill(client, before)
        large = "c" * 100_000  # its way is shared memory, and that of the session is not
        after = session.submit("talker", {"question": large})
        assert (after.result(WAIT_S).count, after.result().heard, after.result().local) == (3, ["a", "b"], 1)
        assert after.result().answer == f"{large}!"
        assert session.history()[-1]["omitted"] == ["inputs", "outputs"]
        assert meta(after).worker == session.worker != before
        assert (session.state["mark"], session.info()["restored"]) == (7, 1)


def run_for_long(session: Session, begun: Path) -> Future:
    """Begin a call that runs until its worker ends."""
    running = session.submit("talker", {"question": "long", "wait_s": 30.0, "begun": str(begun)})
    wait_until(begun.exists, WAIT_S, "its run")
    return running


def test_the_call_that_ran_is_lost_and_the_session_is_not(client: Client, tmp_path: Path) -> None:
    with client.session("cut") as session:
        session.call("talker", question="a")
        running = run_for_long(session, tmp_path / "begun")
        behind = session.submit("talker", {"question": "c"})
        kill(client, session.worker)
        with pytest.raises(errors.WorkerLost):
            running.result(WAIT_S)
        assert (behind.result(WAIT_S).count, behind.result().heard) == (2, ["a"])
        assert session.metrics()["success_rate"] == pytest.approx(2 / 3)


def test_a_session_that_is_to_be_lost_with_its_worker_is(client: Client, tmp_path: Path) -> None:
    with client.session("fragile", on_loss="fail") as session:
        session.call("talker", question="a")
        running = run_for_long(session, tmp_path / "begun")
        behind = session.submit("talker", {"question": "c"})
        kill(client, session.worker)
        with pytest.raises(errors.WorkerLost):
            running.result(WAIT_S)
        with pytest.raises(errors.SessionLost) as caught:
            behind.result(WAIT_S)
        assert caught.value.details["session"] == "fragile"
        with pytest.raises(errors.SessionLost):
            session.call("talker", question="d")
        with pytest.raises(errors.SessionLost):  # never a silent stranger, whoever asks
            client.execute("talker", {"question": "e"}, session="fragile")
    with client.session("fragile") as session:
        assert session.call("talker", question="f").count == 1


# --- ends -------------------------------------------------------------------------------------------


def test_a_session_of_one_second_is_gone_by_the_second_one(client: Client) -> None:
    with client.session("short", ttl_s=1.0) as session:
        session.call("talker", question="a")
        began = time.monotonic()
        wait_until(lambda: not client.sessions(), WAIT_S, "its end")
        assert 0.9 < time.monotonic() - began < 2.0
        with pytest.raises(errors.SessionLost) as caught:
            session.call("talker", question="b")
        assert caught.value.details["reason"] == "expired"
        for look in (session.history, session.metrics, session.state.copy):
            with pytest.raises(errors.SessionLost):
                look()
        assert client.execute("talker", {"question": "c"}, session="short").count == 1
        with pytest.raises(errors.SessionLost):  # the name has another session now
            session.call("talker", question="d")


def test_use_keeps_a_session(client: Client) -> None:
    with client.session("used", ttl_s=0.4) as session:
        for number in range(4):
            assert session.call("talker", question="a", wait_s=0.15).count == number + 1
        assert session.call("talker", question="b", wait_s=0.8).count == 5  # nothing expires while it runs


def test_an_ended_session_refuses_what_waits(client: Client) -> None:
    with client.session("ended") as session:
        running = session.submit("talker", {"question": "a", "wait_s": 0.5})
        behind = session.submit("talker", {"question": "b"})
        wait_until(lambda: session.info()["busy"] and session.info()["waiting"] == 1, WAIT_S, "both")
        assert client.expire_session("ended") is True
        with pytest.raises(errors.SessionLost):
            behind.result(WAIT_S)
        assert running.result(WAIT_S).count == 1
        with pytest.raises(errors.SessionLost):
            session.call("talker", question="c")
    assert client.expire_session("ended") is False
    with pytest.raises(errors.NotFound):
        client.session_info("ended")


def test_tenants_with_the_same_names_never_meet(client: Client, orchestrator: Orchestrator) -> None:
    with (
        Client(orchestrator.endpoint, principal="other") as stranger,
        client.session("same") as mine,
        stranger.session("same") as theirs,
    ):
        mine.state["secret"] = "mine"
        for _ in range(3):
            mine.call("talker", question="mine")
        assert theirs.call("talker", question="theirs").count == 1
        assert theirs.state.copy() == {"count": 1}
        assert [row["calls"] for row in stranger.sessions()] == [1]
        assert stranger.expire_session("same") is True
        assert mine.call("talker", question="mine").count == 4


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 201, 7, None])
def test_a_bad_name_is_refused_here(client: Client, name: object) -> None:
    with pytest.raises(errors.InvalidRequest):
        client.session(name)  # type: ignore[arg-type]
    if name is not None:
        with pytest.raises(errors.InvalidRequest):
            client.submit("echo", {}, session=name)  # type: ignore[arg-type]


def test_bad_options_are_refused(client: Client) -> None:
    wrong: list[dict[str, Any]] = [{"ttl_s": 0}, {"ttl_s": 10**9}, {"affinity": "loose"}, {"on_loss": "ignore"}]
    for options in wrong:
        with pytest.raises(errors.InvalidRequest):
            client.session("bad", **options)
    with pytest.raises(errors.InvalidRequest, match="idempotency_key"):
        client.execute("echo", 1, session="bad", idempotency_key="k")
    assert client.sessions() == []


# --- the other clients ------------------------------------------------------------------------------


def test_an_asynchronous_client_has_the_same(orchestrator: Orchestrator, client: Client) -> None:
    async def talk() -> None:
        async with AsyncClient(orchestrator.endpoint) as asynchronous:
            with pytest.raises(errors.InvalidRequest, match="not open"):
                await asynchronous.session("async").call("talker", question="a")
            async with asynchronous.session("async", affinity="strict_queue") as session:
                values = await asyncio.gather(*(session.call("talker", question=str(n)) for n in range(5)))
                assert sorted(value.count for value in values) == [1, 2, 3, 4, 5]
                await session.state.set("a", 1)
                await session.state.update(b=2)
                assert await session.state.delete("a") is True
                assert (await session.state.get("b"), await session.state.items()) == (2, {"count": 5, "b": 2})
                assert await session.worker == (await session.history())[0]["worker"]
                assert (await session.metrics())["count"] == 5
                *_, final = [piece async for piece in session.stream("talker", {"question": "s"})]
                assert isinstance(final, Final)
                assert final.value.count == 6
                assert (await (await session.submit("talker", {"question": "t"}))).count == 7
                again = await asynchronous.session("async")
                assert (await again.info())["affinity"] == "strict_queue"
                assert await again.expire() is True

    asyncio.run(talk())


def test_the_command_line_lists_shows_and_ends_them(client: Client) -> None:
    def dspool(*words: str) -> Result:
        return CliRunner().invoke(app, words, env={"DSPOOL_ENDPOINT": client.endpoint})

    called = dspool("call", "talker", "question=a", "--session", "told", "--json")
    assert json.loads(called.stdout)["value"]["count"] == 1
    assert dspool("call", "talker", "question=b", "--session", "told", "--stream").exit_code == 0
    assert dspool("call", "talker", "question=c", "fail=true", "--session", "told").exit_code == 1
    listed_ = dspool("sessions", "ls")
    assert listed_.exit_code == 0
    assert "told" in listed_.stdout
    assert [row["id"] for row in json.loads(dspool("sessions", "ls", "--json").stdout)] == ["told"]
    shown = dspool("sessions", "show", "told")
    assert shown.exit_code == 0, shown.stderr
    for text in ("3 calls, 67% good", '"count": 2', "REMOTE_ERROR", "affinity: hint"):
        assert text in shown.stdout
    document = json.loads(dspool("sessions", "show", "told", "--json").stdout)
    assert (document["state"], len(document["history"]), document["turns"]) == ({"count": 2}, 3, 3)
    assert json.loads(dspool("sessions", "expire", "told", "--json").stdout) == {"id": "told", "expired": True}
    for gone in (("expire", "told"), ("show", "told")):
        refused = dspool("sessions", *gone)
        assert refused.exit_code == 2
        assert "no session 'told'" in refused.stderr
    assert dspool("sessions", "ls").stdout == dspool("sessions").stdout == "there is no session\n"


def test_the_command_line_is_not_steered_by_names_and_values(client: Client) -> None:
    def dspool(*words: str) -> str:
        done = CliRunner().invoke(app, words, env={"DSPOOL_ENDPOINT": client.endpoint})
        assert done.exit_code == 0, done.stderr
        return done.stdout

    session = client.session("a\x1b[2J\nroot")
    session.state["k\x9b"] = "\x1b]0;pwn\x07"
    for told in (dspool("sessions"), dspool("sessions", "show", session.id), dspool("sessions", "expire", session.id)):
        assert "a\\x1b[2J\\nroot" in told
        assert not {"\x1b", "\x07", "\x9b"} & set(told)


def test_a_session_is_a_context_of_nothing_else(client: Client) -> None:
    session = client.session("plain")
    assert isinstance(session, Session)
    assert repr(session) == "<Session 'plain'>"
    assert repr(session.state) == "<State of session 'plain'>"
