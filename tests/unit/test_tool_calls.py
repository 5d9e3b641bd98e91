"""A tool call from the worker's side to the caller's and back, without a coordinator in between."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest

from bridge.protocol.errors import CANCELLED, BridgeError, encode_error
from bridge.protocol.messages import ERROR, Message, ToolCall, ToolReply
from bridge.worker import tools as worker_tools
from bridge.worker.call import Call, CallStopped, current_call
from orchestrator.client.tool_calls import Serving, ToolHost, ToolThreads
from orchestrator.client.tools import Toolset

SOON_S = 10.0
asked: contextvars.ContextVar[str] = contextvars.ContextVar("asked", default="nobody")


class Line:
    """Both ends of a request: the worker's attempt (a `Home`) and the caller's connection."""

    nesting, message_bytes = 128, 1 << 16

    def __init__(self, tools: list[Any], *, deadline_s: float | None = None) -> None:
        toolset = Toolset.of(tools)
        self.tool_host = ToolHost()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.serving: Serving = toolset.serve(self)  # type: ignore[arg-type]
        self.lent = self.most_lent = 0
        self.calls: list[ToolCall] = []
        self.arrived = threading.Event()
        self.hold: Callable[[ToolCall], bool] = lambda message: False
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        self.call = Call(7, 3, "dspy.ReAct", deadline=deadline, home=self)
        self.tools = {tool.name: tool for tool in worker_tools.resolve(list(toolset.specs), "options.tools")}

    def use(self, name: str, **arguments: Any) -> Any:
        """Call a tool as a program on a thread does."""

        def run() -> Any:
            current_call.set(self.call)
            return self.tools[name](**arguments)

        return contextvars.copy_context().run(run)

    # --- what an attempt is given -----------------------------------------------------------------

    def post(self, message: Message) -> None:
        assert isinstance(message, ToolCall)
        self.calls.append(message)
        self.arrived.set()
        if not self.hold(message):
            self.serving.call(message)

    def lend(self, call: Call) -> None:
        self.lent += 1
        self.most_lent = max(self.most_lent, self.lent)

    def take_back(self, call: Call) -> None:
        self.lent -= 1

    async def atake_back(self, call: Call) -> None:
        self.lent -= 1

    # --- what a caller's tools are given ----------------------------------------------------------

    def reply_tool(self, reply: ToolReply) -> None:
        exchange = self.call.on_tool_reply
        assert exchange is not None
        exchange(reply)


@pytest.fixture
def lines() -> Iterator[Callable[..., Line]]:
    opened: list[Line] = []

    def line(*tools: Any, **more: Any) -> Line:
        opened.append(Line(list(tools), **more))
        return opened[-1]

    yield line
    for one in opened:
        one.serving.end()
        one.tool_host.close()


def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


async def aadd(a: int, b: int = 1) -> int:
    """Add."""
    await asyncio.sleep(0)
    return a + b


def where() -> list[str]:
    """Tell where and for whom it runs."""
    return [threading.current_thread().name.partition("[")[0], asked.get()]


@pytest.mark.parametrize("tool", [add, aadd], ids=["sync", "async"])
def test_a_call_travels_and_its_slot_is_lent(lines: Callable[..., Line], tool: Any) -> None:
    line = lines(tool)
    assert line.use(tool.__name__, a=2, b=40) == 42
    assert line.use(tool.__name__, a=2) == 3
    assert (line.lent, line.most_lent) == (0, 1)
    assert [message.number for message in line.calls] == [1, 2]
    assert {(message.request_id, message.epoch, message.deadline_ms) for message in line.calls} == {(7, 3, None)}


def test_an_agent_on_an_event_loop_awaits_several_calls_at_once(lines: Callable[..., Line]) -> None:
    line = lines(aadd, add, deadline_s=60)

    async def program() -> list[Any]:
        current_call.set(line.call)
        work = [line.tools[("add", "aadd")[n % 2]].acall(a=n, b=1) for n in range(20)]
        return list(await asyncio.gather(*work))

    assert asyncio.run(program()) == list(range(1, 21))
    assert {0 < (message.deadline_ms or 0) <= 60_000 for message in line.calls} == {True}
    assert sorted(message.number for message in line.calls) == list(range(1, 21))


def test_tools_run_in_the_context_of_who_asked(lines: Callable[..., Line]) -> None:
    token = asked.set("me")
    line = lines(where)
    asked.reset(token)
    assert line.use("where") == ["tools", "me"]


def boom(a: int) -> int:
    """Raise."""
    raise ZeroDivisionError(f"by {a}")


async def aboom(a: int) -> int:
    """Raise."""
    raise SystemExit(a)


def odd(a: int) -> Any:
    """Return what cannot travel."""
    return {"deep": [object()]}


def large(a: int) -> Any:
    """Return too much."""
    return b"x" * (1 << 17)


class OddError(Exception):
    pass


def stranger(a: int) -> int:
    """Raise an error of its own."""
    raise OddError("odd")


@pytest.mark.parametrize(
    ("tool", "kind", "message"),
    [
        (boom, "ZeroDivisionError", "by 3"),
        (aboom, "SystemExit", "3"),
        (stranger, "OddError", "odd"),
        (odd, "TypeError", r"what odd returned cannot be sent: deep\[0\] cannot travel"),
        (large, "ValueError", "what large returned cannot be sent: the value takes"),
    ],
    ids=["raises", "exits", "raises its own", "returns an object", "returns too much"],
)
def test_what_goes_wrong_is_raised_in_the_agent_by_its_own_name(
    lines: Callable[..., Line], tool: Any, kind: str, message: str
) -> None:
    line = lines(tool)
    with pytest.raises(Exception, match=message) as caught:
        line.use(tool.__name__, a=3)
    assert type(caught.value).__name__ == kind
    assert line.lent == 0


def test_a_model_is_told_what_it_is_told_in_one_process(lines: Callable[..., Line]) -> None:
    with pytest.raises(ZeroDivisionError) as here:
        dspy.Tool(boom)(a=3)
    with pytest.raises(Exception, match="by 3") as there:
        lines(boom).use("boom", a=3)
    last = [
        dspy.utils.exceptions.format_error_for_lm(e.value, traceback_frames=5).splitlines()[-1] for e in (here, there)
    ]
    assert last == ["ZeroDivisionError: by 3"] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"a": "two"}, "Arg a is invalid"), ({"c": 1}, "Arg c is not in the tool's args"), ({}, "missing 1 required")],
)
def test_arguments_are_checked(lines: Callable[..., Line], arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said) as here:
        dspy.Tool(add)(**arguments)
    with pytest.raises(Exception, match=said) as there:
        lines(add).use("add", **arguments)
    assert type(here.value).__name__ == type(there.value).__name__


def test_generated_code_is_given_a_function_like_the_callers(lines: Callable[..., Line]) -> None:
    def weather(days: int = 3, *, city: str, exact: bool = False, rest: Any = None, **more: Any) -> str:
        return city

    tool = lines(weather).tools["weather"]
    assert str(inspect.signature(tool.func)) == "(city: str, days: int = 3, exact: bool = False, rest=None, **others)"
    assert (tool.has_kwargs, tool.func.__name__, tool.desc) == (True, "weather", None)


def test_a_call_of_no_tool_of_the_caller_is_answered(lines: Callable[..., Line]) -> None:
    line = lines(add)
    (tool,) = worker_tools.resolve([{"name": "ad", "parameters": {"properties": {}}}], "options.tools")
    line.tools["ad"] = tool
    with pytest.raises(Exception, match="unknown tool of the caller 'ad'; did you mean 'add'"):
        line.use("ad")


def test_answers_that_nobody_waits_for_are_dropped(lines: Callable[..., Line]) -> None:
    line = lines(add)
    assert line.use("add", a=1) == 2
    line.reply_tool(ToolReply(request_id=7, epoch=3, number=1, payload=b"\x01"))
    line.reply_tool(ToolReply(request_id=7, epoch=3, number=99, payload=b"\x01"))
    assert line.use("add", a=2) == 3


def test_where_the_caller_is_gone_the_call_is_stopped(lines: Callable[..., Line]) -> None:
    line = lines(add)
    payload = encode_error(BridgeError(CANCELLED, "the caller that has the tool is gone"))

    def gone(message: ToolCall) -> bool:
        line.reply_tool(ToolReply(request_id=7, epoch=3, number=message.number, status=ERROR, payload=payload))
        return True

    line.hold = gone
    with pytest.raises(CallStopped) as caught:
        line.use("add", a=1)
    assert caught.value.error.code == CANCELLED


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
@pytest.mark.parametrize("awaited", [False, True], ids=["waited for", "awaited"])
def test_a_tool_that_does_not_answer_stops_with_its_request(
    lines: Callable[..., Line], how: str, awaited: bool
) -> None:
    line = lines(add, deadline_s=0.05 if how == "deadline" else None)
    line.hold = lambda message: True
    ended: list[CallStopped] = []

    async def program() -> Any:
        current_call.set(line.call)
        return await line.tools["add"].acall(a=1)

    def run() -> None:
        try:
            asyncio.run(program()) if awaited else line.use("add", a=1)
        except CallStopped as stop:
            ended.append(stop)

    thread = threading.Thread(target=run)
    thread.start()
    assert line.arrived.wait(SOON_S)
    if how == "cancelled":
        line.call.cancel()
    thread.join(SOON_S)
    assert len(ended) == 1
    assert line.lent == 0
    line.reply_tool(ToolReply(request_id=7, epoch=3, number=1, payload=b"\x01"))  # too late; nobody minds


def test_outside_of_a_request_a_callers_tool_says_so(lines: Callable[..., Line]) -> None:
    tool = lines(add).tools["add"]
    with pytest.raises(BridgeError, match="add is a tool of the caller's"):
        contextvars.Context().run(tool, a=1)


def test_when_a_request_ends_its_async_tools_are_cancelled_and_others_go_on_unheard(lines: Callable[..., Line]) -> None:
    begun, cancelled, go_on, gone_on = (threading.Event() for _ in range(4))

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def blocks() -> None:
        begun.set()
        go_on.wait(SOON_S)
        gone_on.set()

    line = lines(forever, blocks)
    line.call.on_tool_reply = lambda reply: None  # as a connection does with a request that is settled
    for name in ("forever", "blocks"):
        begun.clear()
        line.serving.call(ToolCall(request_id=7, epoch=3, number=1, name=name, payload=b"\x80"))
        assert begun.wait(SOON_S)
    line.serving.end()
    assert cancelled.wait(SOON_S)
    go_on.set()
    assert gone_on.wait(SOON_S)


def test_when_a_request_runs_anew_the_async_tools_of_its_dead_worker_are_cancelled(lines: Callable[..., Line]) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    line = lines(forever, add)
    line.serving.call(ToolCall(request_id=7, epoch=2, number=1, name="forever", payload=b"\x80"))
    assert begun.wait(SOON_S)
    assert line.use("add", a=1) == 2  # epoch 3
    assert cancelled.wait(SOON_S)


def test_threads_are_bounded_and_used_again() -> None:
    threads, gate = ToolThreads(3), threading.Barrier(4)
    names: set[str] = set()
    done = threading.Semaphore(0)

    def work() -> None:
        names.add(threading.current_thread().name)
        done.release()

    def meet() -> None:
        work()
        gate.wait(SOON_S)

    for _ in range(3):
        threads.run(meet)
    for _ in range(20):
        threads.run(work)
    for _ in range(3):
        assert done.acquire(timeout=SOON_S)
    gate.wait(SOON_S)
    for _ in range(20):
        assert done.acquire(timeout=SOON_S)
    assert len(names) == 3


# --- tools that run in the worker ------------------------------------------------------------------------


def test_an_imported_function_that_blocks_does_not_block_the_loop(tmp_path: Any) -> None:
    source = """
import threading
from bridge.worker.call import current_call
gate = threading.Event()
def blocks():
    '''Wait.'''
    return gate.wait(10), current_call.get().request_id
def opens():
    '''Open.'''
    gate.set()
async def later(n: int):
    '''Later.'''
    return n
number = 5
def unreadable(a: 'Nope'): ...
"""
    file = tmp_path / "tools_of_a_file.py"
    file.write_text(source)
    found = {t.name: t for t in worker_tools.resolve([f"{file}:{n}" for n in ("blocks", "opens", "later")], "tools")}

    async def program() -> list[Any]:
        current_call.set(Call(11, 1, "x"))
        return list(await asyncio.gather(found["blocks"].acall(), found["opens"].acall()))

    assert asyncio.run(program())[0] == (True, 11)
    assert found["later"](n=3) == 3  # a program that awaits nothing may use it too
    for name, said in (("number", "is a int, not a function"), ("unreadable", "cannot be a tool: NameError")):
        with pytest.raises(BridgeError, match=said) as caught:
            worker_tools.resolve([f"{file}:{name}"], "options.tools")
        assert caught.value.details["path"] == "options.tools[0]"


def test_an_async_tool_called_by_a_program_that_awaits_nothing_is_stopped_with_it(tmp_path: Any) -> None:
    file = tmp_path / "slow_tools.py"
    file.write_text("import asyncio\nasync def forever():\n    '''Wait.'''\n    await asyncio.Event().wait()\n")
    (tool,) = worker_tools.resolve([f"{file}:forever"], "tools")
    call = Call(1, 1, "x", deadline=time.monotonic() + 0.05)

    def run() -> None:
        current_call.set(call)
        tool()

    with pytest.raises(CallStopped):
        contextvars.copy_context().run(run)

    async def wrongly() -> None:
        tool()

    with pytest.raises(ValueError, match="must be awaited"):
        asyncio.run(wrongly())


@pytest.mark.parametrize(
    ("specs", "path"),
    [
        ("x", "tools"),
        ([3], "tools[0]"),
        ([{"name": "a"}, {"name": "a"}], "tools[1]"),
        ([{"name": "finish"}], "tools[0]"),
        ([{"description": "no name"}], "tools[0].name"),
        ([{"name": "a", "parameters": []}], "tools[0].parameters"),
        ([{"name": "a", "description": 3}], "tools[0].description"),
        ([{"name": "a", "params": {}}], "tools[0].params"),
        ([{"name": "a", "parameters": {"properties": {"not a name": {}}}}], "tools[0].parameters"),
    ],
)
def test_specs_are_checked(specs: Any, path: str) -> None:
    with pytest.raises(BridgeError) as caught:
        worker_tools.resolve(specs, "tools", taken=("finish",))
    assert caught.value.details["path"] == path
